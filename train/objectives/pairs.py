"""Batches of pairs: both sides as completions of the prompt that they share, and what a frozen model says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.pairs import Pair, PairRows, Pairs, pair_numbers, read_pairs
from model.lm import Model, Params
from model.prefix import Prompts, can_share, prefill
from model.sharding import on_mesh, replicate
from settings.preference import PairConfig
from train.accumulate import UpdatePlan, per_token
from train.batches import on_devices
from train.completions import CompletionRows, completion_logps, longest, truncate, widths_of
from train.frozen import kept_arrays
from train.setup import Setup


class PairBatch(CompletionRows, kw_only=True):
    """B pairs as rows that belong together: chosen, rejected, and where asked for the two of another pair's sides that
    answer this prompt.

    `margin` [N] by how much the chosen side is better, on both rows of the pair; `ref_logps` [N, T] of the reference.
    """

    BY_COLUMN: ClassVar[tuple[str, ...]] = (*CompletionRows.BY_COLUMN, "ref_logps")

    margin: Any = None
    ref_logps: Any = None


def pair_rows(setup: Setup, rules: PairConfig, split: str, seed: int, prefetch: int) -> PairRows:
    """This host's share of pairs."""
    data, hosts = setup.config.data, jax.process_count()
    if data.batch_size % hosts:
        raise ValueError(f"data.batch_size={data.batch_size} cannot be shared evenly by {hosts} hosts")
    prompt, length = widths(setup, rules)
    return PairRows(
        batch_size=data.batch_size // hosts,
        split=split,
        seed=seed,
        template=data.template,
        system=data.system or None,
        process_index=jax.process_index(),
        process_count=hosts,
        prefetch=prefetch,
        prompt_length=prompt,
        length=length,
        too_long=data.too_long,
    )


def widths(setup: Setup, rules: PairConfig) -> tuple[int, int]:
    """Columns of prompts and of completions; ValueError where they leave nothing to one another."""
    whole = min(setup.config.data.length, setup.model.config.max_length)
    prompt = rules.prompt_length or whole // 2
    if not 0 < prompt < whole:
        raise ValueError(
            f"prompt_length={prompt} leaves nothing of rows of {whole} tokens (data.length, or model.max_length if that"
            " is smaller) to completions: lower it"
        )
    return prompt, whole - prompt


def batch_shapes(setup: Setup, rules: PairConfig, rows_per_pair: int, reference: bool) -> PairBatch:
    """The shapes of a batch of all hosts together."""
    (prompt, length), pairs = widths(setup, rules), setup.config.data.batch_size
    rows, array = pairs * rows_per_pair, jax.ShapeDtypeStruct
    prompts = Prompts(tokens=array((pairs, prompt), jnp.int32), segments=array((pairs, prompt), jnp.int32))
    return PairBatch(
        tokens=array((rows, length), jnp.int32),
        mask=array((rows, length), jnp.float32),
        shared=prompts,
        lengths=array((rows,), jnp.int32),
        prompt_of=array((rows,), jnp.int32),
        margin=array((rows,), jnp.float32),
        ref_logps=array((rows, length), jnp.float32) if reference else None,
    )


def pair_plan(setup: Setup, rules: PairConfig, rows_per_pair: int, whole: bool = False) -> UpdatePlan:
    """How an update of pairs is computed: prompts read once, empty columns left out.

    `whole`: rows [prompt | completion] instead. Raises ValueError for micro-batches that cut pairs in two.
    """
    micro_batch = setup.config.micro_batch or None
    if micro_batch and micro_batch % rows_per_pair:
        raise ValueError(
            f"micro_batch={micro_batch} counts rows, and a pair has {rows_per_pair}: choose a multiple of that"
        )
    if setup.rows is not None:
        return UpdatePlan(micro_batch)
    shares = rules.share_prompts and can_share(setup.model) and not whole
    read = (lambda params, prompts, parts: prefill(setup.model, params, prompts).share(parts)) if shares else None
    return UpdatePlan(
        micro_batch,
        read=read,
        widths=widths_of(widths(setup, rules)[1], rules.widths),
        length=longest,
        truncate=truncate,
    )


