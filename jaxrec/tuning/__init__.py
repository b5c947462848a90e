"""Tuning: a search over the options of a configuration, judged on validation alone."""

from jaxrec.tuning.api import tune
from jaxrec.tuning.report import TuningResult
from jaxrec.tuning.space import search_space

__all__ = ["TuningResult", "search_space", "tune"]
