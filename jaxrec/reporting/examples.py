"""Example users of a run's page: history, the model's list, and the held-out items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.evaluation.evaluate import usable_cases
from jaxrec.evaluation.histories import ranking_cases
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.training.loop import FitResult

#: With at most so many test cases all are encoded, by the program that the evaluation compiled already.
ENCODE_ALL = 20_000


@dataclasses.dataclass(frozen=True)
class Shown:
    """An item of the page.

    Attributes:
      label: its title, or its id where it has none.
      id: its original id.
      hit: whether it is a held-out item of the user.
    """

    label: str
    id: str
    hit: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """A user of the page.

    Attributes:
      user: original id.
      length: interactions of the history.
      history: its newest items, oldest first.
      recommendations: best items of the first seed's model, best first.
      targets: held-out items, each with its rank among all candidates; None for one that is no candidate, as a seen item.
    """

    user: str
    length: int
    history: list[Shown]
    recommendations: list[Shown]
    targets: list[tuple[Shown, int | None]]

    @property
    def hit(self) -> bool:
        """Whether a held-out item is among the recommendations."""
        return any(item.hit for item in self.recommendations)


def example_users(fit: FitResult, count: int = 8, k: int = 10, newest: int = 8) -> list[Example]:
    """Draw test users at random and recommend for them; none where several processes share the model.

    Args:
      fit: the trained model.
      count: users at most.
      k: length of the lists.
      newest: items of a history that are shown.
    """
    setup = fit.setup
    if jax.process_count() > 1:
        return []
    dataset, config = setup.dataset, setup.config
    cases = ranking_cases(
        usable_cases(setup.split.cases("test"))[0],
        dataset.items,
        setup.timestamps,
        config.evaluation.remove_seen,
    )
    known = np.flatnonzero(cases.histories.lengths > 0)
    drawn = np.random.default_rng(0).permutation(known)
    if cases.histories.users is not None:  # one case of each: successive targets of a user are as many cases
        first = np.unique(np.asarray(cases.histories.users)[drawn], return_index=True)[1]
        drawn = drawn[np.sort(first)]
    rows = np.sort(drawn[:count])
    if not len(rows):
        return []
    params = fit.seed_params(0)
    ranker = setup.ranker(params)
    if len(cases) <= ENCODE_ALL:
        states = np.asarray(ranker.encode(cases.histories))[rows]
    else:
        states = np.asarray(ranker.encode(cases.histories.select(rows)))
    table = setup.encoder.item_table(params)
    scores = states @ np.asarray(table.vectors)[: dataset.n_items + 1].T
    if table.bias is not None:
        scores = scores + np.asarray(table.bias)[None, : dataset.n_items + 1]
    # Equal scores in the order of ranks and lists.
    keys = tie_keys(np.arange(dataset.n_items + 1), ranker.table.tie_seed)
    ranks = fit.test[0].ranks
    examples = []
    for place, row in enumerate(rows):
        start, stop = int(cases.histories.starts[row]), int(cases.histories.stops[row])
        history = np.asarray(dataset.items[start:stop])
        span = slice(int(cases.target_offsets[row]), int(cases.target_offsets[row + 1]))
        targets = np.asarray(cases.targets[span])
        scores[place, 0] = -np.inf
        if config.evaluation.remove_seen:
            scores[place, history] = -np.inf
        best = np.lexsort((keys, -scores[place]))[:k]
        best = best[np.isfinite(scores[place, best])]
        users = cases.histories.users
        examples.append(
            Example(
                user=dataset.user_ids[int(users[row])] if users is not None else str(row),
                length=len(history),
                history=_shown(dataset, history[-newest:]),
                recommendations=_shown(dataset, best, set(targets.tolist())),
                targets=[
                    (item, None if rank == MISSED else int(rank))
                    for item, rank in zip(_shown(dataset, targets), ranks[span], strict=True)
                ],
            )
        )
    return examples


def _shown(dataset: SequenceDataset, items: Iterable[int], hits: Iterable[int] = ()) -> list[Shown]:
    titles, ids, hits = dataset.item_titles, dataset.item_ids, set(hits)
    shown = []
    for item in map(int, items):
        name = ids[item - 1]
        shown.append(Shown((titles[item - 1] if titles is not None else "") or name, name, item in hits))
    return shown
