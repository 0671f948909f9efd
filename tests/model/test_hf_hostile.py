"""Folders that lie: files that are not what they are called, sizes that no file has, paths that lead outside."""

from __future__ import annotations

import json
import math
import shutil
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import ModelConfig, hf
from model.hf.sizes import CHUNK, all_finite
from tests.model.common import random_params, tiny
from tests.model.experts import saved, tamper
from tests.model.test_hf_weights import FOLDER, assert_same_tree, tampered

INDEX = "model.safetensors.index.json"


def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


def sharded(tmp_path: Path) -> Path:
    model = tiny(family="llama")
    hf.save(tmp_path / "sharded", model, random_params(model), max_shard_bytes=20_000)
    return tmp_path / "sharded"


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    _, expected = hf.load(folder)
    for name in ("config.json", INDEX):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert_same_tree(hf.load(folder)[1], expected)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b"3", b'"text"', b"", b'{"model_type": "llam', b"\xff\xfe{}", b"[" * 100_000],
    ids=["list", "empty object", "null", "number", "text", "nothing", "cut off", "not UTF-8", "deep"],
)
def test_json_that_is_none_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"sharded/{name}\b"):
        hf.load(folder)


@pytest.mark.parametrize("weight_map", [[], "model.safetensors", {}, {"a": 3}, {"a": None}, {"a": ["x"]}])
def test_an_index_without_a_map_is_named(weight_map: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"index\.json must hold an object .weight_map."):
        hf.load(folder)


@pytest.mark.parametrize("where", ["../secret.safetensors", "{}/secret.safetensors", "a/../../secret.safetensors"])
def test_an_index_cannot_lead_outside(where: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    secret = tmp_path / "secret.safetensors"
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], secret)

    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["model.norm.weight"] = where.format(tmp_path)

    rewrite(folder / INDEX, change)
    for read in (hf.load, hf.describe):
        with pytest.raises(ValueError, match=r"index\.json names files outside its folder: '.*secret"):
            read(folder)


