"""The parts of a ModelConfig: what each slot needs to know, frozen and validated on its own."""

from __future__ import annotations

import dataclasses
import math

from settings.setting import check, setting

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "quick_gelu")
SCORES = ("softmax", "sigmoid")
ROUTERS = ("top_k", "expert_choice")
GROUP_SCORES = ("top2", "max")
BALANCES = ("none", "sequence", "batch", "bias")
DISPATCHES = ("auto", "dense", "capacity", "ragged", "expert_parallel")
QUERY_NORMS = ("batch", "layer", "none")
GATES = ("softmax", "relu", "sigmoid")
SPACES = ("linear", "log")
DRAWS = ("fixed", "poisson", "lognormal", "task")
INJECTIONS = ("concat", "add", "gate", "diagonal", "none")
STARTS = ("random", "zero", "embedding")
READOUTS = ("norm", "none", "loop")
EXIT_STAGES = ("joint", "gate")
# Weight of the auxiliary loss where none is given; under "bias" it is DeepSeek-V3's sequence-wise complement.
AUX_WEIGHTS = {"none": 0.0, "sequence": 1e-2, "batch": 1e-2, "bias": 1e-4}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding."""

    kind: str = setting("default", "how frequencies follow from the base", choices=ROPE_KINDS)
    theta: float = setting(10_000.0, "the base", above=0)
    local_theta: float | None = setting(
        None, "the base in layers with a window, whose context is not extended; None: no other", above=0
    )
    factor: float = setting(1.0, "context extension", above=0)
    original_length: int | None = setting(None, "the length trained before the extension")
    partial: float = setting(1.0, "share of the head dimension that is rotated", above=0, high=1)
    interleaved: bool = setting(False, "pairs (0, 1), (2, 3) ... instead of halves")
    attention_factor: float | None = setting(None, "multiplies cos and sin; None: the kind's own rule")
    low_freq_factor: float = setting(1.0, "of llama3: wavelengths above original_length / this are stretched")
    high_freq_factor: float = setting(4.0, "of llama3: wavelengths below original_length / this stay")
    beta_fast: float = setting(32.0, "of yarn: rotations from which on a dimension stays")
    beta_slow: float = setting(1.0, "of yarn: rotations up to which a dimension is stretched")
    truncate: bool = setting(True, "of yarn: the bounds between them are whole dimensions")
    mscale: float | None = setting(None, "of yarn: weight of the logarithm in the attention factor")
    mscale_all_dim: float | None = setting(None, "of yarn: that of the attention factor's denominator")
    short_factor: tuple[float, ...] | None = setting(
        None, "of longrope: divisors of the frequencies within original_length"
    )
    long_factor: tuple[float, ...] | None = setting(None, "of longrope: divisors beyond it")

    def __post_init__(self) -> None:
        check(self, "rope.")
        if self.kind == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ValueError("longrope needs short_factor and long_factor")
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(map(float, value)))


@dataclasses.dataclass(frozen=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434)."""

    q_rank: int = setting(0, "width of the compressed query; 0: not compressed", low=0)
    kv_rank: int = setting(64, "width of the latent that is cached", low=1)
    nope_dim: int = setting(32, "query and key dimensions per head without position", low=1)
    rope_dim: int = setting(16, "query and key dimensions per head that are rotated", low=1)
    v_dim: int = setting(32, "value dimensions per head", low=1)

    def __post_init__(self) -> None:
        check(self, "mla.")
        if self.rope_dim % 2:
            raise ValueError(f"mla.rope_dim rotates pairs and must be even, found {self.rope_dim}")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts (DeepSeek-V3, 2412.19437 section 2.1; Mixtral, 2401.04088)."""

    n_experts: int = setting(8, "routed experts", low=1)
    top_k: int = setting(2, "experts per token", low=1)
    d_expert: int = setting(0, "hidden width of an expert; 0: d_ff", low=0)
    n_shared: int = setting(0, "experts that see every token, as one feed-forward", low=0)
    d_shared: int = setting(0, "hidden width of the shared experts together; 0: n_shared x d_expert", low=0)
    shared_gate: bool = setting(False, "a sigmoid weighs the shared experts")
    score: str = setting("softmax", "what the router makes of its logits", choices=SCORES)
    router_bias: bool = setting(False, "a learnt bias on the router's logits")
    router: str = setting("top_k", "tokens choose experts, or experts tokens", choices=ROUTERS)
    normalize: bool = setting(True, "the scores chosen are divided by their sum")
    scale: float = setting(1.0, "multiplies the weights of the experts")
    n_groups: int = setting(1, "groups that the experts are in", low=1)
    top_groups: int = setting(1, "groups that a token may choose from", low=1)
    group_score: str = setting(
        "top2", "a group counts by the sum of its two best experts, or by its best", choices=GROUP_SCORES
    )
    balance: str = setting("none", "an auxiliary loss per sequence or batch, or a selection bias", choices=BALANCES)
    aux_weight: float | None = setting(
        None, "weight of the auxiliary loss; None: what is usual for the balance chosen", low=0, trained="change"
    )
    bias_rate: float = setting(1e-3, "how far a step moves the selection bias", low=0, trained="change")
    z_weight: float = setting(0.0, "weight of the router's z-loss", low=0, trained="change")
    dispatch: str = setting(
        "auto", "how tokens reach experts; auto: by platform (model/platform.py)", choices=DISPATCHES, trained="change"
    )
    capacity_factor: float = setting(
        0.0, "an expert takes at most this multiple of its fair share; 0: no token is dropped", low=0, trained="change"
    )
    first_dense: int = setting(0, "layers below this are dense where the slot says moe", low=0)
    every: int = setting(1, "and of the others all but every so many", low=1)

    def __post_init__(self) -> None:
        check(self, "moe.")
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
            found = f"balance={self.balance!r}, top_groups={self.top_groups} of n_groups={self.n_groups}"
            raise ValueError(f"moe.router='expert_choice' is even by construction and knows no groups, found {found}")

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
    """Parameter-efficient expert retrieval (2407.04153): single neurons behind product keys."""

    n_experts: int = setting(4096, "experts, a square number", low=1)
    heads: int = setting(8, "retrieval heads", low=1)
    top_k: int = setting(16, "experts that a head retrieves", low=1)
    key_dim: int = setting(0, "width of a query, both halves together; 0: d_model", low=0)
    query_norm: str = setting("batch", "normalises the queries", choices=QUERY_NORMS)
    share_keys: bool = setting(True, "all heads have the same keys")
    gate: str = setting("softmax", "turns scores into weights", choices=GATES)
    separate: bool = setting(False, "each head has a table of experts of its own")
    activation: str = setting("gelu", "of an expert's neuron", choices=ACTIVATIONS)
    chunk: int = setting(0, "tokens that go through at once; 0: chosen to bound memory", low=0, trained="change")
    momentum: float = setting(0.9, "share of the running statistics that a step keeps", low=0, trained="change")
    banks: tuple[int, ...] = setting((), "sizes of banks grown later, each beside frozen older ones")

    def __post_init__(self) -> None:
        object.__setattr__(self, "banks", tuple(self.banks))
        check(self, "peer.")
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
    """minGRU and minLSTM (2410.01201)."""

    expansion: float = setting(1.0, "width of the state over d_model", above=0)
    conv: int = setting(0, "width of the causal convolution before the recurrence; 0: none", low=0)
    space: str = setting("linear", "in which the recurrence is computed", choices=SPACES)
    learned_start: bool = setting(False, "train the first state")
    forget_bias: float = setting(0.0, "added to minLSTM's forget gate at the start")
    bias: bool = setting(False, "of the projections")
    coefficient_norm: bool = setting(True, "minLSTM's two gates sum to 1")

    def __post_init__(self) -> None:
        check(self, "rnn.")


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """Gated DeltaNet (2412.06464)."""

    key_heads: int = setting(0, "heads of queries and keys; 0: n_heads", low=0)
    value_heads: int = setting(0, "heads of values, a multiple of those of keys; 0: as many", low=0)
    key_dim: int = setting(0, "dimensions of a query and a key; 0: head_dim", low=0)
    value_dim: int = setting(0, "dimensions of a value; 0: as many", low=0)
    conv: int = setting(4, "width of the causal convolution of queries, keys and values", low=1)
    chunk: int = setting(64, "columns computed at once, a power of two", low=1, trained="change")

    def __post_init__(self) -> None:
        check(self, "delta.")
        if self.chunk & (self.chunk - 1):
            raise ValueError(f"delta.chunk={self.chunk} must be a power of two")

    def filled(self, n_heads: int, head_dim: int) -> DeltaConfig:
        """The sizes of a model with such attention heads; ValueError where values' heads share no keys evenly."""
        heads, key = self.key_heads or n_heads, self.key_dim or head_dim
        values, width = self.value_heads or heads, self.value_dim or key
        if values % heads:
            raise ValueError(f"delta.value_heads={values} is no multiple of delta.key_heads={heads}")
        return dataclasses.replace(self, key_heads=heads, value_heads=values, key_dim=key, value_dim=width)


