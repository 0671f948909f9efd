"""What lm-evaluation-harness asks of a model, answered by a run: log-likelihoods of texts, and texts that go on.

Nothing here needs the harness; infer/lm_eval.py makes a model of it that the harness knows.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from data.chat import prompt_tokens, render_messages, template_of
from data.names import unknown_name
from data.tokenizers.base import find_stop
from infer.evaluate import completion_texts
from infer.load import Loaded
from infer.recurrence import Recurrence
from infer.sampler import generate
from infer.sampling import Execution, SamplingParams, at_least
from infer.scoring import BATCH, score, windows
from infer.thoughts import thoughts_of

NAME = "sagax"  # as the harness knows the model
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given holds
SAMPLING = ("until", "do_sample", "temperature", "top_k", "top_p", "min_p")
IGNORED = ("device", "max_batch_size")  # the harness hands them to every model; JAX chooses its devices by itself
Pair = tuple[list[int], list[int]]


class Request(Protocol):
    """What the harness asks (its `Instance`)."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The context and the continuation, the text, or the context and how to go on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The harness's `model_args`, and flags of the command.

    `run`: a run directory or a folder in the Hub's layout; `step`, `dtype`, `depth` as `python -m infer` has them;
    `batch_size` rows scored at once, `slots` decoded at once; `max_length`: a shorter context than the model's (0: that
    one); `max_gen_toks` of tasks that name no length; `truncate`: what is too long loses its beginning, with a warning,
    instead of being an error; `chat_template`: one of several by name; `think_end`: an answer is what follows the last
    of these marks; `seed` of what is sampled. Raises ValueError for numbers out of range.
    """

    run: str
    step: int | None = None
    dtype: str | None = None
    depth: int | None = None
    batch_size: int = BATCH
    slots: int = 64
    max_length: int = 0
    max_gen_toks: int = 256
    truncate: bool = False
    chat_template: str = ""
    think_end: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("slots", 0), ("max_length", 0), ("max_gen_toks", 1)):
            at_least(name, getattr(self, name), least)


def options_of(given: Mapping[str, Any]) -> Options:
    """The model's arguments as the harness hands them over; ValueError for unknown names and values of other types."""
    given = {name: value for name, value in given.items() if name not in IGNORED}
    kinds = typing.get_type_hints(Options)
    if given.get("batch_size") == "auto":
        del given["batch_size"]
    elif str(given.get("batch_size")).isdigit():  # the harness's command line hands it over as a text
        given["batch_size"] = int(given["batch_size"])
    for name, value in given.items():
        if name not in kinds:
            raise unknown_name(f"argument of the model {NAME!r}", name, kinds)
        if kinds[name] is str:
            given[name] = str(value)  # a run may be called 2024
        elif not isinstance(value, kinds[name]):
            raise ValueError(f"{name}={value!r}: expected {getattr(kinds[name], '__name__', kinds[name])}")
    if not given.get("run"):
        raise ValueError("name what is measured: run=<a run directory, or a folder in the Hub's layout>")
    return Options(**given)


