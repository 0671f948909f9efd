"""Where a run begins: a stack made recurrent by surgery, then deeper stage by stage; modules that predict ahead."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.tokenizers.build import load_tokenizer
from infer.load import load_run, open_origin, without_modules
from launch.programs import model_of
from model import hf
from model.sharding import make_mesh
from store.records import read_metrics
from tests.model.experts import PAIR, assert_same_tree, saved, tamper
from tests.tiny_config import get_config
from train.initial import make_model, make_tokenizer
from train.loop import run
from train.setup import make_task

pytestmark = pytest.mark.filterwarnings("ignore:config.json promises")
SURGERY = {"prelude": 0, "core": 1, "coda": 1, "mean": 2, "start": "zero", "readout": "none", "draw": "poisson"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a plain stack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        folder = tmp_path_factory.mktemp("run") / "stack"
        run(changed(get_config("sft"), steps=2, model__n_layers=2), folder)
        return folder


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def recurrent(origin: Path, **more: Any) -> ConfigDict:
    asked = {f"model__recurrent__{name}": value for name, value in SURGERY.items()}
    asked |= {"model__depth": "recurrent", "model__n_layers": 2}
    return changed(get_config("sft"), init_from=str(origin), steps=2, **(asked | more))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of DeepSeek-V3: `none` promises one module of multi-token prediction that no file has, as transformers
    saves it; `two` holds two, `part` lacks a tensor of its one.
    """
    root = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer(get_config("sft"), make_task(get_config("sft")), root / "nowhere")
    sizes = {"vocab_size": tokenizer.vocab_size, "max_length": 64}
    saved("deepseek_v3", root / "none", **sizes)
    tamper(root / "none", lambda tensors: None, num_nextn_predict_layers=1)
    saved(PAIR, root / "two", **sizes)
    saved("deepseek_v3, tied", root / "part", **sizes)
    tamper(root / "part", lambda tensors: tensors.__delitem__("model.layers.2.enorm.weight"))
    for name in ("none", "two", "part"):
        tokenizer.save(root / name)
    return root


def from_hub(folder: Path, depth: int | None) -> ConfigDict:
    config = changed(get_config("sft"), init_from=str(folder), model__mtp__depth=depth)
    config.model.update(d_model=0, n_layers=0, n_heads=0, d_ff=0, max_length=2048, init_std=0.02)
    return config


@pytest.mark.parametrize(
    ("name", "asked", "built"),
    [("none", None, 0), ("none", 0, 0), ("none", 2, 2), ("two", None, 2), ("two", 0, 0), ("two", 1, 1), ("two", 3, 3)],
)
def test_modules_that_predict_ahead(name: str, asked: int | None, built: int, hub: Path) -> None:
    """As many as the files hold where none are asked for; those asked for beyond the files' are drawn anew."""
    config = from_hub(hub / name, asked)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, make_params = make_model(config, load_tokenizer(hub / name), None)
        params = make_params()
    assert any("loaded with mtp.depth=0" in str(one.message) for one in told) == (name == "none")
    assert model.config.mtp.depth == built
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.abstract())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes
    found = hf.load(hub / name)[1]
    kept = sum(f"mtp_{k}" in found for k in range(built))
    assert_same_tree(without_modules(params, kept), without_modules(found, kept))


@pytest.mark.more
def test_fresh_modules_on_a_mesh_are_laid_out(hub: Path) -> None:
    mesh = make_mesh({"data": 2, "expert": 4})
    model, make_params = make_model(from_hub(hub / "two", 3), open_origin(hub / "two").tokenizer(), mesh)
    params, alone = make_params(), make_model(from_hub(hub / "two", 3), open_origin(hub / "two").tokenizer(), None)[1]()
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == model.shardings(mesh)
    assert_same_tree(params, alone)


def test_a_plan_counts_modules_like_the_run(hub: Path) -> None:
    mesh = make_mesh({"data": 8})
    found = [
        model_of(from_hub(hub / name, depth), mesh).config.mtp.depth for name, depth in (("none", None), ("two", 1))
    ]
    assert found == [0, 1]


def test_a_broken_module_can_be_left_out(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"missing: model\.layers\.2\.enorm\.weight"):
        make_model(from_hub(hub / "part", None), open_origin(hub / "none").tokenizer(), None)[1]()
    model, make_params = make_model(from_hub(hub / "part", 0), open_origin(hub / "none").tokenizer(), None)
    assert jax.tree.structure(make_params()) == jax.tree.structure(model.abstract())


@pytest.mark.more
def test_modules_of_a_run(stack: Path) -> None:
    """A run without modules goes on with fresh ones when asked."""
    config = changed(get_config("sft"), init_from=str(stack), model__n_layers=2, model__mtp__depth=1)
    model, make_params = make_model(config, open_origin(stack).tokenizer(), None)
    assert jax.tree.structure(make_params()) == jax.tree.structure(model.abstract())
    assert_same_tree(without_modules(make_params(), 0), load_run(stack).params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_the_dtype_of_what_is_loaded(dtype: str | None, stack: Path, hub: Path) -> None:
    for folder in (stack, hub / "two"):
        run = load_run(folder, dtype=dtype)
        leaves = jax.tree.leaves({name: tree for name, tree in run.params.items() if name != "state"})
        assert {leaf.dtype.name for leaf in leaves} == {run.model.config.param_dtype} == {dtype or "float32"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(run.params.get("state", {}))} <= {"float32"}
        assert jax.tree.structure(run.params) == jax.tree.structure(run.model.abstract())
    with pytest.raises(ValueError, match="Did you mean 'bfloat16'"):
        load_run(stack, dtype="bfloat")


@pytest.mark.more
def test_a_stack_becomes_recurrent_and_deeper(stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    at_start = {"eval__at_start": True, "eval__loss_batches": 2, "eval__depths": (1, 3)}
    run(recurrent(stack, **at_start), tmp_path / "r2")
    first, trained = read_metrics(tmp_path / "r2")[0], load_run(tmp_path / "r2")
    losses = [first[f"eval/answer_loss{name}"] for name in ("", "_at_depth_1", "_at_depth_3")]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5, err_msg="at first every depth is the stack's")
    assert trained.model.config.recurrent.mean == 2
    run(recurrent(tmp_path / "r2", model__recurrent__mean=4), tmp_path / "r4")
    assert load_run(tmp_path / "r4").model.config.recurrent.mean == 4


def test_layers_that_do_not_add_up_are_refused(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stack has"):
        run(recurrent(stack, model__recurrent__core=7), tmp_path / "r")
    with pytest.raises(ValueError, match="computes what the stack did only with"):
        run(recurrent(stack, model__recurrent__start="random"), tmp_path / "r")
