"""Writes tests/golden/tiny_deepseek: a random DeepSeek-V3 of three layers with one multi-token prediction layer, and
what transformers computes with it.

python tests/golden/make_tiny_deepseek.py        (needs the extra `parity`)
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

FOLDER = Path(__file__).parent / "tiny_deepseek"
CONFIG = DeepseekV3Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_shared_experts=1,
    n_routed_experts=12,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    max_position_embeddings=640,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16,
    },
    rms_norm_eps=1e-3,  # large enough to matter, and not that of the latents, which is always 1e-6
    num_nextn_predict_layers=1,
    attn_implementation="eager",
    experts_implementation="eager",
)


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Norms around 1, routers and biases that decide, small embeddings, matrices that keep the variance."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if "inv_freq" in name:
            continue
        spread = 0.2 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        if name.endswith("e_score_correction_bias"):
            spread = 0.3
        if name.endswith("mlp.gate.weight"):
            spread *= 2
        spread = 0.1 if "embed" in name else spread
        centre = 1.0 if "norm" in name else 0.0
        tensor.data = centre + spread * torch.randn(tensor.shape, generator=generator)


def hub_tensors(layer: torch.nn.Module, number: int) -> dict[str, torch.Tensor]:
    """A multi-token prediction layer under the names of the Hub, one tensor per expert."""
    tensors = {}
    for name, tensor in layer.state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        if name == "mlp.experts.gate_up_proj":
            for e, pair in enumerate(tensor):
                for projection, half in zip(("gate_proj", "up_proj"), pair.chunk(2), strict=True):
                    tensors[f"mlp.experts.{e}.{projection}.weight"] = half
        elif name == "mlp.experts.down_proj":
            tensors |= {f"mlp.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            tensors[name] = tensor
    return {f"model.layers.{number}.{name}": tensor.clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    """Random weights, 2 x 24 tokens, the logits and last hidden state, and the logits one token further."""
    generator = torch.Generator().manual_seed(0)
    model = DeepseekV3ForCausalLM(CONFIG).float().eval()
    ahead = MtpModel(model, 1).float().eval()
    randomise(model, generator)
    randomise(ahead.layers, generator)
    ids = torch.randint(0, CONFIG.vocab_size, (2, 24), generator=generator)
    positions = torch.arange(23)[None]
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
        further = ahead.forward_layer(0, out.hidden_states[-1][:, :-1], positions, None, input_ids=ids[:, 1:])
        mtp_logits = model.lm_head(further)
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    tensors = load_file(FOLDER / "model.safetensors") | hub_tensors(ahead.layers[0], CONFIG.num_hidden_layers)
    prefix = f"model.layers.{CONFIG.num_hidden_layers}"
    tensors[f"{prefix}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{prefix}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, FOLDER / "model.safetensors", metadata={"format": "pt"})
    (FOLDER / "model.safetensors").chmod(0o644)
    arrays = {"ids": ids, "logits": out.logits, "hidden_last": out.hidden_states[-1], "mtp_logits": mtp_logits}
    np.savez_compressed(FOLDER / "golden.npz", **{name: array.numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()