@pytest.mark.parametrize("where", ["..\\x.safetensors", "C:\\x.safetensors", "\\\\host\\x", "..", ".", ""])
def test_paths_of_other_systems_lead_outside_too(where: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    rewrite(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": where}))
    with pytest.raises(ValueError, match="names files outside its folder"):
        hf.load(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """snapshots/x/file -> ../../blobs/sum, as huggingface_hub lays its cache out."""
    folder, blobs, snapshot = sharded(tmp_path), tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "x"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(i))
    assert_same_tree(hf.load(snapshot)[1], hf.load(folder)[1])


ABSURD: list[Any] = [-1, 0, 2.0, True, "64", [64], math.inf, 10**18]


@pytest.mark.parametrize("value", ABSURD, ids=str)
@pytest.mark.parametrize(
    "key", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
)
def test_absurd_sizes_name_file_key_and_value(key: str, value: Any, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    rewrite(folder / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(ValueError, match=rf"copy/config\.json: .*{key}="):
        hf.load(folder)


@pytest.mark.parametrize(
    "key", ["n_routed_experts", "num_experts_per_tok", "n_group", "qk_rope_head_dim", "q_lora_rank"]
)
@pytest.mark.parametrize("value", [-1, 1.5, True, "8", 10**12])
def test_absurd_sizes_of_experts(key: str, value: Any, tmp_path: Path) -> None:
    saved("deepseek_v3", tmp_path / "out")
    with pytest.raises(ValueError, match=rf"out/config\.json: .*{key}="):
        hf.load(tamper(tmp_path / "out", lambda tensors: None, **{key: value}))


@pytest.mark.parametrize(
    "family, key, message",
    [
        ("deepseek_v3", "num_hidden_layers", "the files hold tensors of 2 layers"),
        ("mixtral", "num_hidden_layers", "the files hold tensors of 2 layers"),
        ("mixtral", "num_local_experts", "the files hold tensors of 4 experts"),
        ("deepseek_v3", "n_routed_experts", "the files hold tensors of 8 experts"),
        ("our own", "n_layers", "the files hold tensors of 2 layers"),
        ("mixtral", "hidden_size", "no axis of any tensor is longer than 64"),
        ("mixtral", "vocab_size", "no axis of any tensor is longer than 64"),
        ("mixtral", "head_dim", "no axis of any tensor is longer than 64"),
        ("deepseek_v3", "qk_nope_head_dim", "no axis of any tensor is longer than 80"),
        ("qwen3_next", "linear_num_key_heads", "no axis of any tensor is longer than 80"),
        ("qwen3_next", "linear_value_head_dim", "no axis of any tensor is longer than 80"),
        ("gpt_oss", "num_local_experts", "has shape|expected an integer from 1 to 65536"),
        ("mixtral", "intermediate_size", "has shape"),
        ("mixtral", "max_position_embeddings", ""),
    ],
)
@pytest.mark.parametrize("value", [2_000, 2**31 - 16])
def test_sizes_are_compared_with_the_files_first(
    family: str, key: str, message: str, value: int, tmp_path: Path
) -> None:
    saved(family, tmp_path / "out")
    folder = tamper(tmp_path / "out", lambda tensors: None, **{key: value})
    started = time.perf_counter()
    if message:
        with pytest.raises(ValueError, match=message) as error:
            hf.load(folder)
        assert len(str(error.value)) < 1_000
    else:
        assert hf.load(folder)[0].config.max_length == value
    assert time.perf_counter() - started < 10


def test_lists_in_messages_are_cut(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {f"model.layers.{i}.mlp.extra.weight": np.zeros(1, np.float32) for i in range(500)}

    with pytest.raises(ValueError, match=r"left over: .* and 488 more$") as error:
        hf.load(tampered(tmp_path, change))
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("value", [-1, 10**13, "abc", [1, -1], [1, "2"], True, 1.5, {"id": 1}], ids=str)
def test_an_end_id_that_is_none(value: Any, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    rewrite(folder / "config.json", lambda config: config.update(eos_token_id=value))
    with pytest.raises(ValueError, match=r"copy/config\.json: .*eos_token_id=.*expected an integer from 0"):
        hf.load(folder)


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "rms_norm_eps", "rope_theta", "hidden_act"])
def test_other_values_of_the_wrong_kind(key: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    rewrite(folder / "config.json", lambda config: config.update({key: [1]}))
    with pytest.raises(ValueError, match=rf"copy/config\.json: llama: {key}=\[1\], expected"):
        hf.load(folder)


def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the header of a safetensors file and leaves its data as they are."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    values = json.loads(raw[8 : 8 + length])
    change(values)
    text = json.dumps(values).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


NORM = "model.norm.weight"
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "beyond the end": lambda h: h[NORM].update(data_offsets=[10**9, 10**9 + 128]),
    "backwards": lambda h: h[NORM].update(data_offsets=h[NORM]["data_offsets"][::-1]),
    "negative": lambda h: h[NORM].update(data_offsets=[-128, 0]),
    "overlapping": lambda h: h[NORM].update(data_offsets=h["model.embed_tokens.weight"]["data_offsets"]),
    "huge": lambda h: h[NORM].update(shape=[2**62, 2**62]),
    "larger than its bytes": lambda h: h[NORM].update(shape=[64]),
    "unknown dtype": lambda h: h[NORM].update(dtype="F7"),
    "no offsets": lambda h: h[NORM].pop("data_offsets"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_named(lie: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    header(folder / "model.safetensors", LIES[lie])
    for read in (hf.load, hf.describe):
        with pytest.raises(ValueError, match=r"copy/model\.safetensors is no whole safetensors file"):
            read(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 8, b"\xff" * 16, struct.pack("<Q", 2) + b"[]"])
def test_files_that_are_no_safetensors_are_named(content: bytes, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"copy/model\.safetensors is no whole safetensors file"):
        hf.load(folder)


def test_a_download_that_was_cut_off_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{victim.name} is no whole safetensors file"):
        hf.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_told(dtype: str, value: float, tmp_path: Path) -> None:
    saved("mixtral", tmp_path / "out", param_dtype=dtype)
    names = ["model.layers.1.block_sparse_moe.experts.2.w3.weight", "model.layers.0.self_attn.q_proj.weight"]

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        for name in names:
            tensors[name] = tensors[name].copy()
            tensors[name].reshape(-1)[-1] = value

    folder = tamper(tmp_path / "out", spoil)
    with pytest.warns(UserWarning, match="has NaN or infinite values in ") as told:
        hf.load(folder)
    [text] = [str(one.message) for one in told if "NaN" in str(one.message)]
    assert all(name in text for name in names) and text.count("weight") == 2
    with pytest.warns(UserWarning, match="has NaN or infinite values in "):
        hf.load(folder, dtype="float32")


def test_a_cast_that_overflows_is_told(tmp_path: Path) -> None:
    folder = tampered(tmp_path, lambda tensors: tensors.update({NORM: np.full(32, 1e30, np.float32)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.load(folder)
    with pytest.warns(UserWarning, match=rf"infinite values in {NORM}"):
        hf.load(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_finite_in_every_layout(dtype: Any) -> None:
    largest = float(jnp.finfo(dtype).max)
    block = np.full((3, CHUNK // 2 + 1), largest, dtype)
    block[0, 0], block[1, 0], block[2, 0] = -largest, 0.0, jnp.finfo(dtype).tiny
    assert all_finite(block) and all_finite(block.T) and all_finite(block[:, 1:]) and all_finite(block[:0])
    block[2, -1] = math.nan
    assert not all_finite(block) and not all_finite(block.T) and not all_finite(block[:, 1:])
    assert all_finite(block[:, :-1])


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "only a config"])
def test_what_is_no_folder_says_what_one_holds(kind: str, tmp_path: Path) -> None:
    at = tmp_path / "at"
    if kind == "file":
        at.write_text("")
    elif kind != "missing":
        at.mkdir()
    if kind == "only a config":
        shutil.copy(FOLDER / "config.json", at)
    words = {
        "missing": "there is no folder .*at .*expected a folder with config.json and model.safetensors",
        "file": "at is a file: .*expected a folder with config.json and model.safetensors",
        "empty": "expected a folder with config.json and model.safetensors .*, found nothing in it",
        "only a config": "lacks model.safetensors; found config.json",
    }
    with pytest.raises(FileNotFoundError, match=words[kind]):
        hf.load(at)


def test_a_run_directory_says_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "sft", "model": {}}))
    with pytest.raises(ValueError, match=r"config\.json is a training run's: infer\.load\.load_run reads"):
        hf.load(tmp_path)


def test_a_config_alone_is_described(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "config.json", tmp_path)
    assert hf.describe(tmp_path).config == ModelConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))
    tensors = load_file(FOLDER / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert hf.describe(tmp_path) == hf.load(tmp_path)[0]
