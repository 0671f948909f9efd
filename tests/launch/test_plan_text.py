"""Reading compiled programs: known collectives, loops and products on eight CPU devices, and what TPUs write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch.cost import Cost, Message, cost, groups, products, step_of
from launch.hlo import Computation, Frame, Instruction, Shape, parse, trip_count
from launch.roofline import axes_of, traffic_of
from model.sharding import make_mesh

TURNS, SIZE = 5, 64


def cost_of(function: Callable[..., Any], *shapes: Any, turns: tuple[int, ...] = ()) -> Cost:
    """What the text of a compiled function says."""
    return cost(parse(jax.jit(function).lower(*shapes).compile().as_text() or ""), turns)


def square(n: int = SIZE) -> jax.ShapeDtypeStruct:
    """A matrix's shape."""
    return jax.ShapeDtypeStruct((n, n), jnp.float32)


def looped(x: jax.Array, w: jax.Array) -> jax.Array:
    """TURNS products in a loop."""
    return jax.lax.fori_loop(0, TURNS, lambda _, y: jnp.tanh(y @ w), x)


def written_out(x: jax.Array, w: jax.Array) -> jax.Array:
    """The same without a loop."""
    for _ in range(TURNS):
        x = jnp.tanh(x @ w)
    return x


def test_a_loop_costs_what_its_turns_cost() -> None:
    loop, flat = (cost_of(function, square(), square()) for function in (looped, written_out))
    assert loop.flops == flat.flops == TURNS * 2 * SIZE**3
    assert loop.bytes == pytest.approx(flat.bytes, rel=0.5)
    compiled = jax.jit(written_out).lower(square(), square()).compile()
    assert flat.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_loops_within_loops_multiply() -> None:
    def nested(x: jax.Array, ws: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (looped(x, w), None), x, ws)[0]

    found = cost_of(nested, square(), jax.ShapeDtypeStruct((3, SIZE, SIZE), jnp.float32))
    assert found.flops == 3 * TURNS * 2 * SIZE**3 and found.unknown == 0


def test_a_loop_that_does_not_say_turns_as_often_as_it_is_told() -> None:
    def until(x: jax.Array, w: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, y: jnp.tanh(y @ w), x)

    shapes = (square(), square(), jax.ShapeDtypeStruct((), jnp.int32))
    once, often = (cost_of(until, *shapes, turns=turns) for turns in ((), (7,)))
    assert once.unknown == often.unknown == 1
    assert often.flops == 7 * once.flops == 7 * 2 * SIZE**3


def test_a_step_is_a_turn_of_the_inner_loop() -> None:
    def sampler(x: jax.Array, w: jax.Array, n: jax.Array) -> jax.Array:
        def outer(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            y = jax.lax.while_loop(lambda y: y.sum() < n, lambda y: jnp.tanh(looped(y, w)), state[0])
            return y @ w, state[1] - 1

        return jax.lax.while_loop(lambda state: state[1] > 0, outer, (x, n))[0]

    shapes = (square(), square(), jax.ShapeDtypeStruct((), jnp.int32))
    module = parse(jax.jit(sampler).lower(*shapes).compile().as_text() or "")
    assert step_of(module).flops == TURNS * 2 * SIZE**3


def sharded(function: Callable[..., Any], shape: dict[str, int], *specs: PartitionSpec, **loop: Any) -> dict[Any, Any]:
    """(kind, axes) -> (times, bytes) of a function of square matrices on a mesh of eight devices."""
    mesh = make_mesh(shape)
    given = [jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32, sharding=NamedSharding(mesh, spec)) for spec in specs]
    out = NamedSharding(mesh, loop.get("out", PartitionSpec()))
    with jax.set_mesh(mesh):
        text = jax.jit(function, out_shardings=out).lower(*given).compile().as_text() or ""
    return {(t.kind, t.axes): (t.count, t.bytes) for t in traffic_of(cost(parse(text)), mesh, None)}


