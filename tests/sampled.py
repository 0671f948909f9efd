"""`generate` with its arguments laid out flat, for tests that change one at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

from infer import sampler
from infer.draft import Draft
from infer.recurrence import Recurrence
from infer.sampler import Rollout
from infer.sampling import Execution, SamplingParams
from infer.thoughts import QUIET, Thoughts
from model.depth import Exit


def specs_of(**options: Any) -> tuple[SamplingParams, dict[str, Any]]:
    """The sampling, and the other keywords of `generate`, that flat options come to; TypeError for unknown ones."""

    def taken(kind: Any) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(kind) if field.name in options]
        return {name: options.pop(name) for name in names}

    if isinstance(options.get("exit"), str):
        options["exit"] = Exit(options["exit"])
    execution = Execution(**taken(Execution))
    sampling = SamplingParams(**taken(SamplingParams), execution=execution)
    kept = {name: options.pop(name) for name in ("tokenizer", "continuation") if name in options}
    drafts = options.pop("draft", False), options.pop("draft_depth", 0), options.pop("draft_length", 0)
    if any(drafts):
        kept["draft"] = Draft(drafts[2], drafts[1])
    if "thoughts" in options:
        noise = options.pop("noise", QUIET)
        kept["thoughts"] = Thoughts(options.pop("thoughts"), options.pop("after", 1), options.pop("soft", None), noise)
    recurrence = taken(Recurrence)
    if options:
        raise TypeError(f"unknown options {sorted(options)}")
    return sampling, kept | ({"recurrence": Recurrence(**recurrence)} if recurrence else {})


def generate(model: Any, params: Any, prompts: Any, key: Any, **options: Any) -> Rollout:
    """`infer.sampler.generate` with the fields of all its parts as keywords."""
    sampling, specs = specs_of(**options)
    return sampler.generate(model, params, prompts, key, sampling, **specs)
