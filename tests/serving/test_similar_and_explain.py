"""Neighbours and leave-one-out effects against slow NumPy and against lists of the whole catalogue."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError, DataError
from jaxrec.nn.item_table import EuclideanItemTable
from jaxrec.serving.explain import explain
from jaxrec.serving.similar import SimilarItems
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_neighbours_by_cosine(recommender, served):
    table = np.asarray(recommender.encoder.item_table(recommender.params).vectors, np.float64)[1:41]
    answers = SimilarItems(recommender).of(["i7", "i0"], 5)
    for answer, item in zip(answers, (7, 0), strict=True):
        cosines = [a @ table[item] / np.linalg.norm(a) / np.linalg.norm(table[item]) for a in table]
        want = [i for i in np.argsort(cosines)[::-1] if i != item][:5]
        assert answer.items == [f"i{i}" for i in want]
        np.testing.assert_allclose(answer.scores, [cosines[i] for i in want], atol=1e-5)
        assert answer.titles == [f"Item {i}" for i in want]
    outcome = jaxrec("similar", served, "i7", "-k", 5, "--json").json
    assert outcome["items"] == answers[0].items
    with pytest.raises(DataError, match=r"item must be an id of the catalogue, got '\?'"):
        SimilarItems(recommender).of(["?"])
    with pytest.raises(ConfigError, match="k must be an integer from 1 to 39"):
        SimilarItems(recommender).of(["i1"], 40)


def test_neighbours_by_distance(recommender, monkeypatch):
    points = np.random.default_rng(0).normal(size=(41, 6)).astype(np.float32)
    encoder = type(recommender.encoder)
    monkeypatch.setattr(
        encoder, "item_table", lambda self, params: EuclideanItemTable.of_points(jnp.asarray(points))
    )
    answer = SimilarItems(recommender).of(["i4"], 6)[0]
    distances = ((points[1:] - points[5]) ** 2).sum(1)
    want = [i for i in np.argsort(distances) if i != 4][:6]
    assert answer.items == [f"i{i}" for i in want]
    np.testing.assert_allclose(answer.scores, -distances[want], rtol=1e-4)


@pytest.mark.parametrize("history", [["i1", "?", "i3", "i1"], ["i9"], [f"i{i}" for i in range(20)]])
def test_each_interaction_left_out(recommender, served, history):
    """The scores of the whole catalogue, once with the history and once without each interaction."""
    answer = explain(recommender, history, "i12")
    known = [place for place, item in enumerate(history) if item != "?"]

    def whole(items):
        lists = recommender.recommend([items], 40, remove_seen=False)[0]
        return dict(zip(lists.items, lists.scores, strict=True)), lists.items.index("i12") + 1

    scores, rank = whole(history)
    assert answer.score == pytest.approx(scores["i12"], abs=1e-5)
    assert answer.rank == rank
    read = known[-16:]
    assert [reason.place for reason in answer.reasons] == read
    assert [reason.item for reason in answer.reasons] == [history[place] for place in read]
    for reason in answer.reasons:
        rest = history[: reason.place] + history[reason.place + 1 :]
        if any(item != "?" for item in rest):
            without, rank = whole(rest)
            assert reason.change == pytest.approx(scores["i12"] - without["i12"], abs=2e-5)
            assert reason.rank_without == rank
        else:  # the empty history has the zero state
            assert reason.change == pytest.approx(scores["i12"], abs=1e-5)
    assert answer.unknown == [item for item in history if item == "?"]


def test_explaining_the_first_of_the_list(recommender, served):
    outcome = jaxrec("explain", served, "--history", "i1", "i3", "--json").json
    assert outcome["item"] == recommender.recommend([["i1", "i3"]], 1)[0].items[0]
    assert "change of the score" in jaxrec("explain", served, "--history", "i1", "i3").out
    with pytest.raises(DataError, match="history must hold an item of the catalogue"):
        explain(recommender, ["?"])
    with pytest.raises(DataError, match=r"item must be an id of the catalogue, got '\?'"):
        explain(recommender, ["i1"], "?")
    everything = [str(item) for item in recommender.items.item_ids]
    with pytest.raises(
        DataError, match="history holds all 40 items of the catalogue, and the run removes seen"
    ):
        explain(recommender, everything)
    assert explain(recommender, everything, "i3").item == "i3"
