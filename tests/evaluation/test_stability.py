"""Edits of histories against lists in plain Python, and list similarities against their definitions."""

import numpy as np
import pytest

from jaxrec.analysis.stability import (
    DEFAULT_PERTURBATIONS,
    Perturbation,
    compare_stability,
    jaccard,
    measure_stability,
    perturb,
    rank_biased_overlap,
)
from jaxrec.errors import ConfigError
from jaxrec.evaluation.encode import EncodingOptions
from jaxrec.evaluation.histories import Histories, ranking_cases
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.ranking import candidate_table
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import take_positions

N_ITEMS = 30


def log(lengths=(5, 1, 0, 9, 40), seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items, times = rng.integers(1, N_ITEMS + 1, offsets[-1]).astype(np.int32), np.arange(offsets[-1])
    return Histories(items, offsets[:-1], offsets[1:], times)


def histories(log):
    return [log.items[a:b].tolist() for a, b in zip(log.starts, log.stops, strict=True)]


def one_edit_apart(edit, old, new):
    """Can one edit turn the list ``old`` into ``new``? The places where it can."""
    n = len(old)
    if edit == "drop":
        return [i for i in range(n) if old[:i] + old[i + 1 :] == new]
    if edit == "replace":
        return [
            i for i in range(n) if old[:i] == new[:i] and old[i + 1 :] == new[i + 1 :] and old[i] != new[i]
        ]
    if edit == "swap":
        return [i for i in range(1, n) if [*old[: i - 1], old[i], old[i - 1], *old[i + 1 :]] == new]
    return [i for i in range(n + 1) if len(new) == n + 1 and new[:i] + new[i + 1 :] == old]


@pytest.mark.parametrize("edit", ["drop", "replace", "swap", "insert"])
@pytest.mark.parametrize("where", ["last", "random"])
def test_one_edit_in_every_history(edit, where):
    before = log()
    after = perturb(before, Perturbation(edit, where, seed=3), N_ITEMS)
    for old, new in zip(histories(before), histories(after), strict=True):
        if not old or (len(old) == 1 and edit in ("drop", "swap")):
            assert new == old  # never emptied; nothing to change places with
            continue
        places = one_edit_apart(edit, old, new)
        assert places
        if where == "last":
            assert len(old) - (edit != "insert") in places
    assert after.timestamps.shape == after.items.shape
    assert all(
        (np.diff(after.timestamps[a:b]) >= 0).all() for a, b in zip(after.starts, after.stops, strict=True)
    )
    again = perturb(before, Perturbation(edit, where, seed=3), N_ITEMS)
    np.testing.assert_array_equal(after.items, again.items)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_rate_is_the_share_of_edited_interactions(rate):
    before = log()
    after = perturb(before, Perturbation("replace", "random", rate), N_ITEMS)
    for old, new in zip(histories(before), histories(after), strict=True):
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert changed == min(len(old), max(1, round(rate * len(old))))
    dropped = perturb(before, Perturbation("drop", "random", rate), N_ITEMS)
    assert dropped.lengths.tolist() == [max(n - max(1, round(rate * n)), min(n, 1)) for n in before.lengths]


def test_replacements_are_other_items_of_the_catalogue():
    many = log((4000,))
    after = perturb(many, Perturbation("replace", "random", 0.9), N_ITEMS)
    assert after.items.min() == 1
    assert after.items.max() == N_ITEMS
    assert (after.items != many.items).sum() == 3600


def test_list_similarities_by_their_definitions():
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.permutation(12)[:6] + 1 for _ in range(9)]) for _ in range(2))
    b[0], p = a[0], 0.8
    want_overlap, want_jaccard = [], []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        shared = [len(set(x[:d]) & set(y[:d])) for d in range(1, 7)]
        terms = sum(shared[d - 1] / d * p**d for d in range(1, 7))
        want_overlap.append(shared[-1] / 6 * p**6 + (1 - p) / p * terms)
        want_jaccard.append(shared[-1] / len(set(x) | set(y)))
    np.testing.assert_allclose(rank_biased_overlap(a, b, p), want_overlap, rtol=1e-12)
    np.testing.assert_allclose(jaccard(a, b), want_jaccard)
    assert rank_biased_overlap(a, a, p) == pytest.approx(1)
    assert jaccard(a * 0, b * 0).tolist() == [1] * 9


def last_item(params, batch, at):
    return take_positions(params[batch.items], at)


def first_item(params, batch, at):
    """Depends on nothing that edits of the last interaction change."""
    return params[0 * at + 1]


def test_models_are_measured_and_compared(make_cases):
    rng = np.random.default_rng(0)
    params = rng.normal(size=(N_ITEMS + 1, 8)).astype(np.float32)
    items = rng.integers(1, N_ITEMS + 1, 20 * 6).astype(np.int32)
    starts = np.arange(0, 120, 6)
    cases = make_cases(starts, starts + 6, rng.integers(1, N_ITEMS + 1, (20, 2)).tolist())
    edits = (Perturbation("drop"), Perturbation("swap", "random"), Perturbation("replace", "random", 0.4))
    asked = ranking_cases(cases, items)

    def ranker(apply_fn):
        return EncoderRanker(apply_fn, params, candidate_table(ItemTable(params)), EncodingOptions(4))

    moved, still = (measure_stability(ranker(f), asked, 4, 5, edits) for f in (last_item, first_item))
    want = ranker(last_item).rank(asked)
    np.testing.assert_array_equal(moved[0].ranks_before, want)
    assert [each.perturbation.name for each in moved] == ["drop last", "swap random", "replace random 40%"]
    assert all((each.overlap > 1 - 1e-9).all() and (each.jaccard == 1).all() for each in still)
    assert still[0].summary()["median_rank_change"] == 0
    assert moved[0].summary()["jaccard@5"] < 0.6
    assert moved[0].change("HR@5").shape == (20,)
    effects = compare_stability(moved, still)
    assert effects["drop last"].low > 0
    with pytest.raises(ConfigError, match="must be measured under the same perturbations"):
        compare_stability(moved, still[:1])


def test_bad_perturbations_are_refused():
    with pytest.raises(ConfigError, match=r"drop, replace, swap or insert .* got edit='erase'"):
        Perturbation("erase")
    with pytest.raises(ConfigError, match=r"rate must be in \[0, 1\), got 1"):
        Perturbation("drop", rate=1)
    with pytest.raises(ConfigError, match="p must be between 0 and 1, got 1"):
        rank_biased_overlap(np.ones((1, 1)), np.ones((1, 1)), 1.0)
    names = [each.name for each in DEFAULT_PERTURBATIONS]
    assert len(set(names)) == len(names) == 11
