"""Answering with a trained model."""

from jaxrec.serving.recommender import Recommendation, Recommender
from jaxrec.serving.requests import Request

__all__ = ["Recommendation", "Recommender", "Request"]
