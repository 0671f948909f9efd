"""Ouro from the Hub's layout against the stored outputs of its own code, and proof that the comparison can fail."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis.lens import lens
from data.sources.batch import TokenRows
from infer.prefill import recurrent_output
from infer.recurrence import RecurrencePlan
from model import Model, ModelConfig, build, hf
from model.depth import Exit
from model.depth.exit import exit_distribution
from tests.model.common import assert_close, cached, distance, forward, left_pad, random_params, tokens_of
from tests.sampled import generate
from tests.trunk import trees_equal
from train.objectives.exit_gate import loop_objective

LOOPS = 4
THRESHOLDS = ("0.3", "0.5", "0.7", "0.9")
Golden = dict[str, np.ndarray]
Changes = dict[str, Any]


@functools.cache
def read(folder: Path) -> tuple[Model, Any, Golden]:
    model, params = hf.load(folder)
    with np.load(folder / "golden.npz") as golden:
        return model, params, dict(golden)


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "tiny_hf" / "ouro"


def changed(model: Model, **recurrent: Any) -> Model:
    """The model with other settings of its recurrence."""
    return build(model.config.replace(recurrent=model.config.to_dict()["recurrent"] | recurrent))


@functools.partial(jax.jit, static_argnums=(0, 3))
def at_each_loop(model: Model, params: Any, ids: jax.Array, loops: int = LOOPS) -> Any:
    """(logits, hidden, logits of the gate) after each loop, [T, B, S, ...]: passes of one loop, chained."""
    state, found = None, []
    for _ in range(loops):
        out = model.apply(params, ids, depth=1, state=state)
        state = out.state
        found.append((model.logits(params, out.hidden), out.hidden, model.exit_logits(params, out.hidden)))
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)


def ids_of(golden: Golden) -> jax.Array:
    return jnp.asarray(golden["ids"], jnp.int32)


def test_every_loop(folder: Path) -> None:
    """Logits, states after the norm and the gate: chained passes of one loop, and the pass of all of them."""
    model, params, golden = read(folder)
    logits, hidden, gates = at_each_loop(model, params, ids_of(golden))
    assert_close(logits, golden["logits_loop"])
    assert distance(hidden, golden["hidden_loop"]) < 1e-4 and distance(gates, golden["gate_logits"]) < 1e-4
    whole, last = forward(model, params, ids_of(golden))
    assert_close(whole, golden["logits"])
    assert distance(last, golden["hidden_loop"][-1]) < 1e-4
    assert jax.tree.reduce(lambda total, leaf: total + leaf.size, params, 0) == golden["num_parameters"]


@pytest.mark.more_but("2")
@pytest.mark.parametrize("loops", [1, 2, 6])
def test_other_numbers_of_loops(folder: Path, loops: int) -> None:
    model, params, golden = read(folder)
    assert_close(forward(changed(model, mean=loops), params, ids_of(golden))[0], golden[f"logits_T{loops}"])


CHANGES: dict[str, Callable[[Model], Changes]] = {
    "norm at the end only": lambda m: {"recurrent": {"readout": "none"}},
    "norm twice": lambda m: {"recurrent": {"readout": "norm"}},
    "input added in every loop": lambda m: {"recurrent": {"injection": "add"}},
    "a loop fewer": lambda m: {"recurrent": {"mean": 3}},
    "norms after the sums": lambda m: {"norm": "sandwich"},
    "no norm behind": lambda m: {"norm": "pre"},
    "interleaved rope": lambda m: {"rope": m.config.to_dict()["rope"] | {"interleaved": True}},
    "rope base": lambda m: {"rope": m.config.to_dict()["rope"] | {"theta": 10_000.0}},
    "tied": lambda m: {"tied": True},
}


@pytest.mark.more_but("norm at the end only", "norms after the sums")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_constant_breaks_parity(folder: Path, change: str) -> None:
    model, params, golden = read(folder)
    settings = model.config.to_dict() | {"family": "sagax"}
    for name, value in CHANGES[change](model).items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    assert distance(forward(build(settings), params, ids_of(golden))[0], golden["logits"]) > 0.05


def test_left_padded_row(folder: Path) -> None:
    model, params, golden = read(folder)
    positions, segments = (golden[f"leftpad_{key}"].astype(np.int32) for key in ("pos", "mask"))
    logits, _ = forward(model, params, ids_of(golden), positions, segments)
    assert_close(logits[0, int((segments[0] == 0).sum()) :], golden["leftpad_logits"])


def test_exit_probabilities_and_the_loop_of_each_token(folder: Path) -> None:
    """p_t, the first loop at which its sum reaches a threshold, the logits there, and their mean over p."""
    model, params, golden = read(folder)
    logits, _, gates = at_each_loop(model, params, ids_of(golden))
    p = np.exp(exit_distribution(gates))
    np.testing.assert_allclose(np.moveaxis(p, 0, -1), golden["exit_pdf"], atol=1e-5)
    assert_close(np.einsum("tbs,tbsv->bsv", p, logits), golden["expected_logits"])
    for threshold in THRESHOLDS:
        reached = p.cumsum(0) >= float(threshold)
        steps = np.where(reached.any(0), reached.argmax(0), LOOPS - 1)
        np.testing.assert_array_equal(steps, golden[f"exit:{threshold}:steps"])
        taken = np.take_along_axis(np.asarray(logits), steps[None, ..., None], 0)[0]
        assert_close(taken, golden[f"exit:{threshold}:logits"])


@pytest.mark.more_but("0.7")
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_token_leaves_by_the_gate_where_the_reference_reads_it_out(folder: Path, threshold: str) -> None:
    """Each token behind keys of all loops, as the reference has them: its loops exactly, its logits closely."""
    model, params, golden = read(folder)
    ids = ids_of(golden)

    @jax.jit
    def run(params: Any) -> Any:
        def step(cache: Any, column: jax.Array) -> Any:
            token = column[:, None]
            # Both rows at once: each leaves by its own gate.
            left = model.apply(params, token, cache=cache, exit=Exit("gate", float(threshold)))
            whole = model.apply(params, token, cache=cache)
            return whole.cache, (left.aux["depth"] - 1, model.logits(params, left.hidden[:, 0]))

        return jax.lax.scan(step, model.init_cache(*ids.shape), ids.T)[1]

    steps, logits = run(params)
    np.testing.assert_array_equal(steps.T, golden[f"exit:{threshold}:steps"])
    assert_close(logits.swapaxes(0, 1), golden[f"exit:{threshold}:logits"])


def test_the_threshold_of_the_folder_is_that_of_the_gate() -> None:
    """Where none is given; another criterion keeps its own."""
    recurrent = build(ModelConfig.from_hf(DESCRIBED)).config.recurrent
    assert Exit("gate").of(recurrent).limit == recurrent.exit_threshold == 1.0
    assert Exit("gate", 0.4).of(recurrent).limit == 0.4 and Exit("kl").of(recurrent).limit == Exit("kl").limit


# Decoding


@pytest.mark.more
def test_cached_decode_is_one_full_pass(folder: Path) -> None:
    """Prefill and single steps on rows that begin in different columns."""
    model, params, golden = read(folder)
    pads = (5, 0)
    logits = np.asarray(cached(model, params, *left_pad(golden["ids"], pads), 12))
    for row, pad in enumerate(pads):
        assert_close(logits[row, pad:], golden["logits"][row, : logits.shape[1] - pad])


def test_keys_of_every_loop(folder: Path) -> None:
    """The cache holds what the reference's does: a slot for each loop and layer."""
    model, params, golden = read(folder)
    ids = ids_of(golden)[:1]

    @jax.jit
    def run(params: Any) -> Any:
        return model.apply(params, ids, cache=model.init_cache(*ids.shape)).cache.layers

    layers = run(params)
    for name, part in (("cache_keys", "k"), ("cache_values", "v")):
        found = np.stack([np.asarray(layer[part]) for layer in layers], 2)[0]
        assert found.shape[0] == LOOPS
        assert distance(found.reshape(-1, 1, *found.shape[2:]), golden[name]) < 1e-4


