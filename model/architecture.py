"""What a network is, as frozen and validated data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from model.parts import (
    ACTIVATIONS,
    PARTS,
    MLAConfig,
    MoEConfig,
    MTPConfig,
    PEERConfig,
    RecurrentConfig,
    RNNConfig,
    RopeConfig,
    check_choices,
    unknown,
)
from model.precision import PRECISIONS

NORMS = ("rmsnorm", "layernorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich")
DEPTHS = ("stack", "recurrent")
INITS = ("normal", "truncated")
POSITIONS = ("rope", "learned", "none")
REMATS = ("none", "full", "dots", "attention", "offload")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder: sizes, slots and switches.

    `mixer`, `ffn` and `window` hold one value for all layers or a tuple with one per layer, slots also as one string
    with commas ("glu,moe,glu"); `window` counts keys seen, None = all. `depth` runs the layers as a "stack", or some
    of them again and again ("recurrent"). `norm` is the placement, `norm_type` the function; `qk_bias` a bias on
    queries and keys alone. `rope`, `mla`, `moe`,
    `peer`, `rnn`, `mtp` and `recurrent` are the parts of model/parts.py. With `pairs` the inputs may hold ids from V =
    `vocab_size` on: V + a V + b is the pair of tokens (a, b) in one position, never predicted, whose embedding is a's
    plus what a second table has for b. `init` draws weights from a normal
    distribution of deviation `init_std`, whole or "truncated" at three deviations. `dtype` computes, `param_dtype`
    stores, `precision` is that of the large matrix products. `remat` names what a backward
    pass finds kept (model/remat.py; True is "full"), `layers` whether like ones are a loop ("scanned"), `attention` how
    it is computed ("auto": model/platform.py). `family` names the Hugging Face layout that `hf.save`
    writes ("sagax": our own names).
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
    qk_bias: bool = False
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
    recurrent: RecurrentConfig = RecurrentConfig()
    tied: bool = True
    pairs: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    init: str = "normal"
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "high"
    remat: str = "none"
    layers: str = "unrolled"
    attention: str = "auto"
    family: str = "sagax"

    def __post_init__(self) -> None:
        for name, part in PARTS.items():
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, _build(part, getattr(self, name)))
        for name in ("mixer", "ffn", "window"):
            value = getattr(self, name)
            if isinstance(value, str) and "," in value:  # as flags give it
                value = [entry.strip() for entry in value.split(",")]
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.remat, bool):
            object.__setattr__(self, "remat", "full" if self.remat else "none")
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

    @property
    def residual_std(self) -> float:
        """The deviation of what ends a residual branch: smaller by sqrt(2 x layers passed), as in GPT-2 and Takase
        et al. (2312.16903): depth must not grow the stream.
        """
        passed = self.n_layers
        if self.depth == "recurrent":
            passed += self.recurrent.core * (self.recurrent.mean - 1)
        return self.init_std / (2 * passed) ** 0.5

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; the new values are validated."""
        return dataclasses.replace(self, **_checked(Architecture, changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, JSON-able; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds from a dict or ConfigDict; an unknown key raises and names the nearest one."""
        return _build(cls, values.to_dict() if hasattr(values, "to_dict") else values)


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


def _validate(config: Architecture) -> None:
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
        "depth": DEPTHS,
        "init": INITS,
        "norm": NORM_PLACEMENTS,
        "norm_type": NORMS,
        "positions": POSITIONS,
        "activation": ACTIVATIONS,
        "dtype": DTYPES,
        "param_dtype": DTYPES,
        "precision": tuple(PRECISIONS),
        "remat": REMATS,
        "layers": ("unrolled", "scanned"),
        "attention": ("auto", "einsum", "blocked", "fused"),
    }
    check_choices("", config, choices)
    if config.depth == "recurrent":
        _check_recurrent(config)
    for name in ("mixer", "ffn", "window"):
        if len(config.per_layer(name)) != config.n_layers:
            raise ValueError(f"{name} has {len(config.per_layer(name))} entries for n_layers={config.n_layers}")
    for window in config.per_layer("window"):
        if window is not None and window < 1:
            raise ValueError(f"window must be None or positive, found {window}")
    if config.positions == "rope" and int(config.head_dim * config.rope.partial) % 2:
        raise ValueError(f"rope rotates pairs: head_dim={config.head_dim} x partial={config.rope.partial} must be even")


def _check_recurrent(config: Architecture) -> None:
    r = config.recurrent
    if r.prelude + r.core + r.coda != config.n_layers:
        raise ValueError(
            f"n_layers={config.n_layers}, but recurrent.prelude={r.prelude} + core={r.core} + coda={r.coda} make"
            f" {r.prelude + r.core + r.coda}"
        )
    if r.exit_gate and config.mtp.depth:
        raise ValueError(f"recurrent.exit_gate has no multi-token prediction: set mtp.depth={config.mtp.depth} to 0")
    if "moe" in config.per_layer("ffn") and config.moe.router == "expert_choice":
        raise ValueError('moe.router="expert_choice" has no recurrent depth: choose "top_k"')
