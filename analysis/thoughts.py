"""What a model would say next after each of its thoughts: the search view of Coconut (2412.06769, section 5.3).

python -m analysis.thoughts --run=runs/coconut --prompt="21*43=" --candidates "1 " "2 " "3 "     -> thoughts.png

Thinking is broken off after 0, 1, 2 ... thoughts, and every candidate is scored as what comes then. A model that keeps
several paths open gives several of them a share, and settles as it thinks on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.pictures import Labels, heat_map, save
from data.chat import prompt_tokens
from data.sources.batch import TokenRows
from data.sources.thoughts import markers_of
from data.thoughts import Curriculum, Markers
from data.tokenizers.decoding import encode_after
from infer.feedback import feedback_of
from infer.load import load_run
from model.lm import Model, Params
from settings.data import SoftConfig
from train.cli import guarded
from train.objectives.losses import batch_logps, next_token_mask


def candidate_probabilities(
    model: Model,
    params: Params,
    question: Sequence[int],
    candidates: Sequence[Sequence[int]],
    markers: Markers,
    most: int,
    marked: bool = True,
    soft: SoftConfig | None = None,
) -> np.ndarray:
    """The probability of each candidate (token ids) after 0 .. `most` thoughts: [most + 1, C], rows need not sum to 1.

    `marked`: whether the start and end markers stand around thoughts, as `Curriculum.markers` says; `soft`: how
    thoughts are mixed, where they are no states (`run.ending.soft`).

    Raises ValueError without candidates and for rows that leave the model's context.
    """
    if not candidates or min(map(len, candidates)) == 0:
        raise ValueError(f"every candidate needs at least one token, found lengths {[len(c) for c in candidates]}")
    longest = len(question) + most + 2 + max(map(len, candidates))
    if longest > model.config.max_length:
        raise ValueError(f"{longest} tokens with {most} thoughts, the model's context is {model.config.max_length}")
    curriculum = Curriculum(markers=marked)
    heads = [[*question, *curriculum.wrapped(markers, k)] for k in range(most + 1)]
    first = len(question) + marked
    batches = [_after(head, candidates, k, first) for k, head in enumerate(heads)]

    def score(params: Params, batch: TokenRows) -> jax.Array:
        logps = batch_logps(model, params, batch, feedback=feedback_of(model, params, soft))[0]
        return (logps * next_token_mask(batch)).sum(1)

    scored = jax.jit(score)
    return np.exp(np.stack([np.asarray(scored(params, batch), np.float64) for batch in batches]))


def _after(head: Sequence[int], candidates: Sequence[Sequence[int]], thoughts: int, first: int) -> TokenRows:
    """A row for each candidate, after a question and so many thoughts from column `first` on."""
    width, rows = len(head) + max(map(len, candidates)), len(candidates)
    tokens, wanted, segments = (np.zeros((rows, width), np.int32) for _ in range(3))
    for row, candidate in enumerate(candidates):
        end = len(head) + len(candidate)
        tokens[row, :end], segments[row, :end] = [*head, *candidate], 1
        wanted[row, len(head) : end] = 1
    return TokenRows(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(wanted, jnp.float32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape),
        segments=jnp.asarray(segments),
        latent=jnp.ones((rows, thoughts), bool),
        first=first,
    )


def draw_candidates(names: Sequence[str], probabilities: np.ndarray, title: str = "") -> Any:
    """A matplotlib figure: candidates by thoughts, coloured by their share among the candidates."""
    share = (probabilities / np.maximum(probabilities.sum(1, keepdims=True), 1e-300)).T
    steps = [str(step) for step in range(share.shape[1])]
    labels = Labels(list(names), steps, title, "thoughts before it speaks", "share")
    return heat_map(share, [[f"{value:.2f}" for value in row] for row in share], labels)


def probe(options: argparse.Namespace) -> None:
    """Prints and draws the candidates of one question."""
    run = load_run(options.run)
    if not run.ending.tokens:
        raise ValueError(f"{options.run} was not trained to think: use a run of algorithm coconut")
    data = run.config.get("data", {})
    question = prompt_tokens(run.tokenizer, options.prompt, data.get("template", "none"), data.get("system") or None)
    candidates = [encode_after(text, run.tokenizer, question) for text in options.candidates]
    most = run.ending.thoughts if options.thoughts is None else options.thoughts
    markers = markers_of(run.tokenizer)
    marked = markers.start in run.ending.tokens
    soft = run.ending.soft
    probabilities = candidate_probabilities(run.model, run.params, question, candidates, markers, most, marked, soft)
    for step, row in enumerate(probabilities):
        scores = "  ".join(f"{text!r} {value:.3f}" for text, value in zip(options.candidates, row, strict=True))
        print(f"after {step} thoughts: {scores}")
    figure = draw_candidates([repr(text) for text in options.candidates], probabilities, options.prompt)
    save(figure, Path(options.output or Path(options.run) / "thoughts.png"))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.thoughts`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.thoughts", description="What a model would say after each thought."
    )
    flags.add_argument("--run", required=True, help="a run of algorithm coconut")
    flags.add_argument("--prompt", required=True, help="the question")
    flags.add_argument("--candidates", nargs="+", required=True, help="texts that may come next")
    flags.add_argument("--thoughts", type=int, help="at most so many; default: as in training")
    flags.add_argument("--output", default="", help="the PNG; by default in the run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: probe(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
