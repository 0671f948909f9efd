"""Random small models of each family against transformers itself, when it is installed: a new seed on every
run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import hf
from tests.model.common import distance, forward

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
    return transformers.AutoConfig.for_model(
        family,
        vocab_size=61,
        hidden_size=8 * heads,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=16,
        rope_theta=float(rng.choice([1e4, 5e5])),
        rms_norm_eps=float(rng.choice([1e-5, 1e-6])),
        tie_word_embeddings=tied,
        **changes,
    )


def randomise(reference: Any, rng: np.random.Generator) -> None:
    """Norms around 1, biases that matter, embeddings of size 1, matrices that keep the variance."""
    for name, parameter in reference.named_parameters():
        noise = torch.tensor(rng.standard_normal(tuple(parameter.shape)), dtype=torch.float32)
        if parameter.ndim == 1:
            value = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        elif any(part in name for part in ("embed", "wte", "wpe")):
            value = noise
        else:
            value = 1.5 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def run_reference(reference: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of the mean next-token loss with respect to the input embedding."""
    tokens = torch.tensor(ids)
    logits = reference(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return logits.detach().numpy(), reference.get_input_embeddings().weight.grad.numpy()


def embedding_gradient(model: Any, params: Any, ids: np.ndarray) -> np.ndarray:
    def loss(embed: jax.Array) -> jax.Array:
        logits, _ = forward(model, params | {"embed": embed}, ids)
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_probs, ids[:, 1:, None], -1).mean()

    return np.asarray(jax.jit(jax.grad(loss))(params["embed"]))


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
    config._attn_implementation = "eager"
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    randomise(reference, rng)
    reference.save_pretrained(tmp_path / "theirs")
    ids = rng.integers(0, config.vocab_size, (2, LENGTH))
    want, gradient = run_reference(reference, ids)

    model, params = hf.load(tmp_path / "theirs")
    got = np.asarray(forward(model, params, ids)[0])
    assert distance(got, want) < 1e-4
    assert_same_choice(got, want, 1e-4)
    error = np.abs(embedding_gradient(model, params, ids) - gradient).max()
    assert error < 1e-4 * np.abs(gradient).max()

    hf.save(tmp_path / "ours", model, params)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(report.values()), report
    state = reference.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert distance(again.eval()(torch.tensor(ids), use_cache=False).logits.numpy(), want) < 1e-6
