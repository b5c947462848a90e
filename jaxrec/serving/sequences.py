"""Generated sequences in original ids."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.serving.generation import Generated


@dataclasses.dataclass(frozen=True)
class Beam:
    """One of the sequences that a beam search found.

    Attributes:
      items: original ids, in order.
      log_probability: sum of the log-probabilities of its items, each in the softmax over the candidates of its step.
    """

    items: list[str]
    log_probability: float


@dataclasses.dataclass(frozen=True)
class GeneratedSequence:
    """The answer to one history.

    Attributes:
      items: original ids of the next items, in order; fewer than asked for only where no candidate is left.
      titles: their titles, or None for a dataset without titles.
      scores: score of each item at its step, as ``recommend`` would give it; for the first item after a history without any
        known id the logarithm of 1 + its training interactions.
      log_probabilities: of each item in the softmax over the candidates of its step, of scores over the objective's
        temperature, as in training.
      unknown: ids of the history that are not in the catalogue; they were ignored.
      popular: whether no item of the history is known, so that the first item is chosen by popularity.
      beams: all sequences that the beam search found, best first; None for other methods.
    """

    items: list[str]
    titles: list[str] | None
    scores: list[float]
    log_probabilities: list[float]
    unknown: list[str]
    popular: bool
    beams: list[Beam] | None = None


def sequence_of(
    generated: Generated, row: int, catalogue: SequenceDataset, unknown: list[str], popular: bool
) -> GeneratedSequence:
    """The answer to history ``row`` of a call.

    Args:
      generated: of the whole call.
      row: number of the history.
      catalogue: ids and titles of the items.
      unknown: see `GeneratedSequence`.
      popular: see `GeneratedSequence`.
    """
    names, titles = catalogue.item_ids, catalogue.item_titles

    def real(beam: int) -> np.ndarray:
        return np.flatnonzero(generated.items[row, beam] > 0)

    best = real(0)
    chosen = generated.items[row, 0, best] - 1
    beams = [
        Beam(
            [names[i] for i in generated.items[row, beam, real(beam)] - 1],
            float(generated.log_probabilities[row, beam, real(beam)].sum()),
        )
        for beam in range(generated.items.shape[1])
        if len(real(beam))
    ]
    return GeneratedSequence(
        items=[names[i] for i in chosen],
        titles=None if titles is None else [titles[i] for i in chosen],
        scores=generated.scores[row, 0, best].tolist(),
        log_probabilities=generated.log_probabilities[row, 0, best].tolist(),
        unknown=unknown,
        popular=popular,
        beams=beams if generated.items.shape[1] > 1 else None,
    )
