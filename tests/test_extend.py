"""New items in a trained run."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import jaxrec
from jaxrec import extend
from jaxrec.cli.main import main
from jaxrec.data import DataConfig, load_dataset
from jaxrec.data.readers.items import NewItems, read_new_items
from jaxrec.errors import CheckpointError, DataError, RunExistsError
from jaxrec.extend import extend_run
from jaxrec.presets import named_config
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from jaxrec.training.trees import flatten
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

GENRES = [["even" if i % 2 == 0 else "odd", f"block-{i // 10}"] for i in range(40)]
CONFIG = small_config(training={"epochs": 2}, encoder={"item_bias": True})


def dataset_with(**options):
    base = small_dataset()
    log = {
        "user_id": np.repeat(base.user_ids.tolist(), base.lengths),
        "item_id": [base.item_ids[i - 1] for i in base.items],
        "timestamp": base.timestamps,
    }
    genres = {f"i{i}": row for i, row in enumerate(GENRES)}
    titles = pl.DataFrame({"item_id": list(genres), "title": [f"Item {name}" for name in genres]})
    return load_dataset(log, item_attributes=genres, item_table=titles, **options)


DATASET = dataset_with()
NEW = pl.DataFrame(
    {
        "item_id": ["new-1", "new-2"],
        "title": ["First", "Second"],
        "genres": ["even|block-1|strange", "odd"],
    }
)
COLUMNS = DataConfig(attribute_columns=("genres",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("extend") / "run"
    jaxrec.fit(DATASET, CONFIG, workdir, progress=False)
    return Run(workdir, DATASET)


@pytest.fixture(scope="module")
def grown(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("grown") / "run"
    return extend_run(run, NEW, workdir, data=COLUMNS, neighbours=4), Run(workdir)


def test_old_rows_stay_to_the_bit_and_new_ones_are_means(run, grown):
    extension, after = grown
    before, now = flatten(run.best_params), flatten(after.best_params)
    assert set(before) == set(now)
    for name, old in before.items():
        table = name in ("items/table", "item_bias")
        np.testing.assert_array_equal(now[name][:, : old.shape[1]] if table else now[name], old)
        assert now[name].shape[1] == old.shape[1] + (2 if table else 0)
    close = [after.dataset.item_index(name) for name in extension.neighbours["new-1"]]
    assert extension.by == "attributes"
    assert (
        "2 items added; the row of each is the mean of similar items, by attributes" in extension.lines()[0]
    )
    equally_close = {after.dataset.item_index(f"i{i}") for i in (10, 12, 14, 16, 18)}
    assert close == sorted(equally_close)[:4], "in the order of the catalogue"
    np.testing.assert_allclose(
        now["items/table"][:, -2], before["items/table"][:, np.array(close)].mean(axis=1), atol=1e-7
    )


@pytest.mark.slow
def test_a_run_that_was_opened_on_a_mesh_grows_the_same_rows(run, grown, tmp_path):
    """41 rows of items are 42 on two devices."""
    opened = Run(run.path, DATASET, MeshConfig(item=2))
    extend_run(opened, NEW, tmp_path / "run", data=COLUMNS, neighbours=4)
    expected = flatten(grown[1].best_params)
    for name, array in flatten(Run(tmp_path / "run").best_params).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_the_grown_run_ranks_the_new_items(grown):
    _, after = grown
    recommender = jaxrec.Recommender.load(after.path)
    answer = recommender.recommend([["i10", "i12"]], k=42, remove_seen=False)[0]
    assert {"new-1", "new-2"} <= set(answer.items)
    assert answer.titles[answer.items.index("new-1")] == "First"
    assert recommender.recommend([["new-1"]], k=3)[0].unknown == []
    assert after.results["dataset"]["items"] == DATASET.n_items + 2
    assert after.results["training"]["steps"] == 0
    assert after.dataset.attributes.names[-1] == "strange"
    assert after.dataset.attributes.n_attributes == DATASET.attributes.n_attributes + 1
    assert after.evaluate("test")[0].metrics["HR@5"] == pytest.approx(
        after.results["metrics"]["HR@5"]["values"][0]
    )


def test_an_interrupted_extension_is_no_run_that_could_be_resumed(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxrec.extend.write_run", stop)
    with pytest.raises(KeyboardInterrupt):
        extend_run(run, NEW, tmp_path / "out", data=COLUMNS)
    config = named_config(str(run.path))
    with pytest.raises(CheckpointError, match="nothing to resume"):  # it would train all rows
        jaxrec.fit(None, config, tmp_path / "out", resume=True, progress=False)
    with pytest.raises(RunExistsError, match=r"holds no run .* interrupted import or extension"):
        extend_run(run, NEW, tmp_path / "out", data=COLUMNS)


def test_nothing_that_an_extension_reads_is_overwritten(run, grown, tmp_path):
    workdir = grown[1].path
    (workdir / "new.csv").write_text("item_id,similar\nnew,i3\n")
    with pytest.raises(RunExistsError, match=rf"--items .*new\.csv is in the out {workdir}.*another --out"):
        extend_run(run, str(workdir / "new.csv"), workdir, overwrite=True)
    (workdir / "new.csv").unlink()
    before = (workdir / "results.json").read_bytes()
    newer = NEW.with_columns(item_id=pl.col("item_id") + "-b")
    with pytest.raises(RunExistsError, match=f"RUN {workdir} is in the out {workdir}, which --overwrite"):
        extend_run(workdir, newer, workdir, data=COLUMNS, overwrite=True)
    with pytest.raises(RunExistsError, match=r"Delete the run in it with --overwrite, or .* another --out"):
        extend_run(run, NEW, workdir, data=COLUMNS)
    assert (workdir / "results.json").read_bytes() == before


@pytest.mark.slow
def test_an_extension_overwrites_a_former_one(run, tmp_path):
    for name in ("first", "second"):
        new = pl.DataFrame({"item_id": [name], "similar": ["i3"]})
        extend_run(run, new, tmp_path / "out", overwrite=True)
    assert Run(tmp_path / "out").dataset.item_ids[-1] == "second"


def test_titles_of_ids_with_blanks_around_them():
    new = read_new_items(DataConfig(), pl.DataFrame({"item_id": [" n", "m"], "title": ["First", "Second"]}))
    assert (new.ids, new.titles) == (["n", "m"], ["First", "Second"])


def test_the_file_of_new_items_is_named_by_its_option(tmp_path):
    with pytest.raises(DataError, match=r"--items '.*nowhere\.csv' does not exist"):
        read_new_items(DataConfig(), tmp_path / "nowhere.csv")
    (tmp_path / "new.csv").write_text("ID,title\nn,First\n")
    assert read_new_items(DataConfig(), tmp_path / "new.csv").titles == ["First"]
    both = pl.DataFrame({"id": ["x"], "movieId": ["n"]})
    assert read_new_items(DataConfig(), both).ids == ["n"]
    with pytest.raises(DataError, match=r"columns: 'name'.; names looked for: itemid, .* and id"):
        read_new_items(DataConfig(), pl.DataFrame({"name": ["n"]}))


@pytest.mark.slow
def test_rows_follow_named_and_close_items(run, grown, tmp_path):
    named = pl.DataFrame({"item_id": ["n"], "similar": ["i3|i5"]})
    extension = extend_run(run, named, tmp_path / "named")
    assert (extension.by, extension.neighbours) == ("similar", {"n": ["i3", "i5"]})


def test_close_items_by_attributes_take_memory_for_those_that_they_have():
    """A table of all items and all attributes, as of brands or tags, was made three times over."""
    count = 1000
    tags = {f"i{i}": [f"tag-{i}-{j}" for j in range(10)] for i in range(count)}
    log = {"user_id": ["u"] * count, "item_id": list(tags), "timestamp": np.arange(count)}
    old = load_dataset(log, item_attributes=tags)
    new = NewItems(["n"], None, [["tag-7-0", "tag-9-3", "unheard of", "tag-9-4"]], None)
    attributes = extend._grown_attributes(old.attributes, new)
    tracemalloc.start()
    try:
        by, (close,) = extend._neighbours(old, new, attributes, "auto", 4, DataConfig())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (by, old.catalogue.original_ids(close)) == ("attributes", ["i9", "i7"])
    assert peak < 8 << 20, "the table has 40 MB"


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"item_id": ["i3"], "genres": ["odd"]}, COLUMNS, r"1 of 1 are in the catalogue .* first 'i3'"),
        ({"item_id": ["n", "n"], "genres": ["odd", "odd"]}, COLUMNS, r"name each item once, got 'n' again"),
        ({"item_id": ["n"]}, DataConfig(), r"nothing to make the rows of"),
        ({"item_id": ["n"], "similar": ["i3|x9"]}, DataConfig(), r"for 'n', got the unknown id 'x9'"),
        ({"item_id": ["n"], "genres": ["strange"]}, COLUMNS, r"item 'n' of --items shares nothing"),
        ({"item_id": [""], "genres": ["odd"]}, COLUMNS, r"an empty id in row 1"),
        ({"item_id": ["n"]}, COLUMNS, r"'genres' is not in the item table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(run, tmp_path, table, options, message):
    with pytest.raises(DataError, match=message):
        extend_run(run, pl.DataFrame(table), tmp_path / "out", data=options)
    assert not (tmp_path / "out").exists()


def test_items_that_are_made_of_attributes_grow_again():
    """The grown log, as a prepared one, has vectors and attributes, and no option that says what they are made of."""
    dataset, run = dataset_with(item_vectors="attributes"), SimpleNamespace(path="runs/a")
    width = dataset.attributes.n_attributes
    for name, genres in (("first", "odd|strange"), ("second", "even|strange|block-3")):
        new = read_new_items(COLUMNS, pl.DataFrame({"item_id": [name], "genres": [genres]}))
        attributes = extend._grown_attributes(dataset.attributes, new)
        content = extend._content(run, dataset, new, attributes, COLUMNS)
        known = [attribute in genres.split("|") for attribute in dataset.attributes.names[:width]]
        np.testing.assert_array_equal(content, np.float32([known]))
        dataset = extend._grown(dataset, new, attributes, content)
    assert dataset.attributes.n_attributes == width + 1
    bare = read_new_items(COLUMNS, pl.DataFrame({"item_id": ["bare"], "genres": ["strange"]}))
    with pytest.raises(DataError, match=r"no attribute that the run knows.*or give --data.item-vectors FILE"):
        extend._content(run, dataset, bare, extend._grown_attributes(dataset.attributes, bare), COLUMNS)


@pytest.mark.slow
def test_a_run_of_item_vectors_needs_no_neighbours(tmp_path, capsys):
    dataset = dataset_with(item_vectors="attributes")
    config = replace(CONFIG, encoder={"item_bias": False})
    dataset.save(tmp_path / "data")
    jaxrec.fit(load_dataset(str(tmp_path / "data")), config, tmp_path / "run", progress=False)
    rows = [[1.0 if name in ("odd", "block-3") else 0.0 for name in dataset.attributes.names]]
    pl.DataFrame({"item_id": ["n"], "v": rows}).write_parquet(tmp_path / "v.parquet")
    (tmp_path / "new.csv").write_text("item_id,title\nn,New\n")
    words = [
        "extend",
        str(tmp_path / "run"),
        "--items",
        str(tmp_path / "new.csv"),
        "--out",
        str(tmp_path / "b"),
    ]
    assert main(words) == 1
    assert "--data.item-vectors FILE" in capsys.readouterr().err
    assert main([*words, "--data.item-vectors", str(tmp_path / "v.parquet")]) == 0
    before, after = Run(tmp_path / "run"), Run(tmp_path / "b")
    table = np.asarray(after.encoder.item_table(after.params()).vectors)
    old = np.asarray(before.encoder.item_table(before.params()).vectors)
    np.testing.assert_array_equal(
        flatten(after.params())["items/table"][:-1], flatten(before.params())["items/table"]
    )
    np.testing.assert_allclose(table[:-1], old, atol=1e-7)
    twin = dataset.item_index("i31")  # of the same attributes
    change = np.asarray(after.params()["items"]["table"])[twin]
    np.testing.assert_allclose(table[-1], old[twin] - change, atol=1e-5)
    narrow = pl.DataFrame({"item_id": ["n"], "v": [[1.0, 2.0]]})
    narrow.write_parquet(tmp_path / "narrow.parquet")
    with pytest.raises(DataError, match=r"vectors of 6 numbers as the run's are, got 2"):
        extend_run(
            before,
            pl.DataFrame({"item_id": ["n"]}),
            tmp_path / "c",
            data=DataConfig(item_vectors=str(tmp_path / "narrow.parquet")),
        )
    config = named_config(str(tmp_path / "b")).updated(
        {"training.init_from": str(tmp_path / "b"), "training.init_items": "match", "training.epochs": 1}
    )
    assert jaxrec.fit(None, config, progress=False).results["training"]["steps"] > 0
