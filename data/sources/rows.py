"""How sources make rows, as data: one frozen dataclass per kind of source, with the names of `config.data`."""

from dataclasses import dataclass
from typing import Any

from data.depths import ExampleDepths
from data.names import unknown_name
from data.sources.source import Share

TOO_LONG = ("error", "drop", "truncate")
LOSS_ON = ("answer", "all")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What all sources share: `batch_size` rows of this process from a shuffled `split`.

    `template`, `system`: how prompts are rendered (data/chat.py); `prefetch`: batches made ahead by a thread, 0 for
    none. Raises ValueError for impossible values.
    """

    batch_size: int
    split: str = "train"
    seed: int = 0
    template: str = "none"
    system: str | None = None
    process_index: int = 0
    process_count: int = 1
    prefetch: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)
        check_at_least(0, prefetch=self.prefetch)
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index {self.process_index} is not in 0..{self.process_count - 1}")

    @property
    def share(self) -> Share:
        """This process's part of a batch."""
        return Share(self.process_index, self.process_count)

    @property
    def global_batch_size(self) -> int:
        """Rows of all processes."""
        return self.batch_size * self.process_count

    def identity(self, examples: int) -> dict[str, Any]:
        """What must be equal for a state of a source to fit another over a split of `examples` examples."""
        return {
            "split": self.split,
            "examples": examples,
            "batch_size": self.global_batch_size,
            "seed": self.seed,
            "unit": "batches",
        }


@dataclass(frozen=True, kw_only=True)
class TextRows(Rows):
    """Rows of demonstrations: `length` columns, with `pack` several whole examples per row.

    `too_long`: `error`, `drop` or `truncate` for examples of more than `length` tokens; `loss_on`: the mask is 1 on the
    `answer`, or on `all` tokens. With `depths` each row has the iterations of its example, so that none are packed, and
    the rows of a batch are in the order of them: micro-batches are of like depth.
    """

    length: int
    pack: bool = False
    too_long: str = "error"
    loss_on: str = "answer"
    depths: ExampleDepths | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, length=self.length)
        if self.pack and self.depths:
            raise ValueError(
                'recurrent.draw="task" gives a row the depth of its example, and data.pack=True puts several into one;'
                " set data.pack=False"
            )
        if self.too_long not in TOO_LONG:
            raise unknown_name("too_long policy", self.too_long, TOO_LONG)
        if self.loss_on not in LOSS_ON:
            raise unknown_name("loss_on", self.loss_on, LOSS_ON)

    def identity(self, examples: int) -> dict[str, Any]:
        """That of all rows, and their shape."""
        return super().identity(examples) | {"length": self.length, "pack": self.pack, "loss_on": self.loss_on}


@dataclass(frozen=True, kw_only=True)
class PromptRows(Rows):
    """Prompts of at most `max_prompt_length` tokens (None: any); `too_long`: `error` or `drop` for longer ones."""

    max_prompt_length: int | None = None
    too_long: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.too_long not in ("error", "drop"):
            raise unknown_name("too_long policy of prompts", self.too_long, ("error", "drop"))


@dataclass(frozen=True, kw_only=True)
class ThoughtRows(Rows):
    """Rows for continuous thoughts: `length` columns, first latents in column `first` (see `data.thoughts.sizes`).

    `mixed`: rows draw other stages and offsets, as the curriculum says; `paired`: with CODI's second view;
    `step_length`: with the steps that thoughts stand for, in so many columns each (0: without).
    """

    first: int
    length: int
    mixed: bool = True
    paired: bool = False
    step_length: int = 0


def check_at_least(least: int, **sizes: int) -> None:
    """Raises ValueError for a size below `least`, by name."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
