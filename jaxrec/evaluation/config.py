"""Options of the evaluation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, get_args

from jaxrec.errors import ConfigError
from jaxrec.options import Range, validate

#: Ways to rank without training; see `jaxrec.evaluation.baselines`.
Baseline = Literal["popularity", "popularity-7d", "markov", "item-knn", "graph"]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Metrics on held-out targets, and the sizes of the pieces in which they are computed.

    Attributes:
      ks: list lengths K of HR@K and NDCG@K.
      remove_seen: rank each target among the items that the user has not interacted with ("seen items removed"); False
        ranks it among all items ("seen items kept").
      item_chunk: items scored at a time, which bounds the memory of ranking; 0 = automatic, at most 4,096.
      tokens_per_batch: positions encoded at a time.
      baselines: ways to rank without training that stand beside the model; an empty list leaves all out. Over 100,000 items
        "graph", "popularity-7d" and "item-knn" take longer than a model, the longest first.
    """

    ks: tuple[Annotated[int, Range("[1, inf)")], ...] = (5, 10, 20)
    remove_seen: bool = True
    item_chunk: Annotated[int, Range("[0, inf)")] = 0
    tokens_per_batch: Annotated[int, Range("[1, inf)")] = 6400
    baselines: tuple[Baseline, ...] = get_args(Baseline)

    def __post_init__(self) -> None:
        """Check every option."""
        validate(self, "evaluation")
        if not self.ks:
            raise ConfigError(f"--evaluation.ks must be one list length or more; got {self.ks}")
