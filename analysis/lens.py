"""The logit lens: what a model would say if it stopped at a layer, at an iteration of its core, or at a thought.

python -m analysis.lens --run=runs/quickstart --prompt "12+34="                      -> lens.png, layers by columns
python -m analysis.lens --run=runs/depth --prompt "123+456=" --depth=8               iterations of the core by columns

Every state of the residual stream is given to the final norm and the head (nostalgebraist's logit lens); a recurrent
model's coda is left out. Thoughts and `final_norm` have passed the norm already.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.pictures import Labels, heat_map, save, shown
from data.tokenizers.decoding import token_texts
from infer.load import load_run
from model.lm import Model, Params
from store.terminal import visible
from train.cli import guarded


class Guesses(NamedTuple):
    """The likeliest tokens and their probabilities, [..., k] each, the likeliest first."""

    tokens: np.ndarray
    probabilities: np.ndarray


def lens(model: Model, params: Params, states: jax.Array, normed: bool = False) -> jax.Array:
    """States [..., S, D] of a residual stream -> logits [..., S, V], fp32; `normed`: after the final norm."""
    hidden = states if normed else model.normed(params, states)
    flat = hidden.reshape(-1, *hidden.shape[-2:])
    return model.logits(params, flat).reshape(*hidden.shape[:-1], -1)


def layers_of_stack(captured: Mapping[str, Any], name: str = "residual") -> jax.Array:
    """A captured name as one array [layers, B, S, D], iterations of a core one after the other in the place of its
    layers' last.

    Raises ValueError for a name that was not captured, or that belongs to no layer.
    """
    if name not in captured or not isinstance(captured[name], Mapping):
        raise ValueError(f"{name!r} by layer is not among what was captured: {', '.join(captured) or 'nothing'}")
    by_layer = captured[name]
    looped = [i for i, x in by_layer.items() if x.ndim > min(y.ndim for y in by_layer.values())]
    rows = [x if i in looped else x[None] for i, x in sorted(by_layer.items()) if i not in looped[:-1]]
    return jnp.concatenate(rows, 0)


def guesses(logits: jax.Array, k: int = 1) -> Guesses:
    """The `k` likeliest tokens of logits [..., V]; raises ValueError for more than there are."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k={k} of {logits.shape[-1]} tokens: give 1 or more, and no more than there are")
    values, tokens = jax.lax.top_k(jax.nn.softmax(logits), k)
    return Guesses(np.asarray(tokens), np.asarray(values))


def probability_of(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The probability of each target: logits [..., S, V], targets [S] or of the shape [..., S] -> [..., S]."""
    logps = jax.nn.log_softmax(logits)
    wanted = jnp.broadcast_to(targets, logits.shape[:-1])
    return jnp.exp(jnp.take_along_axis(logps, wanted[..., None], -1)[..., 0])


def prompt_lens(model: Model, params: Params, tokens: Sequence[int], depth: int | None = None) -> Guesses:
    """What the model would say after each token [S] of one text, layer by layer: [layers, S, 1].

    A core of a recurrent model has a row for each of `depth` iterations (None: its mean).
    """
    iterations: dict[str, Any] = (
        {} if model.config.depth != "recurrent" else {"depth": depth or model.config.recurrent.mean}
    )

    @jax.jit
    def run(params: Params, row: jax.Array) -> jax.Array:
        captured = model.apply(params, row, capture=("residual",), **iterations).captured
        return lens(model, params, layers_of_stack(captured))[:, 0]

    return guesses(run(params, jnp.asarray([tokens], jnp.int32)))


def draw_lens(texts: Sequence[str], said: Sequence[Sequence[str]], probabilities: np.ndarray, title: str = "") -> Any:
    """A matplotlib figure: layers (the last on top) by columns, each with the likeliest next token."""
    rows = [str(i) for i in range(len(said))]
    labels = Labels(rows[::-1], [shown(text) for text in texts], title, "the text so far", "probability")
    return heat_map(np.asarray(probabilities)[::-1], said[::-1], labels)


def show(options: argparse.Namespace) -> None:
    """Prints and draws the lens of one prompt."""
    run = load_run(options.run)
    if options.depth and run.model.config.depth != "recurrent":
        raise ValueError(f"depth={options.depth}, but {options.run} is a plain stack: leave --depth out")
    tokens = run.tokenizer.encode(options.prompt)
    if not tokens:
        raise ValueError("--prompt holds no token: give the beginning of a text")
    best = prompt_lens(run.model, run.params, tokens, options.depth or None)
    said = [[run.tokenizer.decode([int(token)]) for token in row[:, 0]] for row in best.tokens]
    for number, (row, chances) in enumerate(zip(said, best.probabilities[..., 0], strict=True)):
        told = "  ".join(f"{shown(text)} {chance:.2f}" for text, chance in zip(row, chances, strict=True))
        print(visible(f"{number:3d}  {told}"))
    figure = draw_lens(token_texts(tokens, run.tokenizer, []), said, best.probabilities[..., 0], options.prompt)
    save(figure, Path(options.output or Path(options.run) / "lens.png"))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.lens`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.lens", description="What a model would say after each layer or iteration."
    )
    flags.add_argument("--run", required=True, help="a run directory, or a folder in the Hub's layout")
    flags.add_argument("--prompt", required=True, help="the text that it reads")
    flags.add_argument("--depth", type=int, default=0, help="iterations of a recurrent model; 0: its mean")
    flags.add_argument("--output", default="", help="the PNG; by default in the run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: show(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