def test_a_gather_and_a_reduction_over_known_axes() -> None:
    whole = SIZE * SIZE * 4
    found = sharded(lambda x: x * 2, {"fsdp": 4, "tensor": 2}, PartitionSpec("fsdp"))
    assert found == {("all-gather", "fsdp"): (1, whole * 3 / 4)}
    found = sharded(
        lambda x, w: x @ w, {"fsdp": 4, "tensor": 2}, PartitionSpec(None, "tensor"), PartitionSpec("tensor")
    )
    assert found == {("all-reduce", "tensor"): (1, 2 * whole / 2)}


def test_messages_in_a_loop_are_sent_every_turn() -> None:
    def body(x: jax.Array) -> jax.Array:
        ring = [(i, (i + 1) % 8) for i in range(8)]
        move = lambda y, _: (jax.lax.ppermute(y, "context", ring) + 1, None)  # noqa: E731
        return jax.lax.scan(move, x, None, length=TURNS)[0]

    spec = PartitionSpec("context")
    function = jax.shard_map(body, mesh=make_mesh({"context": 8}), in_specs=spec, out_specs=spec)
    found = sharded(function, {"context": 8}, spec, out=spec)
    assert found == {("collective-permute", "context"): (TURNS, TURNS * SIZE * SIZE * 4 / 8)}