@dataclasses.dataclass(frozen=True)
class Answers:
    """The harness's three kinds of requests, answered by a loaded model; nothing here needs the harness.

    A run's ending (markers, continuous thoughts) follows every context, as in its training. Raises ValueError for a
    context longer than the model's.
    """

    loaded: Loaded
    options: Options

    def __post_init__(self) -> None:
        room = self.loaded.model.config.max_length
        if self.options.max_length > room:
            raise ValueError(f"max_length={self.options.max_length} is more than the model's context of {room}")

    @property
    def max_length(self) -> int:
        """Tokens that are read at most."""
        return self.options.max_length or self.loaded.model.config.max_length

    @functools.cached_property
    def prefix(self) -> int:
        """The id that stands before a text without a context: bos, where the tokenizer knows one, else eos."""
        tokenizer = self.loaded.tokenizer
        named = tokenizer.special_tokens.get("bos_token")
        ids = [tokenizer.bos_id] if tokenizer.bos_id is not None else tokenizer.encode(named) if named else []
        return ids[0] if len(ids) == 1 else tokenizer.eos_id

    @property
    def _recurrence(self) -> Recurrence | None:
        return None if self.options.depth is None else Recurrence(self.options.depth)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with bos in front, once, where the tokenizer has one."""
        return prompt_tokens(self.loaded.tokenizer, text)

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of both, cut as the harness cuts them: space at the end of the context belongs to the continuation, and
        that is what both texts have beyond the context's own ids. ValueError where nothing is left of it.
        """
        start = context.rstrip()
        rest = context[len(start) :] + continuation
        if start:
            before = self.encode(start)
            after = self.encode(start + rest)[len(before) :]
        else:
            ids = self.loaded.tokenizer.encode(rest)
            own = ids[:1] == [self.prefix]
            before, after = [self.prefix], ids[1:] if own else ids
        if not after:
            raise ValueError(
                f"the continuation {continuation!r} adds no token to the context ...{context[-40:]!r}: there is nothing"
                " to score"
            )
        return [*before, *self.loaded.ending.tokens], after

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the natural log-prob of the continuation, and whether it is the greedy
        one.
        """
        return self._scored([self.pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Of each text: the natural log-prob of all its tokens, in windows of the context's length where it is longer.

        ValueError for an empty text.
        """
        cut = [list(windows(self._text_ids(*request.args), self.prefix, self.max_length)) for request in requests]
        found = iter(self._scored([pair for pairs in cut for pair in pairs], thinks=False))
        return [sum(next(found)[0] for _ in pairs) for pairs in cut]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Of each (context, how to go on): the text that follows, before the first stop string."""
        texts = [""] * len(requests)
        groups: dict[SamplingParams, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(self.sampling(request.args[1]), []).append(n)
        for number, (sampling, rows) in enumerate(groups.items()):
            found = self._generated([requests[n].args[0] for n in rows], sampling, number)
            for n, text in zip(rows, found, strict=True):
                texts[n] = text
        return texts

    def sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        """A task's `generation_kwargs` as data: greedy unless do_sample, or a temperature alone, says otherwise.

        ValueError for an argument that is not known here, and for values out of range.
        """
        for name in given:
            if name not in (*SAMPLING, *LENGTHS):
                raise unknown_name("generation argument", name, (*SAMPLING, *LENGTHS))
        given = {name: value for name, value in given.items() if value is not None}
        length = next((given[name] for name in LENGTHS if name in given), self.options.max_gen_toks)
        temperature, draws = float(given.get("temperature", 0.0)), given.get("do_sample")
        if draws and not temperature:
            raise ValueError("do_sample=True needs a temperature above 0: name both (gen_kwargs), or leave it out")
        strings = given.get("until", [])
        stops = [strings] if isinstance(strings, str) else list(strings)
        if wrong := [stop for stop in stops if not isinstance(stop, str)]:
            raise ValueError(f"until is a text or a list of texts, found {wrong[0]!r}")
        return SamplingParams(
            int(length),
            0.0 if draws is False else temperature,
            int(given.get("top_k", 0)),
            float(given.get("top_p", 1.0)),
            float(given.get("min_p", 0.0)),
            (*self.loaded.tokenizer.eos_ids, *stops),
            execution=Execution(slots=self.options.slots),
        )

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's chat template writes it; without a prompt for the answer it ends inside the
        last message, which the model continues. ValueError without a template, or where it refuses.
        """
        name = self.options.chat_template or None
        text = render_messages(self.loaded.tokenizer, messages, add_generation_prompt, chat_template=name)
        if add_generation_prompt:
            return text
        last = str(messages[-1]["content"])
        for kept in (last, last.strip()):
            if (at := text.rfind(kept)) >= 0:
                return text[: at + len(kept)]
        raise ValueError(f"the chat template changes the message to be continued: {last[:80]!r}")

    def chat_template(self, name: bool | str) -> str | None:
        """The template that is used; None for False. ValueError for another than `chat_template` names."""
        if name is False or name is None:
            return None
        if isinstance(name, str) and name != self.options.chat_template:
            raise ValueError(f"name the chat template in the model's arguments: chat_template={name}")
        return template_of(self.loaded.tokenizer, None, self.options.chat_template or None)

    def _text_ids(self, text: str) -> list[int]:
        if not text:
            raise ValueError("an empty text has no log-likelihood: leave the example out")
        return self.encode(text)

    def _scored(self, pairs: Sequence[Pair], thinks: bool = True) -> list[tuple[float, bool]]:
        if not pairs:
            return []
        # The last token is predicted and not read.
        prompts = self._fitted([row for row, _ in pairs], [self.max_length + 1 - len(after) for _, after in pairs])
        found = score(
            self.loaded.model,
            self.loaded.params,
            prompts,
            [after for _, after in pairs],
            recurrence=self._recurrence,
            thoughts=thoughts_of(self.loaded.ending) if thinks else None,
            batch=self.options.batch_size,
        )
        totals, greedy = found.logps.sum(1, dtype=np.float64), found.greedy.sum(1) == found.lengths
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _generated(self, contexts: Sequence[str], sampling: SamplingParams, number: int) -> list[str]:
        ending, tokenizer = self.loaded.ending, self.loaded.tokenizer
        prompts = [[*(self.encode(text) or [self.prefix]), *ending.tokens] for text in contexts]
        rollout = generate(
            self.loaded.model,
            self.loaded.params,
            self._fitted(prompts, [self.max_length - sampling.max_new_tokens] * len(prompts), sampling.max_new_tokens),
            jax.random.fold_in(jax.random.key(self.options.seed), number),
            sampling,
            tokenizer=tokenizer,
            recurrence=self._recurrence,
            thoughts=thoughts_of(ending),
        )
        mark, stops = self.options.think_end, sampling.stop_strings
        if not mark:
            return completion_texts(rollout, tokenizer, stops)
        answers = [text.rpartition(mark)[2].lstrip() for text in completion_texts(rollout, tokenizer)]
        return [text[: find_stop(text, stops)] for text in answers]

    def _fitted(self, rows: Sequence[list[int]], rooms: Sequence[int], new: int = 0) -> list[list[int]]:
        """Contexts of at most so many tokens each: those that are longer lose their beginning, or are an error."""
        over = [len(row) - room for row, room in zip(rows, rooms, strict=True)]
        long = [n for n, more in enumerate(over) if more > 0]
        if not long:
            return list(rows)
        worst = max(long, key=lambda n: over[n])
        asked = f" and {new} new ones" if new else f" and {self.max_length + 1 - rooms[worst]} to be scored"
        found = f"{len(long)} of {len(rows)} requests do not fit the context of {self.max_length} tokens; the longest"
        found += f" has {len(rows[worst])} tokens{asked}"
        if not self.options.truncate or min(rooms[n] for n in long) < 1:
            raise ValueError(
                f"{found}. Give fewer examples in the context (num_fewshot), ask for fewer tokens (max_gen_toks), or"
                " let contexts lose their beginning (truncate)"
            )
        warnings.warn(f"{found}: their contexts lose up to {over[worst]} tokens at the beginning", stacklevel=2)
        return [row[max(more, 0) :] for row, more in zip(rows, over, strict=True)]
