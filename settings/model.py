"""What a network is, as frozen and validated data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from settings.model_parts import (
    ACTIVATIONS,
    PARTS,
    DeltaConfig,
    MLAConfig,
    MoEConfig,
    MTPConfig,
    PEERConfig,
    RecurrentConfig,
    RNNConfig,
    RopeConfig,
    ScoreConfig,
)
from settings.setting import REQUIRED, check, setting, unknown

NORMS = ("rmsnorm", "layernorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "peri")
DEPTHS = ("stack", "recurrent")
INITS = ("normal", "truncated")
POSITIONS = ("rope", "learned", "none")
REMATS = ("none", "full", "dots", "attention", "offload")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("high", "fp8", "fp8_pow2", "fp8_tensor", "fp8_block_gradient")
LAYERS = ("unrolled", "scanned")
ATTENTIONS = ("auto", "einsum", "blocked", "fused")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder: sizes, slots and switches; what a recipe leaves open its tokenizer or init_from tells."""

    vocab_size: int = setting(REQUIRED, "tokens; 0 in a recipe: the tokenizer's", low=1, unset=0)
    d_model: int = setting(REQUIRED, "width of the residual stream", low=1, unset=0)
    n_layers: int = setting(REQUIRED, "layers", low=1, unset=0)
    n_heads: int = setting(REQUIRED, "query heads", low=1, unset=0)
    d_ff: int = setting(REQUIRED, "hidden width of a dense feed-forward", low=1, unset=0)
    n_kv_heads: int = setting(None, "heads of keys and values; None: n_heads", low=1)
    head_dim: int = setting(None, "dimensions of a head; None: d_model / n_heads", low=1)
    max_length: int = setting(2048, "the context: positions that the model can see", low=1, trained="change")
    mixer: str | tuple[str, ...] = setting("gqa", "a name of MIXERS in model/block.py, or one per layer")
    ffn: str | tuple[str, ...] = setting("glu", "a name of FEED_FORWARDS in model/block.py, or one per layer")
    depth: str = setting("stack", "run the layers once, or some of them again and again", choices=DEPTHS)
    norm: str = setting("pre", "where norms stand (model/block.py)", choices=NORM_PLACEMENTS)
    norm_type: str = setting("rmsnorm", "the norm's function", choices=NORMS)
    norm_eps: float = setting(1e-6, "added to the norm's variance")
    norm_plus_one: bool = setting(False, "norms multiply by 1 + their scale, which begins at 0")
    activation: str = setting("silu", "of feed-forwards", choices=ACTIVATIONS)
    qkv_bias: bool = setting(False, "a bias on queries, keys and values")
    qk_bias: bool = setting(False, "a bias on queries and keys alone")
    out_bias: bool = setting(False, "a bias on attention's output")
    out_gate: bool = setting(
        False, "a sigmoid of a projection of the input weighs attention's output, dimension by dimension"
    )
    mlp_bias: bool = setting(False, "biases in feed-forwards, experts included (not in peer)")
    glu_limit: float | None = setting(
        None, "of gated units: gates are at most this, what they multiply at most this in size; None: any", above=0
    )
    glu_offset: float = setting(0.0, "of gated units: added to what gates multiply")
    qk_norm: bool = setting(False, "queries and keys are normalised, head by head")
    sinks: bool = setting(False, "a learnt logit per head joins attention's softmax and takes its share")
    query_scalar: float | None = setting(None, "scores are divided by its square root; None: head_dim", above=0)
    window: int | tuple[int | None, ...] | None = setting(
        None, "keys seen, also one number per layer", trained="change"
    )
    positions: str = setting("rope", "how tokens know their place", choices=POSITIONS)
    rope: RopeConfig = setting(RopeConfig(), "rotary position embedding", trained="change")
    mla: MLAConfig = setting(MLAConfig(), "multi-head latent attention, of mixer=mla")
    moe: MoEConfig = setting(MoEConfig(), "mixture of experts, of ffn=moe")
    peer: PEERConfig = setting(PEERConfig(), "expert retrieval, of ffn=peer")
    rnn: RNNConfig = setting(RNNConfig(), "recurrences, of mixer=mingru and minlstm")
    delta: DeltaConfig = setting(DeltaConfig(), "gated delta rule, of mixer=gated_delta")
    mtp: MTPConfig = setting(MTPConfig(), "multi-token prediction")
    recurrent: RecurrentConfig = setting(RecurrentConfig(), "recurrent depth, of depth=recurrent")
    score: ScoreConfig = setting(ScoreConfig(), "scores in the place of logits, for reward models")
    tied: bool = setting(True, "the output layer is the embedding")
    pairs: bool = setting(False, "two tokens joined by ~ are one position: id V + a V + b is the pair (a, b)")
    embed_scale: float = setting(1.0, "multiplies embeddings")
    logit_scale: float = setting(1.0, "multiplies logits")
    init: str = setting("normal", "of weights; truncated at three deviations", choices=INITS)
    init_std: float = setting(0.02, "deviation of the first weights")
    dtype: str = setting("float32", "of computation; auto: by platform", choices=DTYPES, unset="auto", trained="own")
    param_dtype: str = setting("float32", "of stored parameters", choices=DTYPES, trained="own")
    precision: str = setting(
        "high", "of large matrix products (model/precision.py)", choices=PRECISIONS, trained="change"
    )
    remat: str = setting("none", "what a backward pass finds kept (model/remat.py)", choices=REMATS, trained="own")
    layers: str = setting("unrolled", "scanned: like layers compile as one loop", choices=LAYERS, trained="own")
    attention: str = setting("auto", "how it is computed; auto: by platform", choices=ATTENTIONS, trained="own")
    family: str = setting("sagax", "the Hugging Face layout that hf.save writes; sagax: our own names")

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
            return tuple("moe" if is_sparse else "glu" for is_sparse in sparse)
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
    check(config)
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
