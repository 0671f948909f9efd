"""What a network is. Knows nothing of data, training or rewards."""

from model import hf
from model.cache import Cache
from model.config import ModelConfig, RopeConfig
from model.lm import Model, Output, build, parameter_count

__all__ = ["Cache", "Model", "ModelConfig", "Output", "RopeConfig", "build", "hf", "parameter_count"]
