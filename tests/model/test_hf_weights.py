"""hf.load and hf.save: round trips, shards, dtypes, errors, and how much is held at once."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import Model, build, hf
from model.hf import loading, saving
from model.sharding import make_mesh
from tests.model.common import TINY, random_params, tiny

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "tiny_llama"
GPT2 = {
    "family": "gpt2",
    "ffn": "mlp",
    "norm_type": "layernorm",
    "norm_eps": 1e-5,
    "activation": "gelu_tanh",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "positions": "learned",
    "n_kv_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "tied": False},
    "llama with biases": {"family": "llama", "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "mistral": {"family": "mistral", "window": 5, "tied": False},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "window": (None, 4)},
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 16},
    "gemma3_text": {
        "family": "gemma3_text",
        "norm": "peri",
        "norm_plus_one": True,
        "qk_norm": True,
        "query_scalar": 9,
        "activation": "gelu_tanh",
        "embed_scale": 32**0.5,
        "window": (4, None),
        "rope": {"theta": 1e6, "local_theta": 1e4},
    },
    "gpt2": GPT2,
    "gpt2 untied": GPT2 | {"tied": False},
    "our own": {"norm": "sandwich", "norm_type": "layernorm", "ffn": ("glu", "mlp"), "embed_scale": 3.0},
}


def assert_same_tree(got: Any, want: Any) -> None:
    """The same structure, and the same bits in every leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def tampered(tmp_path: Path, change: Any, config: dict[str, Any] | None = None) -> Path:
    """A copy of the committed folder whose tensors went through `change`."""
    folder = tmp_path / "tampered"
    shutil.copytree(FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("max_shard_bytes", [5e9, 10_000])
def test_round_trip(name: str, max_shard_bytes: float, tmp_path: Path) -> None:
    model = tiny(**FAMILIES[name])
    params = random_params(model)
    hf.save(tmp_path / "one", model, params, max_shard_bytes)
    loaded, again = hf.load(tmp_path / "one")
    assert loaded == model
    assert_same_tree(again, params)
    hf.save(tmp_path / "two", loaded, again, max_shard_bytes)
    first, second = (sorted((tmp_path / side).iterdir()) for side in ("one", "two"))
    assert [f.name for f in first] == [f.name for f in second]
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    assert (len(first) > 2) == (max_shard_bytes < 5e9)


def test_index_lists_every_tensor_and_the_true_size(tmp_path: Path) -> None:
    model = tiny(**FAMILIES["qwen2"])
    params = random_params(model)
    hf.save(tmp_path / "out", model, params, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in (tmp_path / "out").glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert index["metadata"]["total_size"] == total
    for tensors in held.values():
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_dtype_is_kept_or_cast(stored: str, tmp_path: Path) -> None:
    model = tiny(family="llama", param_dtype=stored)
    params = random_params(model)
    hf.save(tmp_path / "out", model, params)
    loaded, kept = hf.load(tmp_path / "out")
    assert loaded.config.param_dtype == stored
    assert_same_tree(kept, params)
    for wanted in (jnp.float32, "bfloat16"):
        cast_model, cast = hf.load(tmp_path / "out", dtype=wanted)
        assert cast_model.config.param_dtype == jnp.dtype(wanted).name
        assert_same_tree(cast, jax.tree.map(lambda x, to=wanted: x.astype(to), params))


def mixed(tmp_path: Path, norms: str, others: str, **config: Any) -> Path:
    """A copy of the committed folder whose norms are of one dtype and whose other tensors are of another."""

    def cast(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {name: t.astype(jnp.dtype(norms if "norm" in name else others)) for name, t in tensors.items()}

    return tampered(tmp_path, cast, {"torch_dtype": None} | config)


@pytest.mark.parametrize(
    "norms, others, config, chosen",
    [
        ("float32", "bfloat16", {"torch_dtype": "bfloat16"}, "bfloat16"),
        ("float32", "bfloat16", {"dtype": "bfloat16"}, "bfloat16"),
        ("float32", "bfloat16", {"torch_dtype": "torch.float16"}, "float16"),
        ("float32", "bfloat16", {}, "float32"),
        ("bfloat16", "float16", {}, "float32"),
        ("float16", "bfloat16", {"dtype": "float16"}, "float16"),
        ("float16", "float32", {}, "float32"),
    ],
)
def test_mixed_dtypes_become_one(norms: str, others: str, config: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    folder = mixed(tmp_path, norms, others, **config)
    with pytest.warns(UserWarning, match=f"the files hold .*: stored as {chosen}, .*; dtype= chooses another"):
        model, params = hf.load(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {model.config.param_dtype} == {chosen}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(hf.load(folder, dtype="float16")[1])} == {"float16"}


def test_one_dtype_stays_whatever_the_config_says(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, params = hf.load(mixed(tmp_path, "bfloat16", "bfloat16", torch_dtype="float32"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {model.config.param_dtype} == {"bfloat16"}


def test_integers_are_no_weights(tmp_path: Path) -> None:
    def count(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int64)

    with pytest.raises(ValueError, match=r"unsupported dtype I64 of model\.norm\.weight"):
        hf.load(tampered(tmp_path, count))


def test_unsupported_dtypes_raise(tmp_path: Path) -> None:
    def widen(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float64)

    with pytest.raises(ValueError, match=r"unsupported dtype F64 of lm_head\.weight"):
        hf.load(tampered(tmp_path, widen))
    with pytest.raises(ValueError, match="unknown dtype 'float64'"):
        hf.load(FOLDER, dtype=np.float64)


def test_missing_and_left_over_tensors_are_listed(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.7.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
        tensors["surprise"] = np.zeros(3, np.float32)

    with pytest.raises(ValueError, match="do not fit") as error:
        hf.load(tampered(tmp_path, change))
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(error.value)
    assert "left over: model.layers.7.mlp.up_proj.weight, surprise" in str(error.value)


def test_a_bias_the_config_denies_is_left_over(tmp_path: Path) -> None:
    folder = tampered(tmp_path, lambda tensors: None, {"attention_bias": False})
    with pytest.raises(ValueError, match=r"left over: .*k_proj\.bias"):
        hf.load(folder)


def test_wrong_shape_gives_both(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] = np.ones(31, np.float32)

    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(31,\).*\(32,\)"):
        hf.load(tampered(tmp_path, change))


def test_known_buffers_are_ignored(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    assert_same_tree(hf.load(tampered(tmp_path, change))[1], hf.load(FOLDER)[1])


@pytest.mark.parametrize("copies", [True, False])
def test_tied_head_in_the_file_must_be_the_embedding(copies: bool, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        embed = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embed.copy() if copies else embed + 1

    folder = tampered(tmp_path, change, {"tie_word_embeddings": True})
    if copies:
        model, params = hf.load(folder)
        assert model.config.tied and "head" not in params
    else:
        with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
            hf.load(folder)


def test_gpt2_releases_without_prefix_and_with_masks(tmp_path: Path) -> None:
    model = tiny(**GPT2)
    params = random_params(model)
    hf.save(tmp_path / "out", model, params)
    file = tmp_path / "out" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    tensors["h.1.attn.masked_bias"] = np.ones((), np.float32)
    save_file(tensors, file)
    assert_same_tree(hf.load(tmp_path / "out")[1], params)


def test_missing_files_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; expected a folder"):
        hf.load(tmp_path / "nowhere")
    shutil.copy(FOLDER / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors; found config\.json"):
        hf.load(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    model = tiny(family="llama")
    hf.save(tmp_path / "out", model, random_params(model), max_shard_bytes=20_000)
    victim = sorted((tmp_path / "out").glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=victim.name):
        hf.load(tmp_path / "out")


def test_saving_never_overwrites_a_model(tmp_path: Path) -> None:
    model = tiny(family="llama")
    params = random_params(model)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    hf.save(folder, model, params)
    assert (folder / "tokenizer.json").read_text() == "{}"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"already holds config\.json, model\.safetensors"):
        hf.save(folder, model, random_params(model, seed=1))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    model = tiny(family="llama")
    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        hf.save(tmp_path / "out", model, random_params(model))
    assert list(tmp_path.iterdir()) == []


def test_saved_files_follow_the_umask(tmp_path: Path) -> None:
    model = tiny(family="llama")
    hf.save(tmp_path / "out", model, random_params(model))
    (tmp_path / "plain").write_text("")
    expected = (tmp_path / "plain").stat().st_mode & 0o777
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {expected}


def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    model = tiny(family="llama")
    params = random_params(model)
    cases: list[tuple[Any, str]] = [
        ({**params, "extra": jnp.ones(3)}, "left over: .'extra'"),
        ({k: v for k, v in params.items() if k != "embed"}, "missing: .'embed'"),
        ({**params, "embed": jnp.ones((3, 4))}, r"embed has shape \(3, 4\).*\(64, 32\)"),
        ({**params, "embed": params["embed"].astype(jnp.bfloat16)}, "mix bfloat16, float32"),
    ]
    for broken, message in cases:
        with pytest.raises(ValueError, match=message):
            hf.save(tmp_path / "out", model, broken)
    with pytest.raises(ValueError, match="max_shard_bytes must be positive"):
        hf.save(tmp_path / "out", model, params, max_shard_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_family_must_be_able_to_say_it(tmp_path: Path) -> None:
    model = tiny(family="llama", norm="sandwich")
    with pytest.raises(ValueError, match=r"norm='sandwich'|no tensor for layer_0"):
        hf.save(tmp_path / "out", model, random_params(model))


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every block that a load takes from a file."""
    blocks: list[np.ndarray] = []
    read = loading.read_part

    def record(*arguments: Any) -> np.ndarray:
        blocks.append(read(*arguments))
        return blocks[-1]

    monkeypatch.setattr(loading, "read_part", record)
    return blocks


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2 untied"])
def test_load_onto_a_mesh(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, laid out as the model asks, and each element read from the file once, a shard at a time."""
    model = tiny(**FAMILIES[name])
    params = random_params(model)
    hf.save(tmp_path / "out", model, params)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    blocks = recorded_reads(monkeypatch)
    _, loaded = hf.load(tmp_path / "out", mesh)
    assert_same_tree(loaded, params)
    placed = jax.tree.map(lambda leaf: leaf.sharding, loaded)
    assert placed == model.shardings(mesh)
    assert sum(block.size for block in blocks) == sum(leaf.size for leaf in jax.tree.leaves(params))
    embed = params["embed"]
    assert max(block.size for block in blocks) == max(embed.size // 4, loaded["layer_0"]["ffn"]["up"].size // 4)


def test_loading_holds_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mesh nothing larger than a tensor is read, and none is read twice."""
    blocks = recorded_reads(monkeypatch)
    _, params = hf.load(FOLDER)
    leaves = jax.tree.leaves(params)
    assert sorted(block.size for block in blocks) == sorted(leaf.size for leaf in leaves)


def test_uneven_split_raises_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = recorded_reads(monkeypatch)
    with pytest.raises(ValueError, match="'kv_heads' of size 2 cannot be split evenly"):
        hf.load(FOLDER, make_mesh({"fsdp": 2, "tensor": 4}))
    assert not blocks


def test_sharded_parameters_are_saved_whole(tmp_path: Path) -> None:
    model = tiny(**FAMILIES["qwen2"])
    params = random_params(model)
    sharded = jax.device_put(params, model.shardings(make_mesh({"fsdp": 4, "tensor": 2})))
    hf.save(tmp_path / "out", model, sharded)
    assert_same_tree(hf.load(tmp_path / "out")[1], params)


def test_build_from_a_saved_config_gives_the_same_model(tmp_path: Path) -> None:
    model: Model = build(TINY | {"family": "qwen3", "qk_norm": True})
    hf.save(tmp_path / "out", model, random_params(model))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert build(type(model.config).from_hf(values)) == model
