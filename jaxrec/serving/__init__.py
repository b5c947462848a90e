"""Answering with a trained model."""

from jaxrec.serving.generation import GenerationConfig
from jaxrec.serving.recommender import Recommendation, Recommender
from jaxrec.serving.requests import Request
from jaxrec.serving.sequences import Beam, GeneratedSequence

__all__ = [
    "Beam",
    "GeneratedSequence",
    "GenerationConfig",
    "Recommendation",
    "Recommender",
    "Request",
]
