"""Beyond-accuracy metrics of recommendation lists: coverage, concentration, exposure, novelty and diversity."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.stretches import ranges
from jaxrec.evaluation.histories import ranking_cases
from jaxrec.evaluation.metrics import over_seeds
from jaxrec.runs import Run


def coverage(lists: np.ndarray, n_items: int) -> float:
    """Share of the catalogue in at least one list (aggregate diversity; Adomavicius and Kwon, 2012).

    Args:
      lists: int32[E, K], items, 0 = none.
      n_items: V.
    """
    return float((_counts(lists, n_items) > 0).sum() / n_items)


def gini(lists: np.ndarray, n_items: int) -> float:
    """Gini coefficient of the number of lists of each of the V items: 0 = equal, near 1 = few items get all."""
    counts = np.sort(_counts(lists, n_items)).astype(np.float64)
    if counts.sum() == 0:
        return 0.0
    place = np.arange(1, n_items + 1)
    return float(((2 * place - n_items - 1) * counts).sum() / (n_items * counts.sum()))


def exposure_shift(lists: np.ndarray, item_counts: np.ndarray) -> float:
    """Share of list places that would have to change for exposure in proportion to consumption: 0 = proportional.

    The total variation distance between the items' shares of list places and of training interactions; NaN where there is
    neither.

    Args:
      lists: int32[E, K], 0 = none.
      item_counts: int[V+1], training interactions of each item.
    """
    shown, consumed = _exposure(lists, item_counts)
    return float(np.abs(shown - consumed).sum() / 2)


def head_exposure(lists: np.ndarray, item_counts: np.ndarray) -> float:
    """Share of list places that the most consumed tenth of the items gets, over its share of training interactions.

    1 = as much as it is consumed, above 1 = popular items are shown more than that. Of items with as many interactions as
    the last of the tenth, all count in proportion to the places that are left. NaN where there is no list or interaction.

    Args:
      lists: int32[E, K], 0 = none.
      item_counts: int[V+1], training interactions of each item.
    """
    shown, consumed = _exposure(lists, item_counts)
    if np.isnan(consumed).any():
        return float("nan")
    size = max(1, round(len(consumed) / 10))
    bound = np.sort(consumed)[-size]
    above, level = consumed > bound, consumed == bound
    weight = above + level * ((size - above.sum()) / level.sum())
    return float((weight * shown).sum() / (weight * consumed).sum())


def _exposure(lists: np.ndarray, item_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item's share of list places and of training interactions, float64[V] both."""
    consumed = np.asarray(item_counts, np.float64)[1:]
    shown = _counts(lists, len(consumed)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return shown / shown.sum(), consumed / consumed.sum()


def _counts(lists: np.ndarray, n_items: int) -> np.ndarray:
    return np.bincount(np.asarray(lists).reshape(-1), minlength=n_items + 1)[1:]


def mean_popularity(lists: np.ndarray, item_counts: np.ndarray) -> float:
    """Mean number of training interactions of a listed item; NaN where no list has one.

    Args:
      lists: int32[E, K], 0 = none.
      item_counts: int[V+1], training interactions of each item.
    """
    return _mean(np.asarray(item_counts)[_listed(lists)])


def self_information(lists: np.ndarray, item_counts: np.ndarray, n_users: int) -> float:
    """Mean of -log2(interactions of the item / users), in bits (Zhou et al., PNAS 2010); NaN where no list has an item.

    An item without a training interaction counts as one interaction, so its surprise is that of the rarest. Zhou et al.
    count the users of an item: where users repeat items it has more interactions, and its surprise may be below 0.
    """
    share = np.maximum(np.asarray(item_counts)[_listed(lists)], 1) / n_users
    return _mean(-np.log2(share))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _listed(lists: np.ndarray) -> np.ndarray:
    flat = np.asarray(lists).reshape(-1)
    return flat[flat > 0]


def intra_list_diversity(lists: np.ndarray, attributes: AttributeTable, *, rows_at_once: int = 256) -> float:
    """Mean over lists of the mean Jaccard distance between attribute sets of listed items (Ziegler, 2005).

    Pairs of items that both have no attribute are left out, and lists with no other pair too; NaN if none is
    left.

    Args:
      lists: int32[E, K], 0 = none.
      attributes: CSR over items; item i has ``values[offsets[i]:offsets[i+1]]``.
      rows_at_once: lists in memory at a time, as dense sets.
    """
    lists = np.asarray(lists)
    width = int(attributes.values.max(initial=0)) + 1
    upper = np.triu(np.ones((lists.shape[1], lists.shape[1]), bool), 1)
    total, n_lists = 0.0, 0
    for start in range(0, len(lists), rows_at_once):
        part = lists[start : start + rows_at_once]
        first = np.asarray(attributes.offsets)[part.reshape(-1)]
        sizes = np.where(
            part.reshape(-1) > 0, np.asarray(attributes.offsets)[part.reshape(-1) + 1] - first, 0
        )
        sets = np.zeros((part.size, width), np.float32)
        sets[np.repeat(np.arange(part.size), sizes), np.asarray(attributes.values)[ranges(first, sizes)]] = 1
        sets = sets.reshape(*part.shape, width)
        common = sets @ sets.transpose(0, 2, 1)
        size = sets.sum(axis=2)
        union = size[:, :, None] + size[:, None, :] - common
        pairs = upper[None] & (union > 0) & (part > 0)[:, :, None] & (part > 0)[:, None, :]
        distance = np.where(pairs, 1 - common / np.maximum(union, 1), 0).sum(axis=(1, 2))
        count = pairs.sum(axis=(1, 2))
        total += float((distance[count > 0] / count[count > 0]).sum())
        n_lists += int((count > 0).sum())
    return total / n_lists if n_lists else float("nan")


def beyond_accuracy(
    lists: np.ndarray, item_counts: np.ndarray, n_users: int, attributes: AttributeTable | None = None
) -> dict[str, float]:
    """All measures of this file for lists int32[E, K], under names with K such as "coverage@10"."""
    n_items, k = len(item_counts) - 1, lists.shape[1]
    values = {
        f"coverage@{k}": coverage(lists, n_items),
        f"gini@{k}": gini(lists, n_items),
        f"exposure_shift@{k}": exposure_shift(lists, item_counts),
        f"head_exposure@{k}": head_exposure(lists, item_counts),
        f"mean_popularity@{k}": mean_popularity(lists, item_counts),
        f"self_information_bits@{k}": self_information(lists, item_counts, n_users),
    }
    if attributes is not None:
        values[f"intra_list_diversity@{k}"] = intra_list_diversity(lists, attributes)
    return values


def beyond_accuracy_of(opened: Run, split: str, k: int) -> dict[str, dict[str, Any]]:
    """Beyond-accuracy metrics of a run's lists of ``k``: mean, sd and values over seeds of each.

    Seen items are removed as in the run's evaluation.

    Raises:
      ConfigError: ``k`` is below 1 or above the catalogue.
    """
    setup = opened.setup
    dataset, by_seed = setup.dataset, []
    remove_seen = opened.config.evaluation.remove_seen
    cases = ranking_cases(setup.split.cases(split), dataset.items, setup.timestamps, remove_seen)
    for seed in opened.seeds:
        lists = opened.ranker(seed).top_k(cases.histories, k, cases.exclude).items
        by_seed.append(beyond_accuracy(lists, setup.split.item_counts, dataset.n_users, dataset.attributes))
    return over_seeds(by_seed)
