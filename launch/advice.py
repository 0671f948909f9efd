"""What to change when a program does not fit, from its own figures, the cheapest remedy first."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from launch.chips import GB
from model.sharding import batch_parts


def advice(
    config: ConfigDict, mesh: Any, state: float, needs: float, capacity: float, trains: bool = True
) -> list[str]:
    """Sentences, each a setting to change and why; nothing where the program fits.

    `state` bytes a chip are given, `needs` in all: the rest are temporaries. `trains`: a step of training, not of
    decoding.
    """
    if needs <= capacity:
        return []
    if not trains:
        return _decoding(config, mesh, needs, capacity)
    temporaries = max(needs - state, 0.0)
    parts = [_temporaries(config, mesh, temporaries, needs - capacity), _state(config, mesh, state, capacity)]
    return [sentence for part in (parts if temporaries > state else parts[::-1]) for sentence in part]


def _temporaries(config: ConfigDict, mesh: Any, temporaries: float, excess: float) -> list[str]:
    model, rows, parts = config.model, _rows(config), batch_parts(mesh)
    here = (config.micro_batch or rows) / parts
    advice = []
    if model.layers == "unrolled" and model.n_layers > 4:
        advice.append('model.layers="scanned": layers in a loop share their temporaries, and compile as one')
    if model.remat in ("none", False):
        advice.append(
            'model.remat="full": the backward pass then finds one array of each layer kept, not all of them, and'
            " computes the others again: a third more products"
        )
    if here > 1:
        least = max(1, int(here * (1 - excess / max(temporaries, 1))))
        advice.append(
            f"micro_batch={least * parts}: {here:g} rows at once on a chip take {temporaries / GB:.1f} GB of"
            " temporaries, most of which shrink with the rows"
        )
    else:
        advice.append(
            f"mesh.context={2 * mesh.shape['context']}, or a shorter data.length than {config.data.length}: a chip has"
            " one row at a time, which cannot be cut otherwise"
        )
    return advice


def _state(config: ConfigDict, mesh: Any, state: float, capacity: float) -> list[str]:
    chips, spread = mesh.devices.size, mesh.devices.size // (mesh.shape["data"] * mesh.shape["context"])
    if state < capacity / 3:
        return []
    advice = []
    if spread < chips:
        advice.append(
            f"more of the mesh for fsdp: {state / GB:.1f} GB of state a chip are spread over {spread} of {chips} chips"
        )
    if config.optimizer.memory == "device":
        advice.append('optimizer.memory="host": moments lie in the hosts\' memory between updates')
    if config.optimizer.ema:
        advice.append("optimizer.ema=0: the average is another copy of the parameters")
    if config.model.param_dtype == "float32":
        advice.append('model.param_dtype="bfloat16" halves parameters and moments; small updates are then rounded away')
    advice.append(f"more chips: {2 * chips} hold {state / 2 / GB:.1f} GB of state each, where fsdp takes the new ones")
    return advice


def _decoding(config: ConfigDict, mesh: Any, needs: float, capacity: float) -> list[str]:
    grpo, found, parts = config.algorithm == "grpo", [], batch_parts(mesh)
    name, rules = ("rl", config.rl) if grpo else ("eval", config.eval)
    samples = (config.rl.prompts if grpo else max(rules.examples, 1)) * rules.samples
    slots = min(rules.slots or samples, samples)
    fewer = max(int(slots * capacity / needs) // parts, 1) * parts
    if fewer < slots:
        found.append(f"{name}.slots={fewer}: each of {slots} has keys of its own, and prompts wait for it with theirs")
    if config.model.depth == "recurrent" and not config.model.recurrent.kv_slots:
        half = max(config.model.recurrent.mean // 2, 1)
        found.append(f"model.recurrent.kv_slots={half}: of a token's iterations, the last so many keep their keys")
    found.append(
        f"{name}.max_new_tokens below {rules.max_new_tokens}: a slot has room for the longest prompt and so many more"
    )
    if fewer >= slots:
        found.append(f"mesh.tensor={2 * mesh.shape['tensor']}: devices then share the heads of a slot's keys")
    return found


def _rows(config: ConfigDict) -> int:
    if config.algorithm == "grpo":
        return config.rl.prompts * config.rl.samples // config.rl.minibatches
    return config.data.batch_size
