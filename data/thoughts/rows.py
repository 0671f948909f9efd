"""Rows and batches of a stage: a question, latent columns, what is left of the chain, the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sources.batch import TokenRows
from data.thoughts.curriculum import Chain, Curriculum, Markers


def thought_row(chain: Chain, curriculum: Curriculum, markers: Markers, stage: int, offset: int = 0) -> dict[str, Any]:
    """One row without padding: `tokens`, `positions`, `latent`, `mask` [n], and `answer`, the answer's first column.

    The loss (`mask` 1) is on what follows the end marker, or the question where a method has no markers.
    """
    places, rest = curriculum.places(len(chain.steps), stage), curriculum.remaining(chain, stage, offset)
    slots = curriculum.wrapped(markers, places)
    tokens = [*chain.question, *slots, *rest, *chain.answer]
    prompt = len(chain.question) + len(slots)
    positions = np.arange(len(tokens))
    if curriculum.kind.tokens and curriculum.keep_position:
        positions[prompt:] += sum(map(len, chain.steps)) - len(rest)
    latent = np.zeros(len(tokens), bool)
    if curriculum.kind.fed_back:
        begin = len(chain.question) + curriculum.markers
        latent[begin : begin + places] = True
    mask = (np.arange(len(tokens)) >= prompt).astype(np.float32)
    tokens_array = np.array(tokens, np.int32)
    return dict(tokens=tokens_array, positions=positions, latent=latent, mask=mask, answer=prompt + len(rest))


def collate(
    rows: Sequence[dict[str, Any]], pad: int, *, first: int | None = None, length: int | None = None
) -> TokenRows:
    """Rows padded so that first latents share a column, `latent` [B, S] over all columns.

    Rows with latents are moved right to the column `first` (None: the smallest that serves all), others stay, then all
    are filled up to `length` (None: the longest). Padding has segment 0, position 0 and mask 0. `answer` [B] is the
    column of the answer's first token. Raises ValueError for a row that does not fit.
    """
    heads = [int(row["latent"].argmax()) if row["latent"].any() else None for row in rows]
    furthest = max((head for head in heads if head is not None), default=0)
    if first is not None and furthest > first:
        raise ValueError(f"a first latent stands in column {furthest}, but first={first}; raise it to {furthest}")
    column = furthest if first is None else first
    moves = [0 if head is None else column - head for head in heads]
    longest = max(len(row["tokens"]) + move for row, move in zip(rows, moves, strict=True))
    if length is not None and longest > length:
        raise ValueError(f"a row takes {longest} columns with its padding on the left, but length={length}; raise it")
    width, size = longest if length is None else length, len(rows)
    kinds: dict[str, Any] = dict(tokens=np.int32, positions=np.int32, segments=np.int32, mask=np.float32, latent=bool)
    batch: dict[str, Any] = {
        name: np.full((size, width), pad if name == "tokens" else 0, kind) for name, kind in kinds.items()
    }
    for i, (row, move) in enumerate(zip(rows, moves, strict=True)):
        where = slice(move, move + len(row["tokens"]))
        for name in kinds:
            batch[name][i, where] = 1 if name == "segments" else row[name]
    answers = [row["answer"] + move for row, move in zip(rows, moves, strict=True)]
    return TokenRows(**batch, answer=np.array(answers, np.int32))


def thought_batch(
    chains: Sequence[Chain],
    curriculum: Curriculum,
    markers: Markers,
    stage: int,
    *,
    rng: np.random.Generator | None = None,
    first: int | None = None,
    length: int | None = None,
    step_length: int = 0,
) -> TokenRows:
    """A batch of a stage, as `collate` gives it; `rng` draws mixed stages and offsets, None for neither.

    `first` and `length`: fixed sizes, such as `sizes` finds, so that a stage is one program. With `step_length` the
    batch also has the steps that thoughts stand for.
    """
    draws = [(stage, 0) if rng is None else curriculum.draw(chain, stage, rng) for chain in chains]
    rows = [thought_row(chain, curriculum, markers, *drawn) for chain, drawn in zip(chains, draws, strict=True)]
    batch = collate(rows, markers.pad, first=first, length=length)
    replaced = curriculum.thoughts(stage) // curriculum.thoughts_per_step if step_length else 0
    if not replaced:
        return batch
    stood = [int(row["latent"].sum()) // curriculum.thoughts_per_step for row in rows]
    steps, mask = replaced_steps(chains, stood, (replaced, step_length), markers.pad)
    return batch.replace(steps=steps, step_mask=mask)


def replaced_steps(
    chains: Sequence[Chain], stood: Sequence[int], shape: tuple[int, int], pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens [B, k, L] of the first `stood` [B] steps of chains, and a mask: 0 where there is no step or token.

    Raises ValueError for a step of more than L tokens.
    """
    tokens, mask = np.full((len(chains), *shape), pad, np.int32), np.zeros((len(chains), *shape), np.float32)
    for row, (chain, count) in enumerate(zip(chains, stood, strict=True)):
        for k, step in enumerate(chain.steps[:count]):
            if len(step) > shape[1]:
                raise ValueError(f"a step has {len(step)} tokens, but steps are told in {shape[1]} columns")
            tokens[row, k, : len(step)], mask[row, k, : len(step)] = step, 1
    return tokens, mask


