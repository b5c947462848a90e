"""Bulk lists are those of single requests, whatever interrupts the job."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.errors import ConfigError, DataError, RunExistsError
from jaxrec.evaluation.seen import SeenItems
from jaxrec.runs import Run
from jaxrec.serving import Request, approximate
from jaxrec.serving.approximate import ApproximateIndex
from jaxrec.serving.bulk import BulkJob, BulkTable, bulk_summary, run_bulk
from jaxrec.serving.ray_job import PartWriter, run_on_ray
from jaxrec.serving.sources import LogSource
from jaxrec.serving.vectors import write_item_vectors
from tests.helpers import small_dataset
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")


def read(folder):
    return pl.read_parquet(str(folder / "part-*.parquet"))


def histories(recommender):
    dataset = recommender.run.dataset
    ids = list(dataset.item_ids)
    return [
        [ids[item - 1] for item in dataset.items[a:b]]
        for a, b in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    ]


def assert_equal_to_requests(table, answers):
    assert table["items"].to_list() == [answer.items for answer in answers]
    for got, answer in zip(table["scores"].to_list(), answers, strict=True):
        np.testing.assert_allclose(got, answer.scores, rtol=1e-5, atol=1e-5)
    assert table["popular"].to_list() == [answer.popular for answer in answers]


@pytest.fixture
def job(served, tmp_path):
    return BulkJob(str(served), str(tmp_path / "recs.parquet"), k=7, users_per_part=25)


def test_all_users_of_the_log(recommender, job, tmp_path, capsys):
    outcome = jaxrec(
        "recommend", job.run, "--all-users", "-k", 7, "--out", job.out, "--users-per-part", 25, "--json"
    ).json
    assert (outcome["users"], outcome["parts"], outcome["parts_written"]) == (60, 3, 3)
    table = read(tmp_path / "recs.parquet")
    assert table["user"].to_list() == [f"u{i}" for i in range(60)]
    assert_equal_to_requests(table, recommender.recommend(histories(recommender), 7))
    names = sorted(path.name for path in (tmp_path / "recs.parquet").iterdir())
    assert names == ["_SUCCESS", "_manifest.json", *(f"part-0000{i}.parquet" for i in range(3))]


def test_an_interrupted_export_of_users_says_what_it_left(served, tmp_path, monkeypatch):
    def stop(table, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(BulkTable, "part", stop)
    out = tmp_path / "vectors"
    stopped = jaxrec("export", served, "--vectors", "--users", "--out", out)
    assert stopped.status == 130
    assert f"{out / 'users.parquet'} is incomplete: delete {out}, or give another --out" in stopped.err
    assert "nothing was saved" not in stopped.err


def test_an_interrupted_job_continues_and_never_overwrites(job, tmp_path, monkeypatch):
    folder, part = tmp_path / "recs.parquet", BulkTable.part

    def stop_at_two(table, number):
        if number == 2:
            raise KeyboardInterrupt
        return part(table, number)

    monkeypatch.setattr(BulkTable, "part", stop_at_two)
    stopped = jaxrec("recommend", job.run, "--all-users", "-k", 7, "--out", job.out, "--users-per-part", 25)
    assert stopped.status == 130
    assert f"all parts in {job.out} are complete, continue with the same command and --resume" in stopped.err
    assert not (folder / "_SUCCESS").exists()
    first = (folder / "part-00000.parquet").read_bytes()
    monkeypatch.setattr(BulkTable, "part", part)
    with pytest.raises(
        RunExistsError, match=r"recs\.parquet exists, and nothing in it was overwritten: .*--resume"
    ):
        run_bulk(job)
    with pytest.raises(ConfigError, match="computed with another k: expected 7, got 8"):
        run_bulk(dataclasses.replace(job, k=8), resume=True)
    seen = []
    figures = run_bulk(job, resume=True, progress=lambda there, count: seen.append((there, count)))
    assert figures["parts_written"] == 1
    rate = bulk_summary(job.open(), [2], 2.0)["users_per_second"]
    assert rate == 5.0, "the last part has 10 of the 60 users"
    assert seen[0] == (2, 3)
    assert seen[-1] == (3, 3)
    assert (folder / "part-00000.parquet").read_bytes() == first
    assert len(read(folder)) == 60
    assert run_bulk(job, resume=True)["parts_written"] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(RunExistsError, match="not ours to continue"):
        run_bulk(dataclasses.replace(job, out=str(tmp_path / "mine")), resume=True)


def test_a_file_of_requests_and_filters_for_all(recommender, job, tmp_path):
    rows = [
        {"user": "a", "history": ["i1", "i3"], "k": 3},
        {"user": "b", "history": [], "exclude": ["i4"]},
        {"user": "c", "history": ["?", "i7"], "allow_attributes": ["third"], "remove_seen": False},
        {"user": "d", "history": ["i9"], "allow": ["i2", "i9", "i11"]},
    ]
    requests = [
        Request(row["history"], **{"k": 7, **{k: v for k, v in row.items() if k not in ("user", "history")}})
        for row in rows
    ]
    kept = [f"i{i}" for i in range(40) if i % 2 == 0 or i == 11]
    both = [
        dataclasses.replace(
            request,
            allow=[i for i in kept if request.allow is None or i in request.allow],
            exclude=[*request.exclude, "i6"],
        )
        for request in requests
    ]
    (tmp_path / "all.txt").write_text("\n".join(kept))
    (tmp_path / "none.txt").write_text("i6\n")
    lines = tmp_path / "requests.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "requests.parquet")
    filters = ("--allow", tmp_path / "all.txt", "--exclude", tmp_path / "none.txt")
    for name in ("requests.jsonl", "requests.parquet"):
        out = tmp_path / f"{name}.out"
        jaxrec(
            "recommend",
            job.run,
            "--histories",
            tmp_path / name,
            "-k",
            7,
            "--users-per-part",
            3,
            "--out",
            out,
            *filters,
        )
        table = read(out)
        assert table["user"].to_list() == ["a", "b", "c", "d"]
        assert_equal_to_requests(table, recommender.answer(both))
    assert table["items"].list.len().to_list()[0] == 3
    assert set(table["items"].to_list()[3]) == {"i2", "i11"}
    short = jaxrec("recommend", job.run, "--all-users", "-k", 30, "--out", tmp_path / "short", *filters)
    assert "lists have at most 20 items, fewer than -k 30: the filters leave no more" in short.err
    assert read(tmp_path / "short")["items"].list.len().max() <= 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user": "a"}', "row 2: no user or no history"),
        ('{"user": "a", "history": ["i1"], "top": 3}', "row 2: unknown field 'top'"),
        ('{"user": "a", "history": "i1"}', "row 2: histories must be a list of lists"),
        ('{"user": "a", "history": ["i1"], "allow": ["?"]}', r"row 2: allow must hold ids of the catalogue"),
        ('{"user": null, "history": ["i1"]}', "row 2: no user or no history"),
        ("nonsense", "line 2 is no JSON"),
        ('{"user": "\\ud800", "history": ["i1"]}', "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("[1]", "line 2 must be a JSON object"),
    ],
)
def test_bad_rows_are_named(recommender, job, tmp_path, line, message):
    file = tmp_path / "requests.jsonl"
    file.write_text('{"user": "b", "history": ["i1"]}\n' + line + "\n")
    table = BulkTable.__new__(BulkTable)
    table.job, table.recommender, table.lists = (
        dataclasses.replace(job, histories=str(file)),
        recommender,
        recommender.lists,
    )
    with pytest.raises(DataError, match=message):
        table.part(0)


def test_histories_without_a_known_item_are_counted(job, tmp_path):
    """Ids of another form, as numbers for texts, would give all users one list, and nothing would say so."""
    file, out = tmp_path / "requests.jsonl", tmp_path / "recs"
    rows = [{"user": "a", "history": [1, 2]}, {"user": "b", "history": ["i1"]}, {"user": "c", "history": []}]
    file.write_text("\n".join(map(json.dumps, rows)))
    line = ("recommend", job.run, "--histories", file, "-k", 3, "--out", out, "--users-per-part", 2)
    for more in ((), ("--resume",)):
        outcome = jaxrec(*line, *more)
        assert (
            "2 of 3 histories have no item of the catalogue; their lists are the most popular" in outcome.err
        )
    assert jaxrec(*line, "--resume", "--json").json["popular"] == 2


def test_a_file_without_rows_makes_a_table_without_rows(job, tmp_path):
    (tmp_path / "requests.jsonl").write_text("")
    empty = {"user": pl.String, "history": pl.List(pl.String)}
    pl.DataFrame(schema=empty).write_parquet(tmp_path / "requests.parquet")
    for name in ("requests.jsonl", "requests.parquet"):
        out = tmp_path / f"{name}.out"
        outcome = jaxrec("recommend", job.run, "--histories", tmp_path / name, "--out", out)
        assert "0 users in 1 parts" in outcome.out
        assert "all parts were there" not in outcome.out
        table = read(out)
        assert (len(table), table.columns) == (0, ["user", "items", "scores", "popular"])
        assert table.schema["items"] == pl.List(pl.String)
        assert table.schema["scores"] == pl.List(pl.Float32)


def test_an_error_has_a_line_of_its_own_below_the_progress(job, tmp_path):
    (tmp_path / "requests.jsonl").write_text("nonsense\n")
    outcome = jaxrec("recommend", job.run, "--histories", tmp_path / "requests.jsonl", "--out", job.out)
    last = outcome.err.splitlines()[-1]
    assert last.startswith("jaxrec: --histories requests.jsonl, line 1 is no JSON")


def test_a_job_that_wrote_no_part_continues_with_a_mended_file(job, tmp_path):
    """Its directory was neither continued, since the file is another, nor begun anew."""
    file, line = tmp_path / "requests.jsonl", ("recommend", job.run, "--out", job.out, "--histories")
    file.write_text("nonsense\n")
    assert jaxrec(*line, file).status == 1
    file.write_text('{"user": "a", "history": ["i1"]}\n')
    assert "continue it with --resume" in jaxrec(*line, file).err
    assert jaxrec(*line, file, "--resume").status == 0
    file.write_text('{"user": "b", "history": ["i1"]}\n')
    assert "computed with another histories" in jaxrec(*line, file, "--resume").err
    assert read(tmp_path / "recs.parquet")["user"].to_list() == ["a"]


def test_refusals(served, tmp_path):
    def message(*arguments):
        outcome = jaxrec("recommend", served, *arguments)
        assert outcome.status == 1
        assert outcome.err.count("\n") == 1
        return outcome.err

    assert "expected one of --history ITEMS, --histories FILE and --all-users, got none" in message()
    assert "got several" in message("--all-users", "--history", "i1")
    assert "give --out" in message("--all-users")
    assert "belong to --all-users" in message("--history", "i1", "--out", "x")
    assert "must be a .parquet, .jsonl or .ndjson file" in message(
        "--histories", __file__, "--out", tmp_path / "x"
    )
    assert "does not exist" in message("--histories", tmp_path / "no.jsonl", "--out", tmp_path / "x")
    assert "--users-per-part must be at least 1" in message(
        "--all-users", "--users-per-part", 0, "--out", tmp_path / "x"
    )
    pl.DataFrame({"who": [1]}).write_parquet(tmp_path / "odd.parquet")
    assert "columns user and history, got who" in message(
        "--histories", tmp_path / "odd.parquet", "--out", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


@pytest.fixture
def moved(served):
    """The log of the run, away from the place that the run names."""
    place = Path(Run(served).config.data.source)
    away = place.rename(place.with_name("moved"))
    yield away
    away.rename(place)


def test_the_log_may_have_moved(served, job, moved, tmp_path):
    """--data names its new place, for lists of all users and for their vectors; another log is refused."""
    command = ["recommend", served, "--all-users", "-k", 7, "--users-per-part", 25, "--out", tmp_path / "x"]
    assert "give its new place (--data" in jaxrec(*command).err
    small_dataset(seed=1).save(tmp_path / "other")
    assert "fingerprint" in jaxrec(*command, "--data", tmp_path / "other").err
    assert "of --all-users" in jaxrec("recommend", served, "--history", "i1", "--data", moved).err
    assert "of --users and --index" in jaxrec("export", served, "--out", tmp_path / "y", "--data", moved).err
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()

    assert jaxrec(*command, "--data", moved).status == 0
    assert len(read(tmp_path / "x")) == 60
    vectors = ["export", served, "--vectors", "--users", "--out", tmp_path / "vectors"]
    assert jaxrec(*vectors, "--data", moved).status == 0
    assert len(read(tmp_path / "vectors" / "users.parquet")) == 60
    # Where the log lies is no part of what a job is, so another place may continue it.
    (tmp_path / "again").symlink_to(moved)
    (tmp_path / "x" / "part-00001.parquet").unlink()
    (tmp_path / "x" / "_SUCCESS").unlink()
    assert jaxrec(*command, "--data", tmp_path / "again", "--resume").status == 0
    assert len(read(tmp_path / "x")) == 60


def test_vectors_multiply_to_the_scores(recommender, served, tmp_path):
    items = pl.read_parquet(write_item_vectors(recommender, tmp_path / "vectors"))
    array = np.load(tmp_path / "vectors" / "items.npy")
    np.testing.assert_array_equal(array, items["vector"].to_numpy())
    assert items["title"][3] == "Item 3"
    run_bulk(BulkJob(str(served), str(tmp_path / "users"), vectors=True, users_per_part=40))
    users = read(tmp_path / "users")
    scores = users["vector"].to_numpy() @ array.T
    whole = recommender.recommend(histories(recommender)[:5], 40, remove_seen=False)
    for row, answer in enumerate(whole):
        want = dict(zip(answer.items, answer.scores, strict=True))
        np.testing.assert_allclose(scores[row], [want[f"i{i}"] for i in range(40)], rtol=1e-5, atol=1e-5)
    with pytest.raises(RunExistsError, match="nothing was overwritten"):
        write_item_vectors(recommender, tmp_path / "vectors")


def test_vectors_of_a_catalogue_that_is_shorter_than_a_list(served, tmp_path):
    """The length of lists, which vectors do not have, was checked against the catalogue."""
    job = BulkJob(str(served), str(tmp_path / "users"), k=41, vectors=True)
    assert job.open().candidates == 40
    with pytest.raises(ConfigError, match="k must be an integer from 1 to the catalogue's 40 items, got 41"):
        dataclasses.replace(job, vectors=False).open()


def test_approximate_index(recommender, served, tmp_path):
    """A search that looks at every item is exact, with seen items removed; a file of it opens again."""
    index_module = pytest.importorskip("usearch.index", reason="the extra usearch is not installed")
    source = LogSource(recommender.run.dataset, True, 5, False)
    block = source.read(0, 30)
    index = ApproximateIndex(recommender, effort=64)
    exact = recommender.lists.top_k(block.histories, 5, block.removed)
    near = index.top_k(block.histories, 5, block.removed)
    np.testing.assert_array_equal(near.items, exact.items)
    np.testing.assert_allclose(near.scores, exact.scores, rtol=1e-4, atol=1e-5)
    assert index.recall(block.histories, 5, block.removed) == 1
    outcome = jaxrec("export", served, "--vectors", "--index", "--out", tmp_path / "v", "--json").json
    assert 0.9 <= outcome["recall@10"] <= 1
    assert len(index_module.Index.restore(str(tmp_path / "v" / "items.usearch"))) == 40


def test_an_index_is_built_again_alike(recommender, monkeypatch):
    """Several threads would make another graph every time, some of them with a lower recall."""
    pytest.importorskip("usearch.index", reason="the extra usearch is not installed")
    vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
    monkeypatch.setattr(approximate, "item_vectors", lambda _: vectors)
    first, second = (bytes(ApproximateIndex(recommender).index.save()) for _ in range(2))
    assert first == second


def test_a_search_that_finds_fewer_than_asked_for_has_no_other_items(monkeypatch):
    """Places without a match were item 0, with the score of the last item."""
    pytest.importorskip("usearch.index", reason="the extra usearch is not installed")
    generator = np.random.default_rng(0)
    # Items whose biases outweigh their vectors: most have no edge to them.
    vectors = generator.normal(size=(3000, 17)).astype(np.float32) * np.float32([0.01] * 16 + [5])
    queries = np.pad(generator.normal(size=(2, 16)).astype(np.float32), ((0, 0), (0, 1)), constant_values=1)
    monkeypatch.setattr(approximate, "item_vectors", lambda _: vectors)
    monkeypatch.setattr(approximate, "user_vectors", lambda *_: queries)
    index = ApproximateIndex(None)
    removed = SeenItems(np.array([0, 2000, 2000]), np.argsort(-vectors[:, 16])[:2000].astype(np.int32) + 1)
    near = index.top_k(None, 1500, removed)
    assert (near.items[0] == 0).sum() > 500, "the search found few"
    for row, without in enumerate((removed.items, [])):
        real = near.items[row] > 0
        np.testing.assert_array_equal(real, near.scores[row] > -np.inf)
        assert not np.isin(near.items[row][real], without).any()
        exact = vectors[near.items[row][real] - 1] @ queries[row]
        np.testing.assert_allclose(near.scores[row][real], exact, rtol=1e-4, atol=1e-4)


def test_an_actor_writes_parts_that_it_is_sent(job, tmp_path):
    run_bulk(job)
    again = dataclasses.replace(job, out=str(tmp_path / "actor.parquet"))
    writer = PartWriter(again)
    writer.table.parts.claim(resume=False)
    assert writer({"part": np.array([2, 0])})["users"].tolist() == [10, 25]
    for part in (0, 2):
        written = pl.read_parquet(tmp_path / "actor.parquet" / f"part-0000{part}.parquet")
        assert written.equals(pl.read_parquet(tmp_path / "recs.parquet" / f"part-0000{part}.parquet"))
    with pytest.raises(ConfigError, match="--ray-actors must be at least 1, got -1"):
        run_on_ray(again, actors=-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_actors_write_the_same_files(job, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    run_bulk(job)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}},
    )
    try:
        again = dataclasses.replace(job, out=str(tmp_path / "ray.parquet"))
        assert run_on_ray(again, actors=2)["parts_written"] == 3
    finally:
        ray.shutdown()
    for part in range(3):
        name = f"part-{part:05d}.parquet"
        assert pl.read_parquet(tmp_path / "recs.parquet" / name).equals(
            pl.read_parquet(tmp_path / "ray.parquet" / name)
        )
