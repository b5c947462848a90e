"""Losses on (hidden states, item table, targets), all with one signature, and the samplers of negatives."""

from jaxrec.objectives.base import ObjectiveConfig, SamplingInputs
from jaxrec.objectives.cross_entropy import CrossEntropyConfig
from jaxrec.objectives.pointwise import BinaryCrossEntropyConfig
from jaxrec.registry import Registry

OBJECTIVES: Registry[type[ObjectiveConfig]] = Registry(
    "objective",
    {
        "cross-entropy": CrossEntropyConfig,
        "bce": BinaryCrossEntropyConfig,
    },
)

__all__ = [
    "OBJECTIVES",
    "BinaryCrossEntropyConfig",
    "CrossEntropyConfig",
    "ObjectiveConfig",
    "SamplingInputs",
]
