"""What one compiled sampler is made of, as a pure function of what is asked: `generate` and plans of pods call it."""

from __future__ import annotations

from dataclasses import dataclass

from infer.draft import Draft, check_draft
from infer.recurrence import Recurrence, RecurrencePlan, plan_recurrence
from infer.sampling import SamplingParams, Truncation
from infer.thoughts import NO_THOUGHTS, Thoughts
from infer.waves import Waves, copies, in_waves
from model.checks import check_replay
from model.lm import Model

FEWEST = 4  # slots, below which nothing is gained by having less


@dataclass(frozen=True)
class Plan:
    """Static shapes and rules of one compiled sampler; `shrink`: it ends when only one slot in so many is busy.

    `group`: samples that a row of the prefill has, where they are no continuation. `lanes`: slots, samples and rows
    fall into so many equal parts, which have nothing to do with one another. On a mesh each device that holds rows of
    its own is a lane, so that no keys travel when a sample is seated. `budget`: the unit of a thinking budget, "" for
    none. `columns` of the ring at least, for samples that are taken up again.
    """

    slots: int
    samples: int
    group: int
    prompt_length: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    truncation: Truncation
    draft: Draft | None = None
    recurrence: RecurrencePlan | None = None
    thoughts: Thoughts = NO_THOUGHTS
    routes: bool = False
    shrink: int = 0
    lanes: int = 1
    budget: str = ""
    columns: int = 0

    @property
    def width(self) -> int:
        """Tokens fed per step, and so columns written."""
        return 1 + self.draft.length if self.draft else 1

    @property
    def ring(self) -> int:
        """Columns that a slot needs at most: every step keeps at least one token."""
        return max(self.width * self.max_new_tokens, self.columns)


@dataclass(frozen=True)
class PromptShape:
    """`prompts` prompts in `length` columns. Of a continuation, its `samples` (0: there is none), and the columns that
    the longest prefix adds to the prefill, `prefix`.
    """

    prompts: int
    length: int
    samples: int = 0
    prefix: int = 0


@dataclass(frozen=True)
class SamplerPlan:
    """The plan of a compiled sampler, the `waves` that it runs in, and how many rows hold each prompt, `copies`."""

    plan: Plan
    waves: Waves
    copies: int


def plan_sampler(
    model: Model,
    shape: PromptShape,
    sampling: SamplingParams,
    *,
    recurrence: Recurrence | None = None,
    draft: Draft | None = None,
    thoughts: Thoughts | None = None,
) -> SamplerPlan:
    """What `generate` compiles for prompts of a shape, on the mesh in force; ValueError for pairs that it refuses."""
    execution, n = sampling.execution, sampling.n
    samples = shape.samples or shape.prompts * n
    check_draft(model, draft)
    if execution.routes:
        check_routes(model, draft, thoughts)
    planned = plan_recurrence(model, samples, recurrence, draft)
    interrupts = bool(execution.min_complete_groups)
    # Prompts read at different depths, or with thoughts that differ, leave different keys: each sample has its own.
    varied = (planned is not None and planned.varied) or bool(thoughts and not thoughts.noise.quiet)
    shared = interrupts or shape.samples
    times = n if varied else 1 if shared else copies(shape.prompts, n)
    rows, group = (shape.samples, 1) if shape.samples else (shape.prompts * times, n // times)
    # Lanes of their own would make it depend on the mesh which groups are complete first.
    waves = in_waves(rows, group, execution.slots or None, one_lane=interrupts)
    if interrupts and waves.count > 1:
        raise ValueError(
            f"min_complete_groups={execution.min_complete_groups} needs all samples in one wave: slots must be at least"
            f" a quarter of the samples ({samples}) or 0, found {execution.slots}"
        )
    plan = Plan(
        waves.slots,
        waves.prompts * group,
        group,
        shape.length + shape.prefix,
        sampling.max_new_tokens,
        sampling.stop_ids,
        sampling.truncation,
        draft,
        planned,
        thoughts or NO_THOUGHTS,
        execution.routes,
        shrinks(waves.slots, waves.lanes, execution.shrink),
        waves.lanes,
        sampling.budget.unit if sampling.budget else "",
    )
    return SamplerPlan(plan, waves, times)


def check_routes(model: Model, draft: Draft | None, thoughts: Thoughts | None) -> None:
    """Raises ValueError where choices of experts cannot be recorded."""
    check_replay(model.config)
    if draft or thoughts:
        other = "draft" if draft else "thoughts"
        raise ValueError(f"routes are recorded of tokens fed one by one: they do not go with {other}")


def shrinks(slots: int, lanes: int, times: int) -> int:
    """How many times fewer so many slots may become; 0 where they are few as it is."""
    return times if slots // lanes >= times and slots // lanes > -(-FEWEST // lanes) else 0
