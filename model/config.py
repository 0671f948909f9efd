"""What a network is, as frozen and validated data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.parts import (
    ACTIVATIONS,
    PARTS,
    MLAConfig,
    MoEConfig,
    MTPConfig,
    PEERConfig,
    RNNConfig,
    RopeConfig,
    check_choices,
    unknown,
)
from model.precision import PRECISIONS

__all__ = ["MLAConfig", "MTPConfig", "MoEConfig", "ModelConfig", "PEERConfig", "RNNConfig", "RopeConfig", "unknown"]

NORMS = ("rmsnorm", "layernorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich")
POSITIONS = ("rope", "learned", "none")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder: sizes, slots and switches.

    `mixer`, `ffn` and `window` hold one value for all layers or a tuple with one per layer (`window` counts
    keys seen, None = all). `norm` is the placement, `norm_type` the function. `rope`, `mla`, `moe`, `peer`, `rnn` and
    `mtp` are the parts of model/parts.py. `dtype` computes, `param_dtype` stores, `precision` is that of the large
    matrix products. `family` names the Hugging Face layout that `hf.save` writes ("sagax": our own names).
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_kv_heads: int = None  # type: ignore[assignment]  # None becomes n_heads
    head_dim: int = None  # type: ignore[assignment]  # None becomes d_model / n_heads
    max_length: int = 2048
    mixer: str | tuple[str, ...] = "gqa"
    ffn: str | tuple[str, ...] = "glu"
    depth: str = "stack"
    norm: str = "pre"
    norm_type: str = "rmsnorm"
    norm_eps: float = 1e-6
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | tuple[int | None, ...] | None = None
    positions: str = "rope"
    rope: RopeConfig = RopeConfig()
    mla: MLAConfig = MLAConfig()
    moe: MoEConfig = MoEConfig()
    peer: PEERConfig = PEERConfig()
    rnn: RNNConfig = RNNConfig()
    mtp: MTPConfig = MTPConfig()
    tied: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "high"
    remat: bool = False
    family: str = "sagax"

    def __post_init__(self) -> None:
        for name, part in PARTS.items():
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, _build(part, getattr(self, name)))
        for name in ("mixer", "ffn", "window"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None:
            if self.n_heads and self.d_model % self.n_heads:
                raise ValueError(f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}: give head_dim")
            object.__setattr__(self, "head_dim", self.d_model // max(self.n_heads, 1))
        _validate(self)

    def per_layer(self, name: str) -> tuple[Any, ...]:
        """The value of a slot for every layer, [n_layers]; "moe" for all means where `moe` places it."""
        value = getattr(self, name)
        if isinstance(value, tuple):
            return value
        if name == "ffn" and value == "moe":
            sparse = (i >= self.moe.first_dense and (i + 1) % self.moe.every == 0 for i in range(self.n_layers))
            return tuple("moe" if here else "glu" for here in sparse)
        return (value,) * self.n_layers

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed; the new values are validated."""
        return dataclasses.replace(self, **_checked(ModelConfig, changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, JSON-able; `ModelConfig.from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Builds from a dict or ConfigDict; an unknown key raises and names the nearest one."""
        return _build(cls, values.to_dict() if hasattr(values, "to_dict") else values)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Builds from the dict of a Hugging Face `config.json`, in either spelling of its rope settings."""
        from model.hf.config import from_hf

        return from_hf(config)

    def to_hf(self) -> dict[str, Any]:
        """The dict of a Hugging Face `config.json` of this config's family."""
        from model.hf.config import to_hf

        return to_hf(self)


def _checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise ValueError(unknown(f"{cls.__name__} key", key, names))
    return dict(values)


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    try:
        return cls(**_checked(cls, values))
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def _validate(config: ModelConfig) -> None:
    for name in (
        "vocab_size",
        "d_model",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "d_ff",
        "max_length",
    ):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, found {value!r}")
    if config.n_heads % config.n_kv_heads:
        raise ValueError(f"n_heads={config.n_heads} is no multiple of n_kv_heads={config.n_kv_heads}")
    choices = {
        "norm": NORM_PLACEMENTS,
        "norm_type": NORMS,
        "positions": POSITIONS,
        "activation": ACTIVATIONS,
        "dtype": DTYPES,
        "param_dtype": DTYPES,
        "precision": tuple(PRECISIONS),
    }
    check_choices("", config, choices)
    for name in ("mixer", "ffn", "window"):
        if len(config.per_layer(name)) != config.n_layers:
            raise ValueError(f"{name} has {len(config.per_layer(name))} entries for n_layers={config.n_layers}")
    for window in config.per_layer("window"):
        if window is not None and window < 1:
            raise ValueError(f"window must be None or positive, found {window}")
    if config.positions == "rope" and int(config.head_dim * config.rope.partial) % 2:
        raise ValueError(f"rope rotates pairs: head_dim={config.head_dim} x partial={config.rope.partial} must be even")
