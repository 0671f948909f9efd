"""What to change when a program does not fit, from its own figures, the cheapest remedy first."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from launch.chips import GB
from model.sharding import MESH_AXES, batch_parts


def advice(config: ConfigDict, mesh: Any, memory: Any, capacity: float) -> list[str]:
    """Sentences, each a setting to change and why; nothing where the program fits."""
    if memory is None or memory.total <= capacity:
        return []
    excess = memory.total - capacity
    return [*_temporaries(config, mesh, memory, excess), *_state(config, mesh, memory, capacity)]


def _temporaries(config: ConfigDict, mesh: Any, memory: Any, excess: float) -> list[str]:
    model, rows = config.model, _rows(config)
    local, micro = rows / batch_parts(mesh), (config.micro_batch or rows) / batch_parts(mesh)
    found = []
    if model.layers == "unrolled" and model.n_layers > 4:
        found.append('model.layers="scanned": layers in a loop share their temporaries, and compile as one')
    if model.remat in ("none", False):
        found.append(
            'model.remat="full": the backward pass then keeps one array of a layer, not all of them; it costs a third'
            " more products"
        )
    if micro > 1:
        least = max(1, int(micro * (1 - excess / max(memory.temporaries, 1))))
        found.append(
            f"config.micro_batch={least * batch_parts(mesh)}: {micro:g} rows at once on a chip leave"
            f" {memory.temporaries / GB:.1f} GB of temporaries, which shrink with them"
        )
    elif local >= 1 and memory.temporaries > excess:
        found.append(
            f"mesh.context=2 (of {config.data.length} columns a chip then holds half) or a shorter data.length: there"
            " is one row on a chip, so rows cannot be fewer"
        )
    return found


def _state(config: ConfigDict, mesh: Any, memory: Any, capacity: float) -> list[str]:
    chips, arguments = mesh.devices.size, memory.arguments
    if arguments < capacity / 3:
        return []
    found = []
    spread = mesh.devices.size // (mesh.shape["data"] * mesh.shape["context"])
    if spread < chips:
        found.append(
            f"more of the mesh for fsdp: the state takes {arguments / GB:.1f} GB a chip, spread over {spread} of"
            f" {chips} chips; axes are {dict(zip(MESH_AXES, mesh.devices.shape, strict=True))}"
        )
    if config.optimizer.ema:
        found.append("optimizer.ema=0: the average is another copy of the parameters")
    if config.model.param_dtype == "float32":
        found.append(
            'model.param_dtype="bfloat16" halves parameters and moments, at a loss of precision in small updates'
        )
    found.append(
        f"more chips: {2 * chips} hold the state in {arguments / 2 / GB:.1f} GB each, if fsdp takes the new ones"
    )
    return found


def _rows(config: ConfigDict) -> int:
    if config.algorithm == "grpo":
        return config.rl.prompts * config.rl.samples // config.rl.minibatches
    return config.data.batch_size