def decoded(model: Model, params: Any, ids: jax.Array, prefill: int, copied: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prefill and of single steps; `copied`: before each step the last loop's keys fill all slots."""

    def last_everywhere(cache: Any) -> Any:
        layers = jax.tree.map(lambda x: jnp.broadcast_to(x[:, -1:], x.shape), cache.layers)
        return cache.replace(layers=layers)

    @jax.jit
    def run(params: Any) -> Any:
        def step(cache: Any, column: jax.Array) -> Any:
            out = model.apply(params, column[:, None], cache=last_everywhere(cache) if copied else cache)
            return out.cache, out.hidden[:, 0]

        out = model.apply(params, ids[:, :prefill], cache=model.init_cache(*ids.shape))
        _, hidden = jax.lax.scan(step, out.cache, ids[:, prefill:].T)
        return model.logits(params, out.hidden), model.logits(params, hidden.swapaxes(0, 1))

    first, rest = run(params)
    return np.asarray(first), np.asarray(rest)


def test_one_slot_keeps_the_keys_of_the_last_loop(folder: Path) -> None:
    """`kv_slots=1`: a prompt is read as ever, later tokens find the last loop's keys in every loop."""
    model, params, golden = read(folder)
    ids, prefill = ids_of(golden), 12
    shared_slot, steps = decoded(changed(model, kv_slots=1), params, ids, prefill, copied=False)
    assert_close(shared_slot, golden["logits"][:, :prefill])
    _, want = decoded(model, params, ids, prefill, copied=True)
    assert_close(steps, want)
    assert distance(steps, golden["logits"][:, prefill:]) > 0.1, "which is not the full pass"


@pytest.mark.more
def test_greedy_tokens(folder: Path) -> None:
    model, params, golden = read(folder)
    prompt, want = golden["greedy"][:, :12].tolist(), golden["greedy"][0, 12:].tolist()
    rollout = generate(model, params, prompt, jax.random.key(0), max_new_tokens=16, temperature=0.0)
    assert rollout.tokens[0].tolist() == want and set(rollout.depth[0].tolist()) == {LOOPS}  # type: ignore[index]


@pytest.mark.more
def test_greedy_tokens_read_out_by_the_gate(folder: Path) -> None:
    """The reference computes all loops and reads out where the gate says."""
    model, params, golden = read(folder)
    tokens = golden["greedy_exit:0.7"].astype(np.int32)
    logits, _, gates = at_each_loop(model, params, jnp.asarray(tokens))
    steps = (np.exp(exit_distribution(gates)).cumsum(0) >= 0.7).argmax(0)
    taken = np.take_along_axis(np.asarray(logits), steps[None, ..., None], 0)[0, 0]
    np.testing.assert_array_equal(taken[11:-1].argmax(-1), tokens[0, 12:])


def test_a_state_that_is_normed_is_not_normed_again() -> None:
    """Where tokens start from the state of the one before, and where states are looked at through the head."""
    model = build(ModelConfig.from_hf(DESCRIBED))
    params, ids = random_params(model), tokens_of(model)

    @jax.jit
    def run(params: Any) -> Any:
        out = model.apply(params, ids, depth=LOOPS, capture=("state",))
        plan = SimpleNamespace(recurrence=RecurrencePlan(LOOPS, warm="normed"))
        given = recurrent_output(plan, model, params, out, -1)  # type: ignore[arg-type]
        return out.hidden, out.state, given.state, lens(model, params, out.captured["state"])  # type: ignore[union-attr]

    hidden, state, given, looked_at = run(params)
    np.testing.assert_array_equal(state, hidden)
    np.testing.assert_array_equal(given, state[:, -1])
    assert_close(looked_at, at_each_loop(model, params, ids)[0])


# Training


def batch_of(ids: jax.Array) -> TokenRows:
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return TokenRows(tokens=ids, mask=jnp.ones(ids.shape), positions=places, segments=jnp.ones_like(ids))


def loss_and_gradient(model: Model, params: Any, ids: jax.Array) -> tuple[float, Any, dict[str, float]]:
    objective = loop_objective(model)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean(params: Any) -> Any:
        total, count, metrics = objective(params, batch_of(ids), jax.random.key(0))
        return total / count, metrics

    (loss, metrics), gradient = jax.jit(mean)(params)
    return float(loss), gradient, {name: float(v[0] / v[1]) for name, v in metrics.items() if name != "sums"}


def test_first_stage(folder: Path, tmp_path: Path) -> None:
    """sum_t p_t CE_t - beta H(p), and its gradient in the files' names."""
    model, params, golden = read(folder)
    model = changed(model, exit_entropy=float(golden["stage1:beta"]))
    loss, gradient, metrics = loss_and_gradient(model, params, ids_of(golden))
    np.testing.assert_allclose(loss, golden["stage1:loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["exit/entropy"], golden["stage1:entropy"].mean(), rtol=1e-5)
    for loop, want in enumerate(golden["stage1:ce"]):
        np.testing.assert_allclose(metrics[f"exit/loss_{loop + 1}"], want.mean(), rtol=1e-5)
    hf.save(tmp_path / "gradients", model, gradient)
    written = load_file(tmp_path / "gradients" / "model.safetensors")
    stored = {key.removeprefix("stage1:grad:"): want for key, want in golden.items() if key.startswith("stage1:grad:")}
    assert len(stored) == 6
    for name, want in stored.items():
        assert np.abs(written[name] - want).max() < 1e-4 * np.abs(want).max(), name


def test_second_stage(folder: Path) -> None:
    """The gate's own loss and its gradient, in the gate alone."""
    model, params, golden = read(folder)
    slope, margin = golden["stage2:k_gamma"].tolist()
    model = changed(model, exit_stage="gate", exit_slope=slope, exit_margin=margin)
    loss, gradient, metrics = loss_and_gradient(model, params, ids_of(golden))
    np.testing.assert_allclose(loss, golden["stage2:mean"], rtol=1e-5)
    np.testing.assert_allclose(metrics["exit/wanted"], golden["stage2:labels"].mean(), rtol=1e-5)
    gate = gradient.pop("exit_gate")
    want = golden["stage2:grad_mean:weight"]
    assert np.abs(gate["kernel"] - want[0]).max() < 1e-4 * np.abs(want).max()
    np.testing.assert_allclose(gate["bias"], golden["stage2:grad_mean:bias"], rtol=1e-4)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.more_but("margin")
@pytest.mark.parametrize("change", [{"exit_slope": 25.0}, {"exit_margin": 0.05}], ids=["slope", "margin"])
def test_another_constant_is_another_loss(folder: Path, change: dict[str, float]) -> None:
    model, params, golden = read(folder)
    loss, _, _ = loss_and_gradient(changed(model, exit_stage="gate", **change), params, ids_of(golden))
    assert abs(loss - golden["stage2:mean"]) > 1e-3


# The folder

DESCRIBED: dict[str, Any] = {
    "model_type": "ouro",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "total_ut_steps": 4,
}


def test_the_layout_goes_there_and_back(folder: Path, tmp_path: Path) -> None:
    model, params, _ = read(folder)
    hf.save(tmp_path / "again", model, params)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    again, loaded = hf.load(tmp_path / "again")
    assert again.config == model.config and trees_equal(loaded, params)


def test_the_gate_is_stored_like_everything_else(folder: Path, tmp_path: Path) -> None:
    """Published weights are bfloat16, the gate's too: they load and save as such."""
    model, params = hf.load(folder, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert jax.tree.map(lambda leaf: leaf.dtype, params) == jax.tree.map(lambda leaf: leaf.dtype, model.abstract())
    hf.save(tmp_path / "half", model, params)
    assert trees_equal(hf.load(tmp_path / "half")[1], params)


def test_what_the_config_says() -> None:
    config = ModelConfig.from_hf(DESCRIBED)
    r = config.recurrent
    assert (r.prelude, r.core, r.coda, r.mean) == (0, 2, 0, 4)
    assert (r.injection, r.start, r.readout) == ("none", "embedding", "loop")
    assert r.exit_gate and config.norm == "peri" and config.n_kv_heads == 4 and not config.tied
    assert config.to_hf()["total_ut_steps"] == 4 and config.to_hf()["early_exit_threshold"] == 1.0
    trained = config.replace(recurrent=config.to_dict()["recurrent"] | {"exit_stage": "gate", "exit_entropy": 0.1})
    assert ModelConfig.from_hf(trained.to_hf()) == config, "how the gate is trained is a run's, not the folder's"


def test_a_fixed_step_is_so_many_loops() -> None:
    """`early_exit_step` counts from 0 and goes before the threshold."""
    config = ModelConfig.from_hf(DESCRIBED | {"early_exit_step": 1, "early_exit_threshold": 0.5})
    assert (config.recurrent.mean, config.recurrent.exit_threshold) == (2, 1.0)
    assert config.to_hf()["total_ut_steps"] == 2


def test_a_threshold_is_kept_and_told() -> None:
    with pytest.warns(UserWarning, match=r"early_exit_threshold=0\.7 is kept .* all 4 iterations run"):
        config = ModelConfig.from_hf(DESCRIBED | {"early_exit_threshold": 0.7})
    assert Exit("gate").of(config.recurrent).limit == 0.7 == config.recurrent.exit_threshold


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"early_exit_treshold": 0.5}, "unknown ouro key 'early_exit_treshold'. Did you mean 'early_exit_threshold'"),
        ({"exit_at_step": 2}, "unknown ouro key 'exit_at_step'.*Choices: early_exit_step, early_exit_threshold"),
        ({"use_weighted_exit": True}, "use_weighted_exit=True is not supported, only False"),
        ({"early_exit_threshold": 1.5}, "early_exit_threshold=1.5, expected a number in"),
        ({"early_exit_step": 4}, "early_exit_step=4, but total_ut_steps=4 end with step 3"),
        ({"early_exit_step": -1}, "early_exit_step=-1, expected an integer from 0"),
        ({"total_ut_steps": None}, "lacks total_ut_steps"),
        ({"total_ut_steps": 0}, "total_ut_steps=0, expected an integer from 1"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "contradicts sliding_window=None"),
    ],
)
def test_what_the_config_cannot_say(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(DESCRIBED | change)


@pytest.mark.parametrize(
    "change", [{"injection": "add"}, {"readout": "norm"}, {"exit_gate": False}, {"prelude": 1, "core": 1}], ids=str
)
def test_what_the_family_cannot_say(change: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(DESCRIBED)
    other = config.replace(recurrent=config.to_dict()["recurrent"] | change)
    with pytest.raises(ValueError, match=r"family 'ouro' cannot express recurrent\.\w+"):
        other.to_hf()


def test_files_without_a_gate_are_named(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if "gate.b" not in name}, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"missing: model\.early_exit_gate\.bias"):
        hf.load(tmp_path)
