"""Writes tests/golden/tiny_llama: a random two-layer Llama and what transformers computes with it.

python tests/golden/make_tiny_llama.py        (needs the extra `parity`)
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "tiny_llama"
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rope_theta=10_000.0,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    rms_norm_eps=1e-5,
    attention_bias=True,
    tie_word_embeddings=False,
)


def main() -> None:
    """Random weights (norms around 1, biases not 0), 2 x 24 tokens, their logits and last hidden state."""
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(CONFIG).float().eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        spread = {1: 0.3}.get(parameter.ndim, 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5)
        parameter.data = spread * noise + (1.0 if "norm" in name else 0.0)
    ids = torch.randint(0, CONFIG.vocab_size, (2, 24), generator=generator)
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    arrays = {"ids": ids, "logits": out.logits, "hidden_last": out.hidden_states[-1]}
    np.savez_compressed(FOLDER / "golden.npz", **{name: array.numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()