class PairSource:
    """Batches of the pairs of a split; with a `reference` every batch holds what it says of the rows.

    A frozen model's log-probs are measured once for all pairs, in the order of the file, before the first batch.
    """

    def __init__(
        self,
        setup: Setup,
        rows: PairRows,
        *,
        rows_per_pair: int = 2,
        plan: UpdatePlan,
        pad_id: int | None = None,
        reference: Callable[[], Params] | None = None,
    ) -> None:
        """`pad_id`: a token that ends completions and is left out there (see model.score.pad)."""
        self._setup, self._rows, self._plan, self._per_pair = setup, rows, plan, rows_per_pair
        self._pairs = read_pairs(setup.task, setup.tokenizer, rows)
        if pad_id is not None:
            self._pairs = Pairs([_without_end(pair, pad_id) for pair in self._pairs], self._pairs.dropped)
        if self._pairs.dropped:
            setup.say(f"{self._pairs.dropped} pairs of {rows.split} are too long and left out")
        self._numbers = pair_numbers(self._pairs, rows)
        self._reference, self._said = reference, np.zeros(0, np.float32)

    def next(self, params: Params, step: int) -> PairBatch:
        """This host's rows of a batch, as numpy arrays."""
        del params, step
        if self._reference is not None:
            name = f"reference-{self._pairs.digest[:16]}"
            self._said = kept_arrays(self._setup.workdir, name, self._measured)["logps"]
            self._reference = None
        return self.batch(self._numbers.next())

    def batch(self, numbers: Sequence[int] | np.ndarray) -> PairBatch:
        """The batch of some pairs."""
        sides = [side for number in numbers for side in self._sides(int(number))]
        prompts = [self._pairs[int(number)].prompt for number in numbers]
        width, rows = self._rows.length, len(sides)
        tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
        for n, side in enumerate(sides):
            tokens[n, : len(side)], mask[n, : len(side)] = side, 1
        asked = np.zeros((2, len(prompts), self._rows.prompt_length), np.int32)
        for n, prompt in enumerate(prompts):
            asked[:, n, self._rows.prompt_length - len(prompt) :] = prompt, np.ones(len(prompt))
        margins = np.array([self._pairs[int(number)].margin or 0.0 for number in numbers], np.float32)
        said = self._said[np.asarray(numbers)].reshape(rows, -1) if len(self._said) else None
        return PairBatch(
            tokens=tokens,
            mask=mask,
            shared=Prompts(tokens=asked[0], segments=asked[1]),
            lengths=np.array([len(side) for side in sides], np.int32),
            prompt_of=np.repeat(np.arange(len(prompts), dtype=np.int32), self._per_pair),
            margin=np.repeat(margins, self._per_pair),
            ref_logps=said,
        )

    def state(self) -> dict[str, Any]:
        """The position."""
        return self._numbers.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._numbers.restore(state)

    def stats(self) -> dict[str, float]:
        """How many pairs were read, and left out."""
        return {**self._numbers.stats(), "dropped": self._pairs.dropped}

    def __len__(self) -> int:
        return len(self._pairs)

    def _sides(self, number: int) -> list[list[int]]:
        """The rows of a pair; those of another that answer its prompt are those of the next pair in the file."""
        pair, other = self._pairs[number], self._pairs[(number + 1) % len(self._pairs)]
        return [pair.chosen, pair.rejected, other.chosen, other.rejected][: self._per_pair]

    def _measured(self) -> dict[str, np.ndarray]:
        """Log-probs of all rows of all pairs [pairs, rows per pair, T]."""
        assert self._reference is not None
        setup, size, count = self._setup, self._setup.config.data.batch_size, len(self._pairs)
        setup.say(f"log-probs of the reference: {count} pairs, once")
        params, model = self._reference(), setup.model
        whole = np.zeros((count, self._per_pair, self._rows.length), np.float32)
        run = on_mesh(setup.mesh)(jax.jit(lambda params, batch: replicate(_logps(model, params, batch, self._plan))))
        for first in range(0, count, size):
            numbers = np.arange(first, first + size) % count
            found = np.asarray(run(params, on_devices(self.batch(numbers), setup.mesh)))
            kept = min(size, count - first)
            whole[first : first + kept] = found.reshape(size, self._per_pair, -1)[:kept]
        return {"logps": whole}


def _logps(model: Model, params: Params, batch: PairBatch, plan: UpdatePlan) -> jax.Array:
    return per_token(lambda params, part: (completion_logps(model, params, part)[0],), params, batch, plan)[0]


def _without_end(pair: Pair, pad_id: int) -> Pair:
    """The pair without ids at the ends of its sides that a score passes over."""

    def cut(side: list[int]) -> list[int]:
        length = next((n for n in range(len(side), 0, -1) if side[n - 1] != pad_id), 1)
        return side[:length]

    return Pair(pair.prompt, cut(pair.chosen), cut(pair.rejected), pair.margin)