@dataclasses.dataclass(frozen=True)
class MTPConfig:
    """Multi-token prediction (DeepSeek-V3, 2412.19437 section 2.2)."""

    depth: int = setting(None, "modules; None: as many as init_from has, else 0", low=0)
    weight: float = setting(0.3, "of their losses together", low=0, trained="change")

    def __post_init__(self) -> None:
        if self.depth is None:
            object.__setattr__(self, "depth", 0)
        check(self, "mtp.")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Recurrent depth (2502.05171): prelude layers once, core layers again and again, coda layers once."""

    prelude: int = setting(1, "layers run once before the core", low=0)
    core: int = setting(1, "layers run again and again", low=1)
    coda: int = setting(1, "layers run once after the core", low=0)
    mean: int = setting(8, "iterations of the core, on average where they are drawn", low=1, trained="change")
    draw: str = setting(
        "fixed",
        "iterations in training: mean, 1 + Poisson(mean - 1), 1 + Poisson(mean x exp(N(-sigma^2 / 2, sigma))), or"
        " those that the task names for an example",
        choices=DRAWS,
        trained="change",
    )
    sigma: float = setting(0.5, "spread of the lognormal draw", low=0, trained="change")
    ramp: int = setting(0, "steps of training over which the mean rises from 1; 0: none", low=0, trained="own")
    per_sequence: bool = setting(False, "every row has a draw of its own, not every micro-batch", trained="change")
    grad_steps: int = setting(8, "the last iterations, which alone carry gradient", low=1, trained="change")
    injection: str = setting(
        "concat",
        "the prelude's output enters the state: by a learned map, a sum, a gate, Parcae's decay (2604.12946)",
        choices=INJECTIONS,
    )
    start: str = setting("random", "the first state; embedding: the prelude's output", choices=STARTS)
    readout: str = setting(
        "norm",
        "the model's final norm also stands between core and coda, or not, or ends every iteration (loop), as in Ouro",
        choices=READOUTS,
    )
    kv_slots: int = setting(0, "iterations whose keys a cache holds, shared in turn; 0: all", low=0, trained="change")
    exit_gate: bool = setting(
        False, "learn after which iteration to stop, as Ouro (2510.25741): all are trained, weighed by a gate"
    )
    exit_stage: str = setting(
        "joint",
        "what learns: model and gate, or the gate alone beside a frozen model: by what an iteration gains (stage II),"
        " or with rl.depth=gate by rewards",
        choices=EXIT_STAGES,
        trained="own",
    )
    exit_entropy: float = setting(
        0.05, "weight of the gate's entropy bonus, of exit_stage=joint", low=0, trained="change"
    )
    exit_slope: float = setting(
        50.0, "how sharply a gain in cross entropy asks to go on, of exit_stage=gate", above=0, trained="change"
    )
    exit_margin: float = setting(
        0.005,
        "the gain in nats at which going on and stopping weigh the same, of exit_stage=gate",
        low=0,
        trained="change",
    )
    exit_threshold: float = setting(
        0.5,
        "a token leaves by exit=gate once the chance to have stopped has reached it, where no threshold is given",
        above=0,
        high=1,
        trained="change",
    )

    def __post_init__(self) -> None:
        check(self, "recurrent.")
        if self.injection == "none" and self.start != "embedding":
            raise ValueError(
                f'recurrent.injection="none" with start={self.start!r} would never show the core its input; start from'
                ' "embedding", or inject'
            )
        if self.ramp and (self.draw == "task" or self.exit_gate):
            raise ValueError(
                f"recurrent.ramp={self.ramp} draws depths at a mean that rises, found draw={self.draw!r},"
                f" exit_gate={self.exit_gate}: leave the ramp out, or the gate, or take another draw"
            )
        if self.exit_gate and self.draw != "fixed":
            raise ValueError(
                f'recurrent.exit_gate trains every iteration up to mean={self.mean}: leave draw="fixed", found'
                f" {self.draw!r}"
            )
        if self.exit_stage == "gate" and not (self.exit_gate and self.mean > 1):
            raise ValueError(
                'recurrent.exit_stage="gate" trains the gate of a model with exit_gate=True and two iterations or more,'
                f" found exit_gate={self.exit_gate}, mean={self.mean}"
            )


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Scores in the place of logits: one for a text (a reward model), or one of each class for its steps."""

    size: int = setting(0, "scores of a position in the place of logits; 0: a language model", low=0, trained="change")
    bias: bool = setting(False, "a bias on scores", trained="change")
    pad: int | None = setting(
        None,
        "a token that is passed over at the end of a text: the one before it is scored",
        low=0,
        trained="change",
    )

    def __post_init__(self) -> None:
        check(self, "score.")


PARTS: dict[str, type] = {
    "rope": RopeConfig,
    "mla": MLAConfig,
    "moe": MoEConfig,
    "peer": PEERConfig,
    "rnn": RNNConfig,
    "delta": DeltaConfig,
    "mtp": MTPConfig,
    "recurrent": RecurrentConfig,
    "score": ScoreConfig,
}
