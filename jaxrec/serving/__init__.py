"""Answering with a trained model."""

from jaxrec.serving.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
