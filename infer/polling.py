"""What the host does between two runs of the compiled loop: stop strings, progress, and whether enough is complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from data.tokenizers.decoding import UNLIMITED, Decoder, text_of
from infer.plan import Plan
from infer.slots import Slots
from infer.thinking import THINKING


@dataclass(frozen=True)
class HostPolling:
    """Polls a wave of S samples every `chunk` steps.

    `strings` stop a sample whose text, after what ends its prompt in `prompts` S and after its prefix of `prefixes` [S]
    tokens, comes to hold one. `tell` hears how many samples are done. Polling ends the wave where `min_complete` (0:
    never) of the groups in `group_of` [S] have all their samples; `done` [S] had ended before.
    """

    strings: tuple[str, ...]
    tokenizer: Decoder | None
    prompts: Sequence[Sequence[int]]
    prefixes: np.ndarray
    done: np.ndarray
    group_of: np.ndarray
    tell: Callable[[int], None] | None
    min_complete: int
    chunk: int

    @property
    def limit(self) -> int:
        """Steps between two polls."""
        return self.chunk if self.strings or self.tell or self.min_complete else UNLIMITED

    def cut(self, ids: np.ndarray, sample: int, answer: int) -> int:
        """How many of a sample's ids are kept, whose answer begins at `answer` (THINKING: it has not begun)."""
        assert self.tokenizer is not None
        before = len(ids) if answer == THINKING else max(int(self.prefixes[sample]), answer)
        return cut_at_strings(ids, self.strings, self.tokenizer, self.prompts[sample], before)

    def is_enough(self, state: Slots) -> bool:
        """Tells how many samples are done, and whether the wave may end here."""
        ended = np.asarray(state.out_count) > 0
        if self.tell:
            self.tell(int(ended.sum()))
        if not self.min_complete:
            return False
        unfinished = np.bincount(self.group_of, ~(ended | self.done))
        return int((unfinished == 0).sum()) >= self.min_complete


def stop_at_strings(state: Slots, plan: Plan, polling: HostPolling) -> Slots:
    """Ends the samples whose text holds a stop string at the token that completed it."""
    sample, count, done = (np.array(x) for x in (state.sample, state.count, state.done))
    out_count, stopped, out_stopped = (np.array(x) for x in (state.out_count, state.stopped, state.out_stopped))
    tokens, (answers, out_answers) = np.asarray(state.out_tokens), answers_of(state)
    for b in np.flatnonzero(sample < plan.samples):
        cut = polling.cut(tokens[sample[b], : count[b]], int(sample[b]), answers[b])
        if cut < count[b]:
            count[b], done[b], stopped[b] = cut, True, True
            out_count[sample[b]], out_stopped[sample[b]] = cut, True
    for n in np.flatnonzero(out_count):
        cut = polling.cut(tokens[n, : out_count[n]], int(n), out_answers[n])
        if cut < out_count[n]:
            out_count[n], out_stopped[n] = cut, True
    return replace(
        state,
        count=jnp.asarray(count),
        done=jnp.asarray(done),
        stopped=jnp.asarray(stopped),
        out_count=jnp.asarray(out_count),
        out_stopped=jnp.asarray(out_stopped),
    )


def answers_of(state: Slots) -> tuple[np.ndarray, np.ndarray]:
    """Where the answers of slots [B] and of samples [N] begin: at their first token where there is no budget."""
    if state.thinking is None or state.out_thinking is None:
        return np.zeros(len(state.count), int), np.zeros(len(state.out_count), int)
    return np.asarray(state.thinking.answer), np.asarray(state.out_thinking.answer)


def cut_at_strings(
    ids: np.ndarray, strings: tuple[str, ...], tokenizer: Decoder, prompt: Sequence[int] = (), prefix: int = 0
) -> int:
    """The least number of leading tokens of `ids` whose text holds one of `strings`; len(ids) when none does.

    The text is what they add to that of `prompt`. What the first `prefix` tokens hold of their own does not count.
    """
    text = lambda count: text_of(ids[:count].tolist(), tokenizer, prompt)  # noqa: E731
    before = len(text(prefix)) if prefix else 0

    def hit(count: int) -> bool:
        whole = text(count)
        return any(whole.find(s, max(before - len(s) + 1, 0)) >= 0 for s in strings)

    if len(ids) <= prefix or not hit(len(ids)):
        return len(ids)
    return next(count for count in range(prefix + 1, len(ids) + 1) if hit(count))
