"""The config of a model: its architecture, which the Hub's config.json can be read into and written from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from settings.model import DTYPES, Architecture
from settings.model_parts import (
    DeltaConfig,
    MLAConfig,
    MoEConfig,
    MTPConfig,
    PEERConfig,
    RecurrentConfig,
    RNNConfig,
    RopeConfig,
    ScoreConfig,
)
from settings.setting import unknown

__all__ = [
    "DTYPES",
    "DeltaConfig",
    "MLAConfig",
    "MTPConfig",
    "MoEConfig",
    "ModelConfig",
    "PEERConfig",
    "RNNConfig",
    "RecurrentConfig",
    "RopeConfig",
    "ScoreConfig",
    "unknown",
]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Architecture):
    """An `Architecture` (settings/model.py lists its fields) in the Hub's words, too."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Builds from the dict of a Hugging Face `config.json`, in either spelling of its rope settings.

        Null counts as absent. Keys that change nothing are ignored, and a warning names those that look as if they
        did. Raises ValueError for a `model_type` we do not know, for a missing size, for a value of the wrong kind, and
        for any setting whose maths we lack.
        """
        from model.hf.config import fields_of  # here: model.hf, the package, builds models

        return cls.from_dict(fields_of(config))

    def to_hf(self) -> dict[str, Any]:
        """The dict of a Hugging Face `config.json` of this config's family; ValueError for what that cannot say."""
        from model.hf.config import to_hf

        return to_hf(self)
