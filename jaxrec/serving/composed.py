"""Exact lists of a run whose items are composed of codes, from the codes alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.evaluation.composed import ComposedTable
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranking import TopK
from jaxrec.evaluation.seen import SeenItems
from jaxrec.serving.recommender import Recommender


class ComposedIndex:
    """Items of a run as codes: less memory than a vector per item, and faster lists for few histories and many items.

    Args:
      recommender: of a finished run.
      method: see `jaxrec.evaluation.composed.ComposedTable.top_k`.

    Raises:
      ConfigError: the run has a row per item, or scores cosines.
    """

    def __init__(self, recommender: Recommender, method: Literal["sum", "prune"] = "sum"):
        config = recommender.config.encoder.item_codes
        if not config.on:
            raise ConfigError(
                "an index of codes needs a run whose items are composed: expected --encoder.item-codes.method hashed, "
                "product or residual, got 'none'"
            )
        if getattr(recommender.config.encoder, "similarity", "dot") != "dot":
            raise ConfigError(
                "an index of codes adds up products with the codes' vectors: expected a run with --encoder.similarity dot, "
                "got 'cosine'; ask Recommender.lists for its lists"
            )
        self.recommender, self.method = recommender, method
        params, rows = recommender.params, slice(1, recommender.items.n_items + 1)
        kind = np.uint8 if config.size <= 256 else np.uint16 if config.size <= 65536 else np.uint32
        bias = params.get("item_bias")
        self.table = ComposedTable(
            (np.asarray(params["items"]["codes"])[rows].astype(np.int64) - 1).astype(kind),
            np.asarray(params["items"]["code_table"]),
            config.method == "product",
            None if bias is None else np.asarray(bias)[rows],
            recommender.ranker.table.tie_seed,
        )

    def top_k(self, histories: Histories, k: int, removed: SeenItems) -> TopK:
        """Find the k best items of each history, best first: those of `jaxrec.serving.lists.Lists.top_k`, up to rounding.

        Args:
          histories: E histories, none of them empty.
          k: length of the lists, 1 to V.
          removed: items that are no candidates.
        """
        return self.table.top_k(self.recommender.lists.states(histories), k, removed, self.method)
