"""hf.load and hf.save of experts and multi-token prediction: round trips, errors, and how much is read."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from infer.load import without_modules
from model import hf
from model.hf import loading
from model.sharding import make_mesh
from tests.model.common import random_params, tiny
from tests.model.experts import FAMILIES, PAIR, assert_same_tree, saved, tamper

# The first module's place in the file, after the model's two layers.
MODULE = "model.layers.2."


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every block that a load takes from a file."""
    sizes: list[int] = []
    read = loading.read_part

    def record(*arguments: Any) -> np.ndarray:
        block = read(*arguments)
        sizes.append(block.size)
        return block

    monkeypatch.setattr(loading, "read_part", record)
    return sizes


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("max_shard_bytes", [5e9, 4000])
def test_round_trip(name: str, max_shard_bytes: float, tmp_path: Path) -> None:
    model = tiny(**FAMILIES[name])
    params = random_params(model)
    hf.save(tmp_path / "one", model, params, max_shard_bytes)
    loaded, again = hf.load(tmp_path / "one")
    assert loaded == model
    assert_same_tree(again, params)
    files = sorted((tmp_path / "one").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes < 5e9)
    if len(files) > 1:
        held = {file.name: load_file(file) for file in files}
        index = json.loads((tmp_path / "one" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
        sizes = {file: sum(t.nbytes for t in tensors.values()) for file, tensors in held.items()}
        assert index["metadata"]["total_size"] == sum(sizes.values())
        assert all(size <= max_shard_bytes or len(held[file]) == 1 for file, size in sizes.items())


def test_names_and_layouts_of_experts(tmp_path: Path) -> None:
    """Against the definitions: expert e's rows are its hidden units, w1 gates, w3 goes up, w2 comes down."""
    _, params = saved("mixtral", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    ffn, home = params["layer_1"]["ffn"], "model.layers.1.block_sparse_moe"
    for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        np.testing.assert_array_equal(tensors[f"{home}.experts.3.{theirs}.weight"], np.asarray(ffn[ours][3]).T)
    np.testing.assert_array_equal(tensors[f"{home}.gate.weight"], np.asarray(ffn["router"]).T)


def test_names_and_layouts_of_deepseek(tmp_path: Path) -> None:
    _, params = saved(PAIR, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    mixer = params["layer_0"]["mixer"]
    expanded = np.concatenate([np.asarray(mixer["kv_up"][:, head]).T for head in range(4)])
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.kv_b_proj.weight"], expanded)
    bias = tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    np.testing.assert_array_equal(bias, np.asarray(params["state"]["layer_1"]["ffn"]["bias"]))
    module = params["mtp_1"]
    last = "model.layers.3."
    np.testing.assert_array_equal(tensors[last + "eh_proj.weight"], np.asarray(module["proj"]).T)
    np.testing.assert_array_equal(tensors[last + "shared_head.norm.weight"], np.asarray(module["norm"]["scale"]))
    np.testing.assert_array_equal(
        tensors[last + "mlp.experts.7.up_proj.weight"], np.asarray(module["block"]["ffn"]["up"][7]).T
    )
    np.testing.assert_array_equal(tensors[last + "embed_tokens.weight"], np.asarray(params["embed"]))
    np.testing.assert_array_equal(tensors[last + "shared_head.head.weight"], np.asarray(params["head"]))


def test_one_missing_and_one_surplus_expert(tmp_path: Path) -> None:
    saved("qwen3_moe", tmp_path / "out")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.experts.4.up_proj.weight"] = tensors.pop(
            "model.layers.0.mlp.experts.2.up_proj.weight"
        )

    with pytest.raises(ValueError, match="do not fit") as error:
        hf.load(tamper(tmp_path / "out", change))
    assert "missing: model.layers.0.mlp.experts.2.up_proj.weight" in str(error.value)
    assert "left over: model.layers.0.mlp.experts.4.up_proj.weight" in str(error.value)


def test_wrong_shape_of_one_expert(tmp_path: Path) -> None:
    saved("mixtral", tmp_path / "out")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    folder = tamper(tmp_path / "out", lambda tensors: tensors.update({name: np.ones((32, 47), np.float32)}))
    with pytest.raises(ValueError, match=r"experts\.3\.w2\.weight has shape \(32, 47\).*\(32, 48\)"):
        hf.load(folder)


@pytest.mark.parametrize(
    "name, change",
    [("mixtral", {"moe": {"n_shared": 1}}), ("qwen3_moe", {"mtp": {"depth": 1}}), ("qwen3_moe", {"mixer": "mla"})],
)
def test_what_a_family_has_no_tensor_for(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**FAMILIES[name] | {"qk_norm": False} | change)
    with pytest.raises(ValueError, match=r"has no tensor for .*; family='sagax' has"):
        hf.save(tmp_path / "out", model, random_params(model))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", PAIR])
def test_a_device_reads_its_own_experts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, laid out as the model asks; every element of the files is read once, and at most one expert's
    shard at a time.
    """
    _, params = saved(name, tmp_path / "out")
    mesh = make_mesh({"expert": 4, "fsdp": 2})
    sizes = recorded_reads(monkeypatch)
    model, loaded = hf.load(tmp_path / "out", mesh)
    assert_same_tree(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.shardings(mesh)
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params))
    up = loaded["layer_1"]["ffn"]["up"]
    assert {shard.data.shape[0] for shard in up.addressable_shards} == {up.shape[0] // 4}
    one = up.size // up.shape[0] // 2
    assert sizes.count(one) >= 3 * up.shape[0]


def test_sharded_experts_are_saved_whole(tmp_path: Path) -> None:
    model = tiny(**FAMILIES[PAIR])
    params = random_params(model)
    sharded = jax.device_put(params, model.shardings(make_mesh({"expert": 4, "tensor": 2})))
    hf.save(tmp_path / "out", model, sharded)
    assert_same_tree(hf.load(tmp_path / "out")[1], params)


@pytest.mark.parametrize("axes", [None, {"expert": 4, "fsdp": 2}])
def test_experts_are_never_held_twice(
    axes: dict[str, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what a device gets of a layer's experts, only one of them is in memory while it is read and cast."""
    wide = {"n_experts": 32, "d_expert": 256}
    model = tiny(**FAMILIES["qwen3_moe"] | {"moe": wide, "n_layers": 1})
    params = random_params(model)
    hf.save(tmp_path / "out", model, params)
    place, peaks = loading._place, []

    def measured(read: Any, *rest: Any) -> jax.Array:
        def reading(part: Any) -> np.ndarray:
            tracemalloc.start()
            block = read(part)
            peaks.append((block.nbytes, tracemalloc.get_traced_memory()[1]))
            tracemalloc.stop()
            return block

        return place(reading, *rest)

    monkeypatch.setattr(loading, "_place", measured)
    hf.load(tmp_path / "out", make_mesh(axes) if axes else None, dtype="bfloat16")
    stack = 32 * 256 * 32 * 2 // (8 if axes else 1)
    found = [peak for size, peak in peaks if size == stack]
    print(f"peaks {found} for {stack} bytes")
    assert len(found) == 3 * (8 if axes else 1) and max(found) < 1.5 * stack


def test_what_is_learnt_by_rule_stays_float32(tmp_path: Path) -> None:
    _, params = saved(PAIR, tmp_path / "out", param_dtype="bfloat16")
    bias = params["state"]["layer_1"]["ffn"]["bias"]
    assert bias.dtype == jnp.float32
    loaded, again = hf.load(tmp_path / "out")
    assert loaded.config.param_dtype == "bfloat16"
    assert_same_tree(again, params)
    _, wide = hf.load(tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(wide["state"]["layer_1"]["ffn"]["bias"], bias)


def drop(*endings: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(MODULE) and name.endswith(endings or ("",))]:
            del tensors[name]

    return change


def test_promised_modules_that_no_file_has(tmp_path: Path) -> None:
    """As transformers writes DeepSeek-V3: the model loads without them, and says so."""
    model, params = saved("deepseek_v3", tmp_path / "out")
    folder = tamper(tmp_path / "out", lambda tensors: None, num_nextn_predict_layers=1)
    with pytest.warns(UserWarning, match=r"promises 1 multi-token prediction layer.*loaded with mtp\.depth=0"):
        loaded, again = hf.load(folder)
    assert loaded == model
    assert_same_tree(again, params)


@pytest.mark.parametrize("promised, dropped, held", [(3, (), 2), (2, ("model.layers.3.",), 1), (1, ("",), 0)])
def test_fewer_modules_than_promised(promised: int, dropped: tuple[str, ...], held: int, tmp_path: Path) -> None:
    """Whole modules that are missing are told; those that are there are read."""
    _, params = saved(PAIR, tmp_path / "out")

    def change(tensors: dict[str, np.ndarray]) -> None:
        ahead = [name for name in tensors if name.startswith(("model.layers.2.", "model.layers.3."))]
        for name in (name for name in ahead if name.startswith(dropped)):
            del tensors[name]

    folder = tamper(tmp_path / "out", change, num_nextn_predict_layers=promised)
    with pytest.warns(UserWarning, match=rf"promises {promised} .*the files hold {held or 'none'}.*depth={held}$"):
        model, loaded = hf.load(folder)
        assert hf.describe(folder) == model
    assert model.config.mtp.depth == held
    assert_same_tree(loaded, without_modules(params, held))


@pytest.mark.parametrize("name", [PAIR, "our own"])
def test_modules_may_be_left_in_the_files(name: str, tmp_path: Path) -> None:
    model, params = saved(name, tmp_path / "out")
    for kept in range(model.config.mtp.depth + 1):
        loaded, some = hf.load(tmp_path / "out", mtp=kept)
        assert loaded.config.mtp.depth == kept
        assert_same_tree(some, without_modules(params, kept))
    with pytest.raises(ValueError, match=r"mtp=3 modules .* the files hold"):
        hf.load(tmp_path / "out", mtp=3)


def test_what_is_left_in_the_files_may_be_broken_but_nothing_else(tmp_path: Path) -> None:
    saved("deepseek_v3, tied", tmp_path / "out")
    folder = tamper(tmp_path / "out", drop("eh_proj.weight"))
    assert hf.load(folder, mtp=0)[0].config.mtp.depth == 0
    model, _ = saved("deepseek_v3", tmp_path / "more", n_layers=3)
    folder = tamper(tmp_path / "more", lambda tensors: None, num_hidden_layers=2)
    assert model.config.mtp.depth == 0
    with pytest.raises(ValueError, match=r"left over: model\.layers\.2"):
        hf.load(folder, mtp=0)


def test_part_of_a_module_is_missing(tmp_path: Path) -> None:
    saved("deepseek_v3, tied", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"missing: model\.layers\.2\.eh_proj\.weight, model\.layers\.2\.enorm\.weight$"
    ):
        hf.load(tamper(tmp_path / "out", drop("eh_proj.weight", "enorm.weight")))


def test_modules_the_config_does_not_promise(tmp_path: Path) -> None:
    saved(PAIR, tmp_path / "out")
    folder = tamper(tmp_path / "out", lambda tensors: None, num_nextn_predict_layers=1)
    with pytest.raises(ValueError, match=r"left over: model\.layers\.3\.e"):
        hf.load(folder)


@pytest.mark.parametrize("copy", ["embed_tokens.weight", "shared_head.head.weight"])
@pytest.mark.parametrize("name", [PAIR, "deepseek_v3, tied"])
def test_copies_of_the_shared_embeddings(name: str, copy: str, tmp_path: Path) -> None:
    """They may be left out, but not differ."""
    _, params = saved(name, tmp_path / "out")

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[MODULE + copy] = tensors[MODULE + copy] + np.eye(64, 32, dtype=np.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_tree(hf.load(tmp_path / "out")[1], params)
        with pytest.raises(ValueError, match=rf"layers\.2\.{copy} differs from .*weight, which it must repeat"):
            hf.load(tamper(tmp_path / "out", spoil))
        assert_same_tree(hf.load(tamper(tmp_path / "out", drop(copy)))[1], params)


def test_names_and_layouts_of_columns_in_turn(tmp_path: Path) -> None:
    """gpt-oss: of the columns of all experts in one tensor, the even ones gate and the odd ones go up."""
    _, params = saved("gpt_oss", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    ffn, home = params["layer_1"]["ffn"], "model.layers.1.mlp.experts"
    for start, name in enumerate(("gate", "up")):
        np.testing.assert_array_equal(tensors[f"{home}.gate_up_proj"][:, :, start::2], np.asarray(ffn[name]))
        np.testing.assert_array_equal(
            tensors[f"{home}.gate_up_proj_bias"][:, start::2], np.asarray(ffn[f"{name}_bias"])
        )
    np.testing.assert_array_equal(tensors[f"{home}.down_proj"], np.asarray(ffn["down"]))


def test_names_and_layouts_of_delta_layers(tmp_path: Path) -> None:
    """Rows of a key head lie together: query, key, values and gates of 2 x 6 each; a query beside its gate."""
    _, params = saved("qwen3_next", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    delta, attention = params["layer_0"]["mixer"], params["layer_1"]["mixer"]
    rows = tensors["model.layers.0.linear_attn.in_proj_qkvz.weight"].reshape(2, 8 + 8 + 12 + 12, 32)
    np.testing.assert_array_equal(rows[1], np.asarray(delta["qkvz"][:, 1]).T)
    kernel = tensors["model.layers.0.linear_attn.conv1d.weight"]
    assert kernel.shape == (2 * 8 + 2 * 8 + 4 * 6, 1, 4)
    np.testing.assert_array_equal(kernel[:, 0], np.asarray(delta["conv"]).T)
    rows = tensors["model.layers.1.self_attn.q_proj.weight"].reshape(4, 2, 8, 32)
    for start, name in enumerate(("q", "gate")):
        np.testing.assert_array_equal(rows[3, start], np.asarray(attention[name][:, 3]).T)


def test_modules_that_stay_in_the_files_are_told(tmp_path: Path) -> None:
    _, params = saved("qwen3_next", tmp_path / "out")
    more = {"mtp.fc.weight": np.ones((32, 64), np.float32), "mtp.norm.weight": np.ones(32, np.float32)}
    folder = tamper(tmp_path / "out", lambda tensors: tensors.update(more))
    with pytest.warns(UserWarning, match=r"weights that stay in the files, unread: mtp.fc.weight, mtp.norm.weight"):
        assert_same_tree(hf.load(folder)[1], params)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_next"])
def test_a_device_reads_what_it_has_of_fused_tensors(name: str, tmp_path: Path) -> None:
    _, params = saved(name, tmp_path / "out")
    mesh = make_mesh({"expert": 2, "tensor": 2, "fsdp": 2})
    model, loaded = hf.load(tmp_path / "out", mesh)
    assert_same_tree(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.shardings(mesh)
