"""The parts of a ModelConfig: what each slot needs to know, frozen and validated on its own."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
SCORES = ("softmax", "sigmoid")
ROUTERS = ("top_k", "expert_choice")
GROUP_SCORES = ("top2", "max")
BALANCES = ("none", "sequence", "batch", "bias")
DISPATCHES = ("auto", "dense", "capacity", "ragged", "expert_parallel")
QUERY_NORMS = ("batch", "layer", "none")
GATES = ("softmax", "relu", "sigmoid")
SPACES = ("linear", "log")
DRAWS = ("fixed", "poisson", "lognormal")
INJECTIONS = ("concat", "add", "gate", "diagonal", "none")
STARTS = ("random", "zero", "embedding")
READOUTS = ("norm", "none")
# Weight of the auxiliary loss where none is given; under "bias" it is DeepSeek-V3's sequence-wise complement.
AUX_WEIGHTS = {"none": 0.0, "sequence": 1e-2, "batch": 1e-2, "bias": 1e-4}


def unknown(what: str, value: object, choices: Iterable[str]) -> str:
    """Message for a name that is not among `choices`, with the nearest one."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {value!r}.{hint} Choices: {', '.join(choices)}."


def check_choices(part: str, config: Any, choices: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError for a field of `config` whose value is not among its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(unknown(f"{part}{name}", getattr(config, name), allowed))


def check_at_least(part: str, config: Any, least: float, *names: str) -> None:
    """Raises ValueError for a field of `config` that is no number or smaller than `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise ValueError(f"{part}{name} must be at least {least}, found {value!r}")


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
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434).

    `q_rank` width of the compressed query (0: not compressed), `kv_rank` of the latent that is cached;
    per head `nope_dim` + `rope_dim` query and key dimensions and `v_dim` value dimensions.
    """

    q_rank: int = 0
    kv_rank: int = 64
    nope_dim: int = 32
    rope_dim: int = 16
    v_dim: int = 32

    def __post_init__(self) -> None:
        check_at_least("mla.", self, 0, "q_rank")
        check_at_least("mla.", self, 1, "kv_rank", "nope_dim", "rope_dim", "v_dim")
        if self.rope_dim % 2:
            raise ValueError(f"mla.rope_dim rotates pairs and must be even, found {self.rope_dim}")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts (DeepSeek-V3, 2412.19437 section 2.1; Mixtral, 2401.04088).

    `n_experts` of hidden width `d_expert` (0: d_ff), `top_k` per token, and `n_shared` that see every token, as one
    feed-forward of width `d_shared` (0: n_shared x d_expert), behind a sigmoid if `shared_gate`.
    The router scores by `score`, keeps the best `top_groups` of `n_groups` groups (by the sum of their two best experts
    or their best one), and weighs by the scores chosen, divided by their sum if `normalize`, times `scale`;
    "expert_choice" lets experts choose tokens instead.
    `balance`: nothing, an auxiliary loss of weight `aux_weight` per sequence or per batch, or a selection bias moved by
    `bias_rate` a step; `z_weight` of the router's z-loss.
    `dispatch` is how tokens reach experts; `capacity_factor` 0 drops none, else each expert takes at most that multiple
    of its fair share. Layers below `first_dense`, and all but every `every`-th, are dense where the slot says "moe".
    """

    n_experts: int = 8
    top_k: int = 2
    d_expert: int = 0
    n_shared: int = 0
    d_shared: int = 0
    shared_gate: bool = False
    score: str = "softmax"
    router: str = "top_k"
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1
    group_score: str = "top2"
    balance: str = "none"
    aux_weight: float | None = None
    bias_rate: float = 1e-3
    z_weight: float = 0.0
    dispatch: str = "auto"
    capacity_factor: float = 0.0
    first_dense: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        choices = {"score": SCORES, "router": ROUTERS, "group_score": GROUP_SCORES, "balance": BALANCES}
        check_choices("moe.", self, choices | {"dispatch": DISPATCHES})
        check_at_least("moe.", self, 1, "n_experts", "top_k", "n_groups", "top_groups", "every")
        check_at_least("moe.", self, 0, "d_expert", "n_shared", "d_shared", "bias_rate", "z_weight", "first_dense")
        check_at_least("moe.", self, 0, "capacity_factor", "loss_weight")
        if self.n_experts % self.n_groups:
            raise ValueError(f"moe.n_experts={self.n_experts} cannot be split evenly into n_groups={self.n_groups}")
        if self.top_groups > self.n_groups:
            raise ValueError(f"moe.top_groups={self.top_groups} of only n_groups={self.n_groups}")
        allowed = self.top_groups * (self.n_experts // self.n_groups)
        if self.top_k > allowed:
            of = f"{self.top_groups} of {self.n_groups} groups with {self.n_experts // self.n_groups} experts each"
            raise ValueError(f"moe.top_k={self.top_k} of only {allowed} allowed experts ({of})")
        if self.balance == "none" and self.aux_weight:
            raise ValueError(f'moe.aux_weight={self.aux_weight} weighs no loss under balance="none"')
        if self.shared_gate and not (self.n_shared or self.d_shared):
            raise ValueError("moe.shared_gate gates the shared expert, but n_shared and d_shared are 0")
        if self.router == "expert_choice" and (self.balance != "none" or self.top_groups != self.n_groups):
            stated = f"balance={self.balance!r}, top_groups={self.top_groups} of n_groups={self.n_groups}"
            raise ValueError(f"moe.router='expert_choice' is even by construction and knows no groups, found {stated}")

    @property
    def loss_weight(self) -> float:
        """The weight of the auxiliary loss, its default filled in."""
        return AUX_WEIGHTS[self.balance] if self.aux_weight is None else self.aux_weight

    def expert_width(self, d_ff: int) -> int:
        """Hidden width of a routed expert in a model of that d_ff."""
        return self.d_expert or d_ff

    def shared_width(self, d_ff: int) -> int:
        """Hidden width of the shared experts together; 0 without any."""
        return self.d_shared or self.n_shared * self.expert_width(d_ff)


@dataclasses.dataclass(frozen=True)
class PEERConfig:
    """Parameter-efficient expert retrieval (2407.04153): `n_experts` single neurons behind product keys.

    `heads` retrieve `top_k` each with queries of `key_dim` (both halves together; 0: d_model), normalised by
    `query_norm`; keys are shared by the heads or not; `gate` turns scores into weights; `separate` gives each head its
    own table. Tokens go through in chunks of `chunk` (0: chosen to bound memory); `momentum` keeps that share of the
    running statistics each step. `banks` are the sizes of banks grown later, each beside frozen older ones.
    """

    n_experts: int = 4096
    heads: int = 8
    top_k: int = 16
    key_dim: int = 0
    query_norm: str = "batch"
    share_keys: bool = True
    gate: str = "softmax"
    separate: bool = False
    activation: str = "gelu"
    chunk: int = 0
    momentum: float = 0.9
    banks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "banks", tuple(self.banks))
        check_choices("peer.", self, {"query_norm": QUERY_NORMS, "gate": GATES, "activation": ACTIVATIONS})
        check_at_least("peer.", self, 1, "n_experts", "heads", "top_k")
        check_at_least("peer.", self, 0, "key_dim", "chunk", "momentum")
        for name, experts in [("n_experts", self.n_experts), *(("banks", size) for size in self.banks)]:
            keys = math.isqrt(experts)
            if keys**2 != experts:
                near = f"{keys**2} or {(keys + 1) ** 2}"
                raise ValueError(f"peer.{name}={experts} must be a square (product keys): try {near}")
            if self.top_k > keys:
                raise ValueError(f"peer.top_k={self.top_k} of only {keys} keys per half; enlarge peer.{name}={experts}")
        if self.key_dim % 2:
            raise ValueError(f"peer.key_dim={self.key_dim} is cut into two halves and must be even")


@dataclasses.dataclass(frozen=True)
class RNNConfig:
    """minGRU and minLSTM (2410.01201).

    `expansion` of the state over d_model; `conv` width of the causal convolution before it (0: none); `space` of the
    scan; `learned_start` trains the first state; `forget_bias` is added to minLSTM's forget gate at the start; `bias`
    on the projections; `coefficient_norm` makes minLSTM's two gates sum to 1.
    """

    expansion: float = 1.0
    conv: int = 0
    space: str = "linear"
    learned_start: bool = False
    forget_bias: float = 0.0
    bias: bool = False
    coefficient_norm: bool = True

    def __post_init__(self) -> None:
        check_choices("rnn.", self, {"space": SPACES})
        check_at_least("rnn.", self, 0, "conv", "expansion")
        if self.expansion <= 0:
            raise ValueError(f"rnn.expansion must be positive, found {self.expansion}")


@dataclasses.dataclass(frozen=True)
class MTPConfig:
    """Multi-token prediction (DeepSeek-V3, section 2.2): `depth` modules, their losses weighted `weight` / depth.

    Where no number of modules is asked for there are none; a run that starts from a model keeps that model's.
    """

    depth: int = None  # type: ignore[assignment]  # None becomes 0
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.depth is None:
            object.__setattr__(self, "depth", 0)
        check_at_least("mtp.", self, 0, "depth", "weight")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Recurrent depth (2502.05171): `prelude` layers once, `core` layers again and again, `coda` layers once.

    `mean` iterations, which training draws anew for every micro-batch (or, `per_sequence`, for every row) as `draw`
    says: "fixed", 1 + "poisson"(mean - 1), or "lognormal", 1 + Poisson(mean x exp(N(-sigma^2 / 2, sigma))). Only the
    last `grad_steps` carry gradient. Each iteration begins with an `injection` of the prelude's output into the state:
    a learned map of both ("concat"), their sum ("add"), a learned "gate" between them, Parcae's decaying "diagonal"
    (2604.12946), or "none". The state starts "random", as "zero", or as the prelude's output ("embedding"); `readout`
    "norm" puts the model's final norm between core and coda as well. A cache keeps keys of the last `kv_slots`
    iterations, which share them in turn (0: of all). `exit_gate` learns after which iteration to stop, as Ouro does
    (2510.25741): every iteration up to `mean` is trained to predict, weighed by the gate, whose distribution keeps an
    entropy rewarded by `exit_entropy`.
    """

    prelude: int = 1
    core: int = 1
    coda: int = 1
    mean: int = 8
    draw: str = "fixed"
    sigma: float = 0.5
    per_sequence: bool = False
    grad_steps: int = 8
    injection: str = "concat"
    start: str = "random"
    readout: str = "norm"
    kv_slots: int = 0
    exit_gate: bool = False
    exit_entropy: float = 0.05

    def __post_init__(self) -> None:
        choices = {"draw": DRAWS, "injection": INJECTIONS, "start": STARTS, "readout": READOUTS}
        check_choices("recurrent.", self, choices)
        check_at_least("recurrent.", self, 0, "prelude", "coda", "sigma", "kv_slots", "exit_entropy")
        check_at_least("recurrent.", self, 1, "core", "mean", "grad_steps")
        if self.injection == "none" and self.start != "embedding":
            raise ValueError(
                f'recurrent.injection="none" with start={self.start!r} would never show the core its input; start from'
                ' "embedding", or inject'
            )
        if self.exit_gate and self.draw != "fixed":
            raise ValueError(
                f'recurrent.exit_gate trains every iteration up to mean={self.mean}: leave draw="fixed", found'
                f" {self.draw!r}"
            )


PARTS: dict[str, type] = {
    "rope": RopeConfig,
    "mla": MLAConfig,
    "moe": MoEConfig,
    "peer": PEERConfig,
    "rnn": RNNConfig,
    "mtp": MTPConfig,
    "recurrent": RecurrentConfig,
}
