"""Random small models of each family against transformers itself, when it is installed: a new seed on every
run.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, ModelConfig, build, hf
from tests.model.common import distance, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 24
ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"type": "linear", "factor": 3.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 12},
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 8,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
WINDOWED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"llama, {kind} rope": ("llama", {"rope_scaling": scaling}) for kind, scaling in ROPES.items()},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", WINDOWED),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "qwen3 with windows": ("qwen3", WINDOWED),
    "mistral": ("mistral", {"sliding_window": 7}),
    "gpt2": ("gpt2", {}),
    "mixtral": ("mixtral", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", {"attention_bias": True}),
    "deepseek_v2, any expert": ("deepseek_v2", {"topk_method": "greedy"}),
    "deepseek_v2, groups and yarn": ("deepseek_v2", {"topk_method": "group_limited_greedy", "rope_scaling": YARN}),
    "deepseek_v3": ("deepseek_v3", {}),
    "deepseek_v3, yarn": ("deepseek_v3", {"rope_scaling": YARN, "rope_interleave": True}),
}


def draw(family: str, changes: dict[str, Any], rng: np.random.Generator) -> Any:
    """A small random configuration of the family."""
    heads, kv_heads = [(4, 2), (4, 1), (6, 3), (2, 2)][rng.integers(4)]
    tied = bool(rng.integers(2))
    if family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 8 * heads, "n_layer": 2, "n_head": heads, "n_positions": 32}
        sizes["n_inner"] = [None, 40][rng.integers(2)]
        return transformers.GPT2Config(vocab_size=61, tie_word_embeddings=tied, **sizes)
    head_dim = int(rng.choice([8, 12]))
    changes = dict(changes)
    if (changes.get("rope_scaling") or {}).get("rope_type") == "longrope":
        factors = {name: list(rng.uniform(1, 4, head_dim // 2)) for name in ("short_factor", "long_factor")}
        changes["rope_scaling"] = changes["rope_scaling"] | factors
    sizes = {
        "vocab_size": 61,
        "hidden_size": 8 * heads,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 16,
        "rope_theta": float(rng.choice([1e4, 5e5])),
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "tie_word_embeddings": tied,
    }
    return transformers.AutoConfig.for_model(family, **sizes | draw_experts(family, heads, rng) | changes)


def draw_experts(family: str, heads: int, rng: np.random.Generator) -> dict[str, Any]:
    """Settings of the families with experts: how many, in which groups, in which layers; windows or none."""
    groups = int(rng.choice([1, 2, 4]))
    each, kept = int(rng.integers(3, 5)), int(rng.integers(1, groups + 1))
    chosen = {"num_experts_per_tok": int(rng.integers(1, 4))}
    if family == "mixtral":
        return chosen | {"num_local_experts": groups * each, "sliding_window": [None, 7][rng.integers(2)]}
    if family in ("qwen2_moe", "qwen3_moe"):
        dense, step = [([], 1), ([0], 1), ([1], 1), ([], 2)][rng.integers(4)]
        shared = {"shared_expert_intermediate_size": 20} if family == "qwen2_moe" else {}
        places = {"mlp_only_layers": dense, "decoder_sparse_step": step}
        widths = {"num_experts": groups * each, "moe_intermediate_size": 12}
        window = WINDOWED | {"use_sliding_window": bool(rng.integers(2))}
        return chosen | places | widths | shared | window | {"norm_topk_prob": bool(rng.integers(2))}
    if family not in ("deepseek_v2", "deepseek_v3"):
        return {}
    settings = {
        "num_key_value_heads": heads,
        "head_dim": 8,
        "n_routed_experts": groups * each,
        "n_group": groups,
        "topk_group": kept,
        "moe_intermediate_size": 12,
        "n_shared_experts": int(rng.integers(1, 3)),
        "first_k_dense_replace": int(rng.integers(2)),
        "routed_scaling_factor": float(rng.choice([1.0, 2.5])),
        "q_lora_rank": [None, 10][rng.integers(2)],
        "kv_lora_rank": 12,
        "qk_nope_head_dim": int(rng.choice([6, 8])),
        "qk_rope_head_dim": 8,
        "v_head_dim": int(rng.choice([8, 12])),
    }
    if family == "deepseek_v3":
        settings |= {"norm_topk_prob": bool(rng.integers(2)), "rope_interleave": bool(rng.integers(2))}
        settings["num_nextn_predict_layers"] = 0
    return chosen | settings


def randomise(reference: Any, rng: np.random.Generator) -> None:
    """Norms around 1, biases that matter, embeddings of size 1, matrices that keep the variance."""
    buffers = [pair for pair in reference.named_buffers() if pair[0].endswith("e_score_correction_bias")]
    for name, parameter in [*reference.named_parameters(), *buffers]:
        noise = torch.tensor(rng.standard_normal(tuple(parameter.shape)), dtype=torch.float32)
        if parameter.ndim == 1:
            value = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        elif any(part in name for part in ("embed", "wte", "wpe")):
            value = noise
        elif name.endswith("mlp.gate.weight"):
            value = 2 * noise / parameter.shape[-1] ** 0.5
        else:
            value = 1.5 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def run_reference(reference: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of the mean next-token loss with respect to the input embedding."""
    tokens = torch.tensor(ids)
    logits = reference(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return logits.detach().numpy(), reference.get_input_embeddings().weight.grad.numpy()


def settled_tokens(reference: Any, rng: np.random.Generator) -> np.ndarray:
    """Tokens for which no expert is chosen by a hair: a change of 1e-5 in the embeddings changes little.

    A router is discontinuous: where two experts nearly tie, rounding alone decides, and no two programs agree.
    """
    embed = reference.get_input_embeddings().weight
    for _ in range(20):
        ids = rng.integers(0, reference.config.vocab_size, (2, LENGTH))
        tokens, original = torch.tensor(ids), embed.detach().clone()
        noise = torch.tensor(rng.standard_normal(tuple(embed.shape)), dtype=torch.float32)
        with torch.no_grad():
            before = reference(tokens, use_cache=False).logits
            embed.copy_(original * (1 + 1e-5 * noise))
            change = (reference(tokens, use_cache=False).logits - before).abs().max()
            embed.copy_(original)
        if change < 5e-3 * before.std():
            return ids
    raise AssertionError("no draw of tokens is clear of ties")


@functools.partial(jax.jit, static_argnums=0)
def run_ours(model: Model, params: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same two of our model."""

    def loss(embed: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.logits(params | {"embed": embed}, model.apply(params | {"embed": embed}, ids).hidden)
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_probs, ids[:, 1:, None], -1).mean(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params["embed"])
    return logits, gradient


@functools.partial(jax.jit, static_argnums=0)
def run_ahead(model: Model, params: Any, ids: jax.Array) -> list[jax.Array]:
    """The logits of every multi-token prediction module."""
    outputs = model.predict_ahead(params, model.apply(params, ids).hidden, ids)
    return [model.logits(params, out.hidden) for out in outputs]


def assert_same_choice(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Equal argmax wherever the two best are further apart than the error allowed: a random draw may nearly
    tie.
    """
    best = np.sort(want, -1)
    decided = best[..., -1] - best[..., -2] > tolerance * want.std()
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(got.argmax(-1)[decided], want.argmax(-1)[decided])


@pytest.mark.parametrize("case", CASES)
def test_family(case: str, parity_seed: int, tmp_path: Path) -> None:
    """Forward, gradient, and the way back: what we export, transformers reads to the same bits."""
    rng = np.random.default_rng(parity_seed)
    config = draw(*CASES[case], rng)
    config._attn_implementation = config._experts_implementation = "eager"
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    randomise(reference, rng)
    reference.save_pretrained(tmp_path / "theirs")
    ids = settled_tokens(reference, rng)
    want, gradient = run_reference(reference, ids)

    model, params = hf.load(tmp_path / "theirs")
    got, ours = (np.asarray(array) for array in run_ours(model, params, ids))
    assert distance(got, want) < 1e-4
    assert_same_choice(got, want, 1e-4)
    assert np.abs(ours - gradient).max() < 1e-4 * np.abs(gradient).max()

    hf.save(tmp_path / "ours", model, params)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(report.values()), report
    state = reference.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert distance(again.eval()(torch.tensor(ids), use_cache=False).logits.numpy(), want) < 1e-5


def test_multi_token_prediction(parity_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we export is what transformers loads beside the main model, and predicts the same tokens further on."""
    modeling_layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(modeling_layers, "MtpModel"):
        pytest.skip("this transformers has no MtpModel")
    rng = np.random.default_rng(parity_seed)
    drawn = draw("deepseek_v3", {"num_nextn_predict_layers": 2, "first_k_dense_replace": 1}, rng)
    model = build(ModelConfig.from_hf(drawn.to_dict()))
    params = random_params(model, parity_seed)
    hf.save(tmp_path / "ours", model, params)
    # transformers tells these layers from others by the number that the release has.
    patterns = [r"model\.layers\.2\..*", r"model\.layers\.3\..*"]
    monkeypatch.setattr(transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", patterns)
    kinds = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    main = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours", **kinds).eval()
    ahead = modeling_layers.MtpModel.from_pretrained(main).eval()
    ids = settled_tokens(main, rng)
    tokens = torch.tensor(ids)
    with torch.no_grad():
        state = main.model(tokens, use_cache=False).last_hidden_state
        for k, logits in enumerate(run_ahead(model, params, ids)):
            columns = LENGTH - k - 1
            positions = torch.arange(columns)[None]
            state = ahead.forward_layer(k, state[:, :columns], positions, None, input_ids=tokens[:, k + 1 :])
            want = main.lm_head(state).numpy()
            got = np.asarray(logits)[:, :columns]
            assert distance(got, want) < 1e-4
            assert_same_choice(got, want, 1e-4)
