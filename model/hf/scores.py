"""Reward models in the Hub's words: classifiers of whole texts, and of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settings.model import Architecture
from settings.setting import unknown

LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel", "Model")
# What ends a class's name -> whether its head has a bias. The first is scored at its last token, the other at any.
CLASSIFIERS = {"ForSequenceClassification": False, "ForTokenClassification": True}


def score_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The field `score` of an Architecture; {} for a language model. Raises ValueError for another kind of model."""
    named = config.get("architectures") or ["ForCausalLM"]
    kind = next((end for end in CLASSIFIERS if named[0].endswith(end)), "")
    if not kind:
        if "For" in named[0] and not named[0].endswith(LANGUAGE_MODEL):
            raise ValueError(
                unknown("architecture", named[0], [f"...{end}" for end in (*LANGUAGE_MODEL, *CLASSIFIERS)])
            )
        return {}
    size = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    pad = config.get("pad_token_id") if kind == "ForSequenceClassification" else None
    return {"score": {"size": size, "bias": CLASSIFIERS[kind], "pad": pad}}


def score_values(config: Architecture, architecture: str) -> dict[str, Any]:
    """What config.json says of scores; ValueError where transformers has no class for them."""
    score = config.score
    if not score.size:
        return {}
    kind = next(end for end, bias in CLASSIFIERS.items() if bias == score.bias)
    labels = {str(n): f"LABEL_{n}" for n in range(score.size)}
    pad = {} if score.pad is None else {"pad_token_id": score.pad}
    return {
        "architectures": [architecture.removesuffix("ForCausalLM") + kind],
        "id2label": labels,
        "label2id": {name: int(n) for n, name in labels.items()},
        **pad,
    }