def line(opcode: str, shapes: tuple[Shape, ...], operands: tuple[str, ...], rest: str) -> Instruction:
    """One instruction of a hand-made computation."""
    return Instruction("it", shapes, opcode, operands, rest)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("{{0,1,2},{3,4,5}}", (0, 1, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", (0, 2, 4, 6)),
        ("mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
        ("mesh['a'=8] {'a':(1)2}", (0, 4)),
    ],
)
def test_groups_in_every_form(text: str, first: tuple[int, ...]) -> None:
    assert groups(line("all-reduce", (), (), f", channel_id=1, replica_groups={text}, dimensions={{0}}")) == first


def test_groups_in_an_unknown_form_are_an_error() -> None:
    with pytest.raises(ValueError, match="unknown form: 'new"):
        groups(line("all-reduce", (), (), ", replica_groups=new"))


def test_axes_are_named_by_the_mesh() -> None:
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    assert axes_of((0, 2, 4, 6), mesh) == "fsdp"
    assert axes_of((0, 1), mesh) == "tensor"
    assert axes_of(tuple(range(8)), mesh) == "fsdp+tensor"
    assert axes_of((0, 2, 4), mesh) == "part of fsdp"


def test_products_that_tpus_write_as_convolutions() -> None:
    """Batches of 8 x 4 stand in the window, dilated, so that only one place of each meets the input."""
    lines = {
        "q": line("parameter", (Shape("bf16", (8, 32, 4, 16)),), (), ""),
        "k": line("parameter", (Shape("bf16", (8, 24, 4, 16)),), (), ""),
    }
    made = line(
        "convolution",
        (Shape("f32", (8, 4, 32, 24)),),
        ("q", "k"),
        ", window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf, metadata={}",
    )
    assert products(Computation("c", lines, "it"), made) == 2 * 8 * 4 * 32 * 24 * 16


def test_rows_sorted_by_expert() -> None:
    """As an operation, and as a TPU's kernel, which is given vectors besides; what prepares it multiplies nothing."""
    sizes = {"n": (8,), "x": (96, 16), "w": (8, 16, 24)}
    lines = {name: line("parameter", (Shape("bf16", size),), (), "") for name, size in sizes.items()}
    out = (Shape("bf16", (96, 24)),)
    found = [
        Instruction("ragged-dot.1", out, "ragged-dot", ("x", "w", "n"), ""),
        Instruction("ragged-dot-none.7", out, "custom-call", ("n", "n", "x", "w"), ""),
        Instruction("ragged-dot-metadata", out, "custom-call", ("n",), ""),
    ]
    computation = Computation("c", lines, "x")
    assert [products(computation, one) for one in found] == [2 * 96 * 16 * 24] * 2 + [0]


def test_what_lies_on_the_chip_is_no_traffic() -> None:
    text = """HloModule m
ENTRY %main (a: f32[4,4], b: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0:T(8,128)} parameter(0)
  %b = f32[4,4]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %sum = f32[4,4]{1,0:T(8,128)S(1)} add(%a, %b)
}
"""
    assert cost(parse(text)).bytes == 64


def test_a_slice_of_a_large_array_is_what_is_read() -> None:
    """However deep the fusion that cuts it; and writing a slice in place writes no more."""
    text = """HloModule m
%cut (p: f32[8,4], i: s32[]) -> f32[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %d = f32[1,4]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,4}
}
%outer (q: f32[8,4], j: s32[], r: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %r = f32[8,4]{1,0} parameter(2)
  %f = f32[1,4]{1,0} fusion(%q, %j), kind=kLoop, calls=%cut
  %n = f32[1,4]{1,0} negate(%f)
  %y = s32[] constant(0)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%r, %n, %j, %y)
}
ENTRY %main (a: f32[8,4], k: s32[], b: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %k = s32[]{:S(6)} parameter(1)
  %b = f32[8,4]{1,0} parameter(2)
  ROOT %g = f32[8,4]{1,0} fusion(%a, %k, %b), kind=kLoop, calls=%outer
}
"""
    assert cost(parse(text)).bytes == 16 + 16


def test_a_gather_spread_over_fusions_counts_once() -> None:
    """A TPU starts it in one fusion, goes on in others beside products, and ends it in a last one."""
    attributes = 'channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}'
    sent = f"""  %p.N = f32[1,4]{{1,0}} parameter(0)
  %g.N = f32[4,4]{{1,0}} all-gather(%p.N), {attributes}"""
    text = f"""HloModule m
%start (p: f32[1,4]) -> f32[4,4] {{
{sent.replace("N", "1")}
  ROOT %c.1 = f32[4,4]{{1,0}} custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}}
%more (p: f32[1,4]) -> f32[4,4] {{
{sent.replace("N", "2")}
  ROOT %c.2 = f32[4,4]{{1,0}} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}}
ENTRY %main (a: f32[1,4]) -> f32[4,4] {{
  %a = f32[1,4]{{1,0}} parameter(0)
  %f = f32[4,4]{{1,0}} fusion(%a), kind=kCustom, calls=%start
  ROOT %h = f32[4,4]{{1,0}} fusion(%a), kind=kCustom, calls=%more
}}
"""
    assert cost(parse(text)).messages == {Message("all-gather", (0, 1, 2, 3)): (1, 48)}


def test_a_counter_is_read_where_the_text_does_not_tell() -> None:
    text = """HloModule m
%body (s: (s32[], s32[])) -> (s32[], s32[]) {
  %s = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %out = (s32[], s32[]) tuple(%next, %n)
}
%cond (s.1: (s32[], s32[])) -> pred[] {
  %s.1 = (s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n.1 = s32[] get-tuple-element(%s.1), index=1
  ROOT %less = pred[] compare(%i.1, %n.1), direction=LT
}
ENTRY %main () -> (s32[], s32[]) {
  %zero = s32[] constant(1)
  %ten = s32[] constant(10)
  %state = (s32[], s32[]) tuple(%zero, %ten)
  ROOT %loop = (s32[], s32[]) while(%state), condition=%cond, body=%body
}
"""
    module = parse(text)
    main = module.computations["main"]
    assert trip_count(module, main.lines["loop"], Frame(main)) == 5


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule m\n")


def test_bytes_of_types() -> None:
    sizes = {"f32": 4, "bf16": 2, "pred": 1, "s8": 1, "f8e4m3fn": 1, "u64": 8}
    assert {name: Shape(name, (8,)).bytes // 8 for name in sizes} == sizes
    assert Shape("s4", (8,)).bytes == 4
    assert np.prod(Shape("f32", (3, 5)).sizes) == 15
