"""Losses on (hidden states, item table, targets), all with one signature, and the samplers of negatives."""

from jaxrec.objectives.base import Loss, LossInputs, LossSums, ObjectiveConfig, SamplingInputs
from jaxrec.objectives.cross_entropy import CrossEntropyConfig
from jaxrec.objectives.listwise import InBatchConfig, SampledSoftmaxConfig, ScalableCrossEntropyConfig
from jaxrec.objectives.pairwise import (
    BPRConfig,
    BPRMaxConfig,
    BPRPositiveVersusNegativeConfig,
    TOP1MaxConfig,
)
from jaxrec.objectives.pointwise import BinaryCrossEntropyConfig, GeneralizedBinaryCrossEntropyConfig
from jaxrec.objectives.samplers import SAMPLERS
from jaxrec.registry import Registry

OBJECTIVES: Registry[type[ObjectiveConfig]] = Registry(
    "objective",
    {
        "cross-entropy": CrossEntropyConfig,
        "sampled-softmax": SampledSoftmaxConfig,
        "bce": BinaryCrossEntropyConfig,
        "gbce": GeneralizedBinaryCrossEntropyConfig,
        "bpr": BPRConfig,
        "bpr-pvn": BPRPositiveVersusNegativeConfig,
        "bpr-max": BPRMaxConfig,
        "top1-max": TOP1MaxConfig,
        "in-batch": InBatchConfig,
        "scalable-cross-entropy": ScalableCrossEntropyConfig,
    },
)

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "BPRConfig",
    "BPRMaxConfig",
    "BPRPositiveVersusNegativeConfig",
    "BinaryCrossEntropyConfig",
    "CrossEntropyConfig",
    "GeneralizedBinaryCrossEntropyConfig",
    "InBatchConfig",
    "Loss",
    "LossInputs",
    "LossSums",
    "ObjectiveConfig",
    "SampledSoftmaxConfig",
    "SamplingInputs",
    "ScalableCrossEntropyConfig",
    "TOP1MaxConfig",
]
