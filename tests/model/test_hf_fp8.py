"""FP8 checkpoints with a scale per block, as DeepSeek-V3 is released: multiplied out, whole and shard by shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import hf
from model.sharding import make_mesh
from tests.model.experts import PAIR, assert_same_tree, saved, tamper

BLOCK = 20


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of square blocks, the last of a row or column smaller."""
    rows, columns = (range(0, size, BLOCK) for size in weight.shape)
    scales = np.ones((len(rows), len(columns)), np.float32)
    codes = np.zeros(weight.shape, jnp.float8_e4m3fn)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = (slice(row, row + BLOCK), slice(column, column + BLOCK))
            scales[i, j] = np.abs(weight[block]).max() / 448
            codes[block] = (weight[block].astype(np.float32) / scales[i, j]).astype(jnp.float8_e4m3fn)
    return codes, scales


def multiplied(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Each code times its block's scale, one by one."""
    return np.array(
        [
            [np.float32(code) * scales[i // BLOCK, j // BLOCK] for j, code in enumerate(row)]
            for i, row in enumerate(codes)
        ],
        np.float32,
    )


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A DeepSeek-V3 as released: FP8 blocks with scales, the rest bfloat16, the router's bias float32; and the
    parameters that it stands for.
    """
    folder = tmp_path_factory.mktemp("fp8") / "fp8"
    plain = folder.with_name("plain")
    saved(PAIR, folder, param_dtype="bfloat16")
    saved(PAIR, plain)
    quantised_config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    kept = ("norm.weight", "layernorm.weight", "embed_tokens.weight", "head.weight", "mlp.gate.weight", "bias")

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name, weight in list(tensors.items()):
            if not name.endswith(kept):
                tensors[name], tensors[f"{name}_scale_inv"] = quantised(weight.astype(np.float32))

    tamper(folder, change, quantization_config=quantised_config)
    tensors = load_file(plain / "model.safetensors")
    stored = {name: value for name, value in numpy_tensors(folder).items() if not name.endswith("_scale_inv")}
    scales = load_scales(folder)
    values = {
        name: multiplied(value, scales[name]) if name in scales else value.astype(np.float32)
        for name, value in stored.items()
    }
    assert set(values) == set(tensors) and len(scales) > 50
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    return folder, hf.load(plain)[1]


def numpy_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor by the format's own description: a header of JSON, then the bytes."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    kinds = {"F8_E4M3": jnp.float8_e4m3fn, "BF16": jnp.bfloat16, "F32": np.float32}
    return {
        name: np.frombuffer(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], kinds[entry["dtype"]]
        ).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def load_scales(folder: Path) -> dict[str, np.ndarray]:
    return {
        name.removesuffix("_scale_inv"): value
        for name, value in numpy_tensors(folder).items()
        if name.endswith("_scale_inv")
    }


def test_fp8_weights_are_multiplied_out(fp8: Any) -> None:
    folder, params = fp8
    model, loaded = hf.load(folder, dtype="float32")
    assert_same_tree(loaded, params)
    assert model.config.mtp.depth == 2
    model, rounded = hf.load(folder)
    assert model.config.param_dtype == "bfloat16"
    expected = {name: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for name, tree in params.items()}
    assert_same_tree(rounded, expected | {"state": params["state"]})


@pytest.mark.parametrize("axes", [{"expert": 4, "fsdp": 2}, {"fsdp": 4, "tensor": 2}])
def test_fp8_shards_that_begin_inside_a_block(fp8: Any, axes: dict[str, int]) -> None:
    folder, params = fp8
    mesh = make_mesh(axes)
    model, loaded = hf.load(folder, mesh, dtype="float32")
    assert_same_tree(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.shardings(mesh)


def test_fp8_scales_must_fit(fp8: Any, tmp_path: Path) -> None:
    tensors, config = numpy_tensors(fp8[0]), json.loads((fp8[0] / "config.json").read_text())
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    cases: list[tuple[dict[str, np.ndarray | None], dict[str, Any], str]] = [
        ({f"{name}_scale_inv": np.ones((1, 1), np.float32)}, {}, rf"{name}_scale_inv of shape \(1, 1\).*\(1, 2\)"),
        ({f"{name}_scale_inv": None}, {}, f"unsupported dtype F8_E4M3 of {name}"),
        ({name: tensors[name].astype(np.float32)}, {}, f"{name}, F32.*expected an F8_E4M3"),
        ({"model.norm.weight_scale_inv": np.ones(2, np.float32)}, {}, r"model\.norm\.weight_scale_inv"),
        ({}, {"quantization_config": None}, "left over: .*_scale_inv"),
    ]
    for i, (changes, settings, message) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        changed = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | settings))
        with pytest.raises(ValueError, match=message):
            hf.load(folder)
