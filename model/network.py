"""The network as one module: embed -> layers, as a stack or with a recurrent core -> final norm."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.block import Block
from model.config import ModelConfig
from model.context import Context
from model.depth.cached import cached, fill_deeper
from model.depth.core import Loop, layers_of
from model.depth.exit import ExitGate
from model.depth.measures import measures_of, work_of
from model.depth.state import Injection, first_state
from model.depth.unrolled import unrolled
from model.embedding import embed_tokens, head_logits, look_up
from model.hooks import Captured, gather, model_point, without_unreached
from model.initial import weights
from model.layers import run_layers
from model.norms import norm_of
from model.remat import policy_of
from model.reports import Reports, stack_layers
from model.sharding import constrain

ATTENTION = ("gqa", "mla")  # mixers whose states have a column for every token


class Passed(NamedTuple):
    """One pass: hidden [B, S, D], the layers' new states, what they report, a recurrent core's last state, and what was
    captured.
    """

    hidden: jax.Array
    states: tuple[Any, ...]
    reports: Reports
    state: jax.Array | None
    captured: Captured


class LM(nn.Module):
    """Declares the embeddings, the layers, the final norm and the head, and runs them in order."""

    config: ModelConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        context: Context,
        states: tuple[Any, ...],
        embeds: jax.Array | None,
        loop: Loop | None = None,
    ) -> Passed:
        """tokens [B, S], one state (or None) per layer; `loop` says how a recurrent core runs."""
        c = self.config
        x = embedding = model_point(context.hooks, "embedding", self._embed(tokens, context, embeds))
        self._declare_head()
        if self.is_initializing():
            self._declare(x, context)
        elif c.depth == "recurrent":
            return self._recurrent(x, context, states, loop or Loop(c.recurrent.mean))
        arguments = (c, self.train, self.variables, range(c.n_layers), x, context, states, policy_of(c))
        x, new, reports = (x, states, ()) if self.is_initializing() else run_layers(*arguments)
        x = norm_of(c, name="final_norm")(x)
        x = model_point(context.hooks, "final_norm", x)
        by_layer = enumerate(report.captured for report in reports)
        captured = gather(context.hooks, by_layer, (), embedding=embedding, final_norm=x)
        reported = dataclasses.replace(stack_layers(reports), work=work_of(context.segments))
        return Passed(x, new, reported, None, captured)

    def _recurrent(self, x: jax.Array, context: Context, states: tuple[Any, ...], loop: Loop) -> Passed:
        """Prelude, core until its depth, coda: functions of the variables, for modules cannot be called in loops."""
        c = self.config
        prelude, core, coda = layers_of(c)
        run = functools.partial(run_layers, c, self.train)
        of = lambda layers: tuple(states[i] for i in layers)  # noqa: E731
        variables = self.variables
        norm = norm_of(c, parent=None)
        inject = Injection(c, parent=None)

        def normed(variables: Any, x: jax.Array) -> jax.Array:
            return norm.apply(_own(variables, "final_norm"), x)

        def step(variables: Any, e: jax.Array, s: jax.Array, context: Context, states: Any) -> Any:
            # Every iteration is rematerialised as a whole: its layers need not be.
            mixed = inject.apply(_own(variables, "injection"), s, e)
            s, new, reports = run(variables, core, mixed, context, states or (None,) * len(core))
            return normed(variables, s) if c.recurrent.readout == "loop" else s, new, reports

        def finish(s: jax.Array, states: Any) -> Any:
            x = normed(variables, s) if c.recurrent.readout == "norm" else s
            x, new, reports = run(variables, coda, x, context, states, policy_of(c))
            done = c.recurrent.readout == "loop" and not coda
            return x if done else normed(variables, x), new, reports

        def look(s: jax.Array, states: Any) -> Any:
            hidden, new, _ = finish(s, states)
            if loop.exit is not None and loop.exit.criterion == "gate":
                gate = ExitGate(c, parent=None).apply(_own(variables, "exit_gate"), hidden[:, -1:])
                return hidden, gate, new
            return hidden, head_logits(c, variables["params"]["embed" if c.tied else "head"], hidden[:, -1]), new

        e, before, first = run(variables, prelude, x, context, of(prelude), policy_of(c))
        s = first_state(c, e, context.positions, loop.key)
        if loop.state is not None:
            s = jnp.where(jnp.isnan(loop.state), s, loop.state.astype(s.dtype))
        middle: Any
        ends: tuple[Reports, ...]
        if context.index is None:
            looped = unrolled(step, variables, e, s, context, loop.depth, c.recurrent.grad_steps)
            hidden, after, last = finish(looped.state, of(coda))
            middle, ends = of(core), last
        else:
            bound = functools.partial(step, variables)
            looped, hidden, after = cached(bound, e, s, context, of(core), loop, look, of(coda))
            # The coda ran inside the loop, for each look: what it captures is that of the last.
            last, middle = (), looped.states
            ends = () if context.hooks is None else finish(looped.state, of(coda))[2]
            if all(c.per_layer("mixer")[i] in ATTENTION for i in core):
                middle = fill_deeper(middle, looped.depth, context.index, e.shape[1])
        hidden = model_point(context.hooks, "final_norm", hidden)
        inside = [without_unreached(report.captured, looped.depth) for report in looped.reports]
        by_layer = enumerate([*(r.captured for r in first), *inside, *(r.captured for r in ends)])
        captured = gather(context.hooks, by_layer, core, embedding=x, final_norm=hidden)
        stacked = stack_layers([*first, *looped.reports, *last])
        work = work_of(context.segments, looped.depth, c.recurrent.grad_steps)
        means = measures_of(looped, context.segments)
        reports = dataclasses.replace(stacked, means=means, work=work, depth=looped.depth)
        return Passed(hidden, (*before, *middle, *after), reports, looped.state, captured)

    def _declare(self, x: jax.Array, context: Context) -> None:
        """The parameters of the layers, and of what a recurrent core has besides."""
        c = self.config
        if c.depth == "recurrent":
            Injection(c, name="injection")(x, x)
            if c.recurrent.exit_gate:
                ExitGate(c, name="exit_gate")(x)
        for i in range(c.n_layers):
            Block(c, i, self.train, name=f"layer_{i}")(x, context, None)

    def _declare_head(self) -> None:
        """What is applied to the states apart from the network: the output embedding, or the scores' matrix."""
        score = self.config.score
        if not score.size:
            if not self.config.tied:
                self._table("head", self.config.vocab_size, "vocab")
            return
        self._table("score", score.size, "scores")
        if score.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("scores",))
            self.param("score_bias", zeros, (score.size,), jnp.dtype(self.config.param_dtype))

    def _table(self, name: str, rows: int, axis: str) -> jax.Array:
        init = nn.with_logical_partitioning(weights(self.config), (axis, "embed"))
        return self.param(name, init, (rows, self.config.d_model), jnp.dtype(self.config.param_dtype))

    def _embed(self, tokens: jax.Array, context: Context, embeds: jax.Array | None) -> jax.Array:
        c = self.config
        names = ("embed", "pair_embed") if c.pairs else ("embed",)
        x = embed_tokens(c, {name: self._table(name, c.vocab_size, "vocab") for name in names}, tokens)
        if embeds is not None:
            x = jnp.where(jnp.isnan(embeds), x, embeds.astype(c.dtype))
        if c.positions == "learned":
            table = self._table("position_embed", c.max_length, "learned_positions")
            x = x + look_up(table, "learned_positions", context.positions, c.dtype)
        return constrain(x, "batch", "length", "act_embed")


def _own(variables: Any, module: str) -> Any:
    """The variables of one submodule."""
    return {name: tree[module] for name, tree in variables.items() if module in tree}