def paired_batch(
    chains: Sequence[Chain],
    thoughts: int,
    markers: Markers,
    *,
    announced: int = 0,
    first: int | None = None,
    length: int | None = None,
) -> TokenRows:
    """CODI's two views (2502.21074, section 3): `thoughts` thoughts and the answer; as `teacher` all steps.

    `announced`: how many tokens at the front of every answer only announce it ("### "); `answer` points behind them.
    """
    short = min(len(chain.answer) for chain in chains)
    if not 0 <= announced < short:
        raise ValueError(f"announced={announced}, but the shortest answer has {short} tokens; something must be left")
    student = Curriculum("no_curriculum", thoughts_per_step=thoughts, max_stage=1)
    batch = thought_batch(chains, student, markers, student.last_stage, first=first, length=length)
    teacher = thought_batch(chains, Curriculum("cot"), markers, 0, length=length)
    teacher = teacher.replace(latent=None, answer=teacher.answer + announced)
    return batch.replace(answer=batch.answer + announced, teacher=teacher)


def sizes(curriculum: Curriculum, chains: Sequence[Chain]) -> tuple[int, int]:
    """The smallest (first, length) that every row of every stage of these chains fits into."""
    first = max(len(chain.question) for chain in chains) + curriculum.markers
    return first, max(_width(curriculum, chain, first) for chain in chains)


def check_fit(curriculum: Curriculum, chains: Sequence[Chain], length: int) -> None:
    """Raises ValueError where a curriculum and data do not go together.

    No chains, no steps to take away, stages for more steps than any chain has, rows longer than `length` columns.
    """
    if not chains:
        raise ValueError("no chains to train on; check the task's path and options")
    most = max(len(chain.steps) for chain in chains)
    if not most and curriculum.method != "no_cot":
        raise ValueError(f"no chain has a step, so {curriculum.method!r} has nothing to shorten; use method 'no_cot'")
    if not curriculum.kind.tokens and not curriculum.kind.fixed and curriculum.max_stage > most:
        raise ValueError(
            f"max_stage={curriculum.max_stage}, but the longest chain has {most} steps: later stages would only add"
            f" thoughts; set max_stage to {most} or less"
        )
    first, needed = sizes(curriculum, chains)
    if needed > length:
        worst = max(range(len(chains)), key=lambda i: _width(curriculum, chains[i], first))
        raise ValueError(
            f"chain {worst} needs {needed} columns in its longest stage (question and marker padded to {first}, up to"
            f" {curriculum.thoughts(curriculum.last_stage)} thoughts), but rows hold {length}; raise the length, drop"
            " long chains, or lower thoughts_per_step"
        )


def _width(curriculum: Curriculum, chain: Chain, first: int) -> int:
    """The most columns any stage needs for a chain: rows with thoughts begin further right than others."""
    stages = [curriculum.stage(0)] if curriculum.kind.fixed else list(range(curriculum.last_stage + 1))
    widths = []
    for stage in stages:
        places = curriculum.places(len(chain.steps), stage)
        begin = first - curriculum.markers if places and curriculum.kind.fed_back else len(chain.question)
        slots = places + 2 * curriculum.markers if curriculum.kind.slots else 0
        widths.append(begin + slots + len(curriculum.remaining(chain, stage)) + len(chain.answer))
    return max(widths)
