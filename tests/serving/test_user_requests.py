"""A known user by id, a bare history, an unknown id: through every way of asking a model with vectors of users."""

import numpy as np
import polars as pl
import pytest

from jaxrec.analysis import attention_maps
from jaxrec.errors import DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.runs import Run
from jaxrec.serving import Recommender, Request
from jaxrec.serving.bulk import BulkJob, run_bulk
from jaxrec.serving.explain import explain
from tests.helpers import small_dataset

HISTORY = ["i3", "i4", "i6"]


@pytest.fixture(scope="module")
def run(personal):
    return personal


@pytest.fixture(scope="module")
def model(personal):
    return Recommender.load(personal)


def scores(model, user):
    return model.recommend([HISTORY], 5, user=[user])[0]


def test_a_user_by_id_a_bare_history_and_an_unknown_id(model, run):
    bare, unknown, first, second = (scores(model, user) for user in (None, "nobody", "u8", "u9"))
    assert (bare.known_user, unknown.known_user, first.known_user) == (False, False, True)
    assert bare.items == unknown.items
    assert bare.scores == unknown.scores
    assert len({tuple(each.scores) for each in (bare, first, second)}) == 3
    short = scores(model, "u7")
    assert not short.known_user, "without a training target"
    assert short.scores == bare.scores
    together = model.recommend([HISTORY] * 3, 5, user=["u8", None, "u9"])
    for answer, alone in zip(together, (first, bare, second), strict=True):
        np.testing.assert_allclose(answer.scores, alone.scores, rtol=1e-4)
    assert model.items.n_users == 60, "the ids are in the run directory"
    assert not len(model.items.items), "and no interaction"
    # The evaluation's ranker, on the dataset itself, says the same of user number 8.
    log = model.items.item_indices(HISTORY).astype(np.int32)
    ranker = Run(run, small_dataset()).ranker()
    same = ranker.top_k(Histories(log, np.array([0]), np.array([3]), users=np.array([8])), 40)
    numbers = model.items.item_indices(first.items)
    place = [list(same.items[0]).index(number) for number in numbers]
    np.testing.assert_allclose(same.scores[0][place], first.scores, rtol=1e-4)


def test_generated_and_explained_for_a_user(model):
    sequences = model.generate([HISTORY] * 2, 3, user=["u8", None])
    assert sequences[0].scores[0] == pytest.approx(scores(model, "u8").scores[0], rel=1e-4)
    assert sequences[1].scores[0] == pytest.approx(scores(model, None).scores[0], rel=1e-4)
    item = scores(model, "u8").items[0]
    assert explain(model, HISTORY, item, user="u8").score == pytest.approx(
        scores(model, "u8").scores[0], rel=1e-4
    )
    assert explain(model, HISTORY, item).score != pytest.approx(scores(model, "u8").scores[0], rel=1e-4)


def test_attention_is_drawn_for_a_new_user(run, tmp_path, monkeypatch):
    batches = []

    def write(*given):
        batches.append(given[2])
        return [("figure", tmp_path)]

    monkeypatch.setattr(attention_maps, "write_attention_figures", write)
    attention_maps.draw_attention(run, HISTORY, tmp_path)
    assert (np.asarray(batches[0].users) == -1).all(), "and not for the first user of the log"


def test_bulk_lists_of_the_log_and_of_a_file(model, run, tmp_path):
    dataset = model.run.dataset
    run_bulk(BulkJob(str(run), str(tmp_path / "all"), k=4))
    table = pl.read_parquet(tmp_path / "all" / "part-*.parquet")
    for row in (0, 8, 59):
        history = [f"i{item - 1}" for item in dataset.history(row)]
        answer = model.recommend([history], 4, user=[f"u{row}"])[0]
        assert table["user"][row] == f"u{row}"
        np.testing.assert_allclose(table["scores"][row].to_list(), answer.scores, rtol=1e-4)
    asked = pl.DataFrame({"user": ["u8", "nobody"], "history": [HISTORY, HISTORY]})
    asked.write_parquet(tmp_path / "asked.parquet")
    run_bulk(BulkJob(str(run), str(tmp_path / "file"), str(tmp_path / "asked.parquet"), k=5))
    table = pl.read_parquet(tmp_path / "file" / "part-*.parquet")
    for row, user in enumerate(("u8", None)):
        np.testing.assert_allclose(table["scores"][row].to_list(), scores(model, user).scores, rtol=1e-4)


def test_a_new_user_is_named_by_every_command(model, run, capsys, monkeypatch):
    from jaxrec.cli.recommend import explain, recommend

    monkeypatch.setattr(Recommender, "load", lambda *_: model)
    for command, options in ((recommend, ["--steps", "2"]), (explain, ["--item", "i9"])):
        command([str(run), "--history", *HISTORY, *options, "--user", "nobody"])
        assert "training had no user 'nobody'; answered as a new user" in capsys.readouterr().err
        command([str(run), "--history", *HISTORY, *options, "--user", "u8"])
        assert capsys.readouterr().err == ""
    assert [model.knows(user) for user in ("u8", "u7", "nobody", None)] == [True, False, False, False]


@pytest.mark.slow
def test_command_and_artefact(model, run, tmp_path, capsys):
    from jaxrec.cli.recommend import recommend
    from jaxrec.serving.export import export_run
    from jaxrec.serving.runtime import Artefact

    assert recommend([str(run), "--history", *HISTORY, "--user", "u8", "-k", "5", "--json"]) == 0
    assert f'"{scores(model, "u8").items[0]}"' in capsys.readouterr().out
    recommend([str(run), "--history", *HISTORY, "--user", "nobody", "-k", "5"])
    assert "training had no user 'nobody'; answered as a new user" in capsys.readouterr().err
    pytest.importorskip("flatbuffers", reason="the extra export is not installed")
    export_run(model, tmp_path / "artefact", ("cpu",))
    answer = Artefact(tmp_path / "artefact").recommend([HISTORY], 5)[0]
    np.testing.assert_allclose(answer["scores"], scores(model, None).scores, rtol=1e-4)


def test_refusals(model, recommender):
    with pytest.raises(DataError, match="this model does not read that: got 'u8'; leave user out"):
        recommender.recommend([HISTORY], user=["u8"])
    assert recommender.recommend([HISTORY])[0].known_user is None
    assert recommender.knows("u8") is None
    with pytest.raises(DataError, match="user must have one id for each of the 1 histories, got 2"):
        model.recommend([HISTORY], user=["u8", "u9"])
    with pytest.raises(DataError, match="user must be an id of a user"):
        model.answer([Request(HISTORY, user=["u8"])])
