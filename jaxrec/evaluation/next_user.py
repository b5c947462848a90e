"""Items scored for a user from the items' side: the probability that the user is the item's next one.

A next-user model is trained on the transposed log (`jaxrec.data.transposed`): the history of item i is the sequence of its
training users, and the model gives every user a probability of being the next of them. The score of item i for user u is

    log P(u | users of i) + popularity * log P(i)

with the softmax of training over all users, the users of i themselves included, and P(i) from training counts. With
popularity 0 the items are asked alone; 1 is Bayes' rule for log P(i | u) up to a constant of the user. An item without a
training user says nothing about anyone: its P(u | nobody) is the share of u among the members of all sequences. Shares are
of counts plus one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from jaxrec.data.stretches import ranges
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker

#: Items whose scores of all users are in memory together.
ITEMS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class NextUserScorer:
    """Scores of all items for the user of a history; the history itself is not read.

    Attributes:
      item_states: float32[V+1, D], states of the items' sequences of users over the temperature; row 0 is no item.
      log_totals: float32[V+1], log of the softmax's denominator of each item.
      user_vectors: float32[U, D].
      user_bias: float32[U].
      unknown: bool[V+1], items without a training user.
      log_shares: float32[U], log share of each user among the members of all sequences.
      log_popularity: float32[V+1], weighted log P(i) of each item.
    """

    item_states: Float[np.ndarray, "V1 D"]
    log_totals: Float[np.ndarray, " V1"]
    user_vectors: Float[np.ndarray, "U D"]
    user_bias: Float[np.ndarray, " U"]
    unknown: Shaped[np.ndarray, " V1"]
    log_shares: Float[np.ndarray, " U"]
    log_popularity: Float[np.ndarray, " V1"]

    @classmethod
    def build(
        cls,
        ranker: EncoderRanker,
        sequences: Histories,
        item_counts: Shaped[np.ndarray, " V1"],
        popularity: float = 0.0,
        *,
        temperature: float = 1.0,
    ) -> NextUserScorer:
        """Encode the sequence of every item once.

        Args:
          ranker: of the next-user model; its items are the users.
          sequences: V sequences of users, item 1 first.
          item_counts: int[V+1], training interactions of each item.
          popularity: weight of log P(i).
          temperature: of the softmax that the model was trained with (``objective.temperature``).

        Raises:
          DataError: sequences and counts are of different numbers of items.
          ConfigError: ``popularity`` is negative or not finite.
        """
        if not 0 <= popularity < np.inf:
            raise ConfigError(f"--popularity must be a finite number, at least 0; got {popularity}")
        n_items = len(item_counts) - 1
        if len(sequences) != n_items:
            raise DataError(
                f"sequences must hold the users of each of the {n_items} items, got {len(sequences)} sequences"
            )
        assert ranker.table.vectors is not None
        rows = slice(1, ranker.n_items + 1)
        vectors, bias = np.asarray(ranker.table.vectors)[rows], np.asarray(ranker.table.bias)[rows]
        states = np.concatenate(
            [np.zeros((1, vectors.shape[1]), np.float32), np.asarray(ranker.encode(sequences), np.float32)]
        )
        states, bias = states / np.float32(temperature), bias / np.float32(temperature)
        totals = np.empty(n_items + 1, np.float32)
        for first in range(0, n_items + 1, ITEMS_AT_ONCE):
            part = slice(first, first + ITEMS_AT_ONCE)
            totals[part] = log_sum_exp(states[part] @ vectors.T + bias[None])
        places = ranges(np.asarray(sequences.starts), sequences.lengths)
        users = np.bincount(np.asarray(sequences.items)[places], minlength=ranker.n_items + 1)[1:]
        shares = np.append(np.float32(0), _log_shares(np.asarray(item_counts)[1:]))
        return cls(
            item_states=states,
            log_totals=totals,
            user_vectors=vectors,
            user_bias=bias,
            unknown=np.append(True, sequences.lengths == 0),
            log_shares=_log_shares(users),
            log_popularity=(popularity * shares).astype(np.float32),
        )

    @property
    def n_items(self) -> int:
        """V."""
        return len(self.log_totals) - 1

    def scores(self, histories: Histories) -> Float[np.ndarray, "R V1"]:
        """float32[R, V+1], for the user of each history.

        Raises:
          DataError: the users of the histories are not known.
        """
        if histories.users is None:
            raise DataError(
                "a next-user model scores items for users of the log, but these histories name none: give the index of "
                "the user of each history"
            )
        users = np.asarray(histories.users, np.int64)
        if len(users) and (users.min() < 0 or users.max() >= len(self.user_bias)):
            raise DataError(
                f"users must be indices from 0 to {len(self.user_bias) - 1}, got {users.min()} to {users.max()}"
            )
        logits = self.user_vectors[users] @ self.item_states.T + self.user_bias[users, None]
        scores = np.where(self.unknown[None], self.log_shares[users, None], logits - self.log_totals[None])
        return (scores + self.log_popularity[None]).astype(np.float32)


def log_sum_exp(values: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """Log of the sum of exponentials of each row."""
    largest = values.max(axis=1)
    return largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))


def _log_shares(counts: np.ndarray) -> np.ndarray:
    """float32: log of (count + 1) / sum of them."""
    raised = np.asarray(counts, np.float64) + 1.0
    return np.log(raised / raised.sum()).astype(np.float32)
