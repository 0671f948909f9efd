"""All settings of a run: those at the top of a config, and the groups that the other files of this room declare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from settings.corpus import CorpusConfig
from settings.data import BY_GATE, DataConfig, ThoughtsConfig, TokenizerConfig, is_depth
from settings.model import Architecture
from settings.optimizer import OptimizerConfig
from settings.preference import DistillConfig, PreferenceConfig, RewardModelConfig
from settings.rl import RLConfig
from settings.setting import REQUIRED, check, from_mapping, setting
from settings.stages import ExportConfig, MergeConfig, PairsConfig, SampleConfig, ScoringConfig
from settings.strategies import STRATEGIES, strategy_options

WARM_STARTS = ("", "raw", "normed")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1, what is left, and all 1 is a single device."""

    data: int = setting(1, "rows")
    fsdp: int = setting(-1, "rows; parameters and moments by their embedding axis")
    expert: int = setting(1, "rows; experts")
    tensor: int = setting(1, "heads, hidden widths, vocabulary")
    context: int = setting(1, "columns")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is measured beside training: answers to held-out questions, and the loss on held-out demonstrations."""

    every: int = setting(0, "steps between evaluations; 0: only at the end", low=0)
    at_start: bool = setting(False, "also before the first step")
    split: str = setting("test", "of the task, or a JSON-lines file of its examples", reference=True)
    examples: int = setting(256, "questions asked; 0: none, losses alone", low=0)
    by: str = setting("", "a field of the examples; accuracy is also reported for each of its values")
    max_new_tokens: int = setting(64, "tokens of an answer, at most", low=1)
    temperature: float = setting(0.0, "of the distribution sampled from; 0: the most probable token", low=0)
    samples: int = setting(1, "answers to a question, or candidates that eval.strategy chooses among", low=1)
    strategy: str = setting("sample", "how a question is answered with more compute", choices=tuple(STRATEGIES))
    strategy_options: Mapping[str, Any] = setting({}, "of the strategy, see docs/test_time.md")
    reward_model: str = setting("", "the folder of a reward model, for strategies that score by one", reference=True)
    slots: int = setting(0, "rows decoded at once; 0: all", low=0)
    loss_batches: int = setting(0, "batches of held-out demonstrations whose answer loss is measured", low=0)
    depth: int | str = setting(
        0,
        "iterations of a recurrent core; 0: model.recurrent.mean; task: those that the task names for an example; gate:"
        " where the exit gate's chance to have stopped at the prompt's end reaches exit_threshold",
    )
    depths: tuple[int, ...] = setting((), "accuracy and answer loss are also reported at each of these")
    exit: str = setting("", "the criterion of model/exit.py that ends a token's iterations early")
    exit_threshold: float = setting(0.0, "of exit, or of depth=gate; 0: the criterion's own", low=0)
    warm_start: str = setting(
        "", "a token starts from the state of the one before, as it is or normed", choices=WARM_STARTS
    )
    thoughts: int | None = setting(None, "so many thoughts, whatever the stage, of algorithm=coconut", low=0)
    positions: tuple[int, ...] = setting((), "rising; the answer loss is also reported from each to the next")

    def __post_init__(self) -> None:
        check(self, "eval.", self.eval_faults())

    def eval_faults(self) -> Iterator[str]:
        """Nothing to measure, depths below 1, positions out of order, options that the strategy does not have."""
        try:
            strategy_options(self.strategy, self.strategy_options)
        except (TypeError, ValueError) as error:
            yield f"eval.strategy_options: {error}"
        if not (self.examples or self.loss_batches):
            yield (
                f"eval.examples must be at least 1, or 0 with eval.loss_batches at least 1; found {self.examples} and"
                f" {self.loss_batches}"
            )
        if min((1, *self.depths)) < 1 or not is_depth(self.depth):
            found = f"{self.depth}, {self.depths}"
            yield f'eval.depth is "task", "gate" or a number, eval.depths are numbers from 1 up; found {found}'
        if self.depth == BY_GATE and self.exit:
            yield f'eval.depth="gate" ends all tokens of an answer together, eval.exit={self.exit!r} each: give one'
        if list(self.positions) != sorted({int(p) for p in self.positions if p > 0}):
            yield f"eval.positions must be whole, positive and rising, found {self.positions}"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run's states."""

    every: int = setting(100, "steps between checkpoints; 0: only the last", low=0)
    keep_last: int = setting(2, "of the newest", low=1)
    keep_best: int = setting(1, "of those with the best evaluation", low=0)

    def __post_init__(self) -> None:
        check(self, "checkpoint.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written down while a run goes on."""

    every: int = setting(1, "steps between records of metrics.jsonl", low=1)
    samples: int = setting(8, "samples of an evaluation or a rollout written to samples.jsonl", low=0)
    tensorboard: bool = setting(False, "also write TensorBoard's event files")
    wandb: bool = setting(False, "also log to Weights & Biases")

    def __post_init__(self) -> None:
        check(self, "log.")


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """What a run takes of a cluster."""

    cpus: int = setting(1, "cores of each node", low=1)
    gpus: int = setting(0, "GPUs of each node", low=0)
    nodes: int = setting(1, "nodes, with one process each", low=1)
    tpu: str = setting("", "a slice, generation and topology, such as v5e:4x4")
    memory_gb: float = setting(0.0, "memory of each node; 0: what the cluster gives", low=0)
    hours: float = setting(24.0, "of a Slurm job, which then saves and queues again", above=0)
    partition: str = setting("", "Slurm's partition")
    options: Mapping[str, Any] = setting({}, "further flags of sbatch, such as account and constraint")

    def __post_init__(self) -> None:
        check(self, "launch.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every setting there is.

    A pipeline names its `stages` in order and keeps in `stage.<name>` what that stage changes in the rest, so that a
    setting given at the top reaches every stage that does not set its own.
    """

    name: str = setting("run", "what the run is called", whole_run=True)
    algorithm: str = setting("sft", "a name of ALGORITHMS in train/algorithms.py")
    stages: tuple[str, ...] = setting((), "a pipeline's stages in order", whole_run=True)
    stage: Mapping[str, Any] = setting({}, "what each stage changes", whole_run=True)
    seed: int = setting(0, "of all that is drawn")
    steps: int = setting(100, "updates of the parameters", low=1)
    init_from: str = setting("", "a run directory, or a folder in the Hub's layout, to start from", reference=True)
    model: Architecture = setting(REQUIRED, "what the network is")
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), "how text becomes tokens")
    data: DataConfig = setting(DataConfig(), "what to learn from")
    corpus: CorpusConfig = setting(CorpusConfig(), "documents to pretrain on, for algorithm=pretrain")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "how gradients move the parameters")
    micro_batch: int = setting(0, "rows per gradient; 0: the whole batch at once", low=0)
    max_bad_steps: int = setting(5, "non-finite updates in a row before the run stops", low=1, executes=True)
    mesh: MeshConfig = setting(MeshConfig(), "devices along each axis", executes=True)
    sharding: str = setting("", "other rules for logical axes, such as embed=fsdp+data,mlp=none", executes=True)
    rl: RLConfig = setting(RLConfig(), "rollouts and policy loss, for algorithm=grpo")
    thoughts: ThoughtsConfig = setting(ThoughtsConfig(), "continuous thoughts, for algorithm=coconut")
    preference: PreferenceConfig = setting(PreferenceConfig(), "losses of pairs, for algorithm=preference")
    reward: RewardModelConfig = setting(RewardModelConfig(), "models that score, for algorithm=reward, process_reward")
    distill: DistillConfig = setting(DistillConfig(), "distances from a teacher, for algorithm=distill")
    sample: SampleConfig = setting(SampleConfig(), "answers that are judged, filtered and kept")
    score: ScoringConfig = setting(ScoringConfig(), "rewards of texts in a file")
    pairs: PairsConfig = setting(PairsConfig(), "pairs made of samples")
    merge: MergeConfig = setting(MergeConfig(), "one model of several")
    export: ExportConfig = setting(ExportConfig(), "a folder in the Hub's layout")
    eval: EvalConfig = setting(EvalConfig(), "what is measured beside training", executes=True)
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "what is kept", executes=True)
    log: LogConfig = setting(LogConfig(), "what is written down", executes=True)
    launch: LaunchConfig = setting(LaunchConfig(), "what the run takes of a cluster", executes=True)

    def __post_init__(self) -> None:
        check(self)


def run_config(config: Mapping[str, Any], model: Architecture | None = None) -> RunConfig:
    """The settings of a single run, frozen and validated, from its ConfigDict; `model` is what was made of its own.

    Raises ValueError for values that are no choices, out of their bounds or at odds with each other.
    """
    return from_mapping(RunConfig, config, model=model)
