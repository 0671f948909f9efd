"""What a network is, as frozen and validated data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
NORMS = ("rmsnorm", "layernorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich")
POSITIONS = ("rope", "learned", "none")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
DTYPES = ("float32", "bfloat16", "float16")


def unknown(what: str, found: object, choices: Iterable[str]) -> str:
    """Message for a name that is not among `choices`, with the nearest one."""
    choices = list(choices)
    near = difflib.get_close_matches(str(found), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {found!r}.{hint} Choices: {', '.join(choices)}."


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    `theta` base; `factor` context extension; `original_length` the length trained before the extension;
    `partial` share of the head dimension that is rotated; `attention_factor` multiplies cos and sin (None:
    the kind's own rule); `interleaved` pairs (0, 1), (2, 3) ... instead of halves;
    `short_factor`/`long_factor` belong to longrope.
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_length: int | None = None
    partial: float = 1.0
    interleaved: bool = False
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ValueError(unknown("rope kind", self.kind, ROPE_KINDS))
        if not 0 < self.partial <= 1:
            raise ValueError(f"rope.partial must lie in (0, 1], found {self.partial}")
        for name in ("theta", "factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rope.{name} must be positive, found {getattr(self, name)}")
        if self.kind == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ValueError("longrope needs short_factor and long_factor")
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(map(float, value)))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder: sizes, slots and switches.

    `mixer`, `ffn` and `window` hold one value for all layers or a tuple with one per layer (`window` counts
    keys seen, None = all). `norm` is the placement, `norm_type` the function. `dtype` computes, `param_dtype`
    stores. `family` names the Hugging Face layout that `hf.save` writes ("sagax": our own names).
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
    tied: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    family: str = "sagax"

    def __post_init__(self) -> None:
        if isinstance(self.rope, Mapping):
            object.__setattr__(self, "rope", _build(RopeConfig, self.rope))
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
        """The value of a slot for every layer, [n_layers]."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.n_layers

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
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(unknown(name, getattr(config, name), allowed))
    for name in ("mixer", "ffn", "window"):
        if len(config.per_layer(name)) != config.n_layers:
            raise ValueError(f"{name} has {len(config.per_layer(name))} entries for n_layers={config.n_layers}")
    for window in config.per_layer("window"):
        if window is not None and window < 1:
            raise ValueError(f"window must be None or positive, found {window}")
    if config.positions == "rope" and int(config.head_dim * config.rope.partial) % 2:
        raise ValueError(f"rope rotates pairs: head_dim={config.head_dim} x partial={config.rope.partial} must be even")
