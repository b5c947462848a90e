"""An artefact answers as the run does, with jax and numpy alone, and refuses what was changed."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import jaxrec as package
from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.serving import Recommender
from jaxrec.serving.export import export_run
from jaxrec.serving.runtime import Artefact, ArtefactError, digest_of, main
from tests.helpers import small_config, small_dataset
from tests.runs import jaxrec

pytest.importorskip("flatbuffers", reason="the extra export is not installed")
pytestmark = pytest.mark.usefixtures("standard_promotion")

HISTORIES = [["i1", "i3"], ["?"], [f"i{i}" for i in range(25)], ["i9", "?"], []]


@pytest.fixture(scope="module")
def artefact(served, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "artefact"
    assert jaxrec("export", served, "--out", out, "--json").json["platforms"] == ["cpu", "cuda", "tpu"]
    return out


def assert_same(answers, wanted):
    for answer, want in zip(answers, wanted, strict=True):
        assert answer["items"] == want.items
        assert answer["titles"] == want.titles
        np.testing.assert_allclose(answer["scores"], want.scores, rtol=1e-5, atol=1e-5)
        assert (answer["unknown"], answer["popular"]) == (want.unknown, want.popular)


def test_equal_to_the_run(recommender, artefact):
    loaded = Artefact(artefact)
    assert_same(loaded.recommend(HISTORIES, 7), recommender.recommend(HISTORIES, 7))
    options = {"remove_seen": False, "exclude": ["i4"], "allow": ["i1", "i4", "i5", "i6", "i30"]}
    assert_same(loaded.recommend(HISTORIES, 40, **options), recommender.recommend(HISTORIES, 40, **options))
    with pytest.raises(
        ArtefactError, match="k must be an integer from 1 to the catalogue's 40 items, got 41"
    ):
        loaded.recommend(HISTORIES, 41)
    with pytest.raises(ArtefactError, match=r"allow must hold ids of the catalogue, got '\?'"):
        loaded.recommend(HISTORIES, allow=["?"])
    with pytest.raises(ArtefactError, match="list of lists"):
        loaded.recommend(["i1"])


def test_a_fresh_process_imports_no_training_code(recommender, artefact, tmp_path):
    """The copy of the runtime, away from the package."""
    script = (
        "import sys, json; sys.path.insert(0, 'artefact'); from runtime import Artefact\n"
        "answer = Artefact('artefact').recommend([['i1', 'i3']], 5)[0]\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('jaxrec', 'flax', 'optax', 'orbax', 'polars', 'tyro', 'scipy.optimize')]\n"
        "print(json.dumps([answer, bad]))"
    )
    shutil.copytree(artefact, tmp_path / "artefact")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, bad = json.loads(done.stdout.splitlines()[-1])
    assert bad == []
    assert_same([answer], recommender.recommend([["i1", "i3"]], 5))


def test_the_command_of_the_runtime(recommender, artefact, capsys):
    assert main(["--artefact", str(artefact), "--history", "i1", "i3", "-k", "4"]) == 0
    assert_same([json.loads(capsys.readouterr().out)], recommender.recommend([["i1", "i3"]], 4))
    assert main(["--artefact", str(artefact / "none"), "--history", "i1"]) == 1
    assert capsys.readouterr().err.startswith("runtime: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a / "weights-000.npy").write_bytes(b"x"), "weights-000.npy was changed since the export"),
        (lambda a: (a / "encode.bin").unlink(), "lacks encode.bin"),
        (lambda a: edit(a, {"platforms": ["tpu"]}, seal=False), "manifest.json was changed since the export"),
        (lambda a: edit(a, {"platforms": ["tpu"]}), "exported for tpu, and JAX runs on cpu"),
        (lambda a: edit(a, {"version": 2}), "has version 2, and this runtime reads version 1"),
        (lambda a: edit(a, {"format": "other"}), "not the manifest of an artefact"),
        (lambda a: (a / "manifest.json").unlink(), "must be the directory of an artefact"),
    ],
)
def test_changed_artefacts_are_refused(artefact, tmp_path, change, message):
    copy = tmp_path / "artefact"
    shutil.copytree(artefact, copy)
    change(copy)
    with pytest.raises(ArtefactError, match=message):
        Artefact(copy)


@pytest.mark.parametrize("times", [[2, 1], [float("nan"), 1], [1, 2**80], ["now", 1], [None, 1], [1]])
def test_times_that_are_none_are_refused(artefact, times):
    with pytest.raises(ArtefactError, match="timestamps must"):
        Artefact(artefact).recommend([["i1", "i2"]], 3, timestamps=[times])


def edit(folder, entries, seal=True):
    manifest = json.loads((folder / "manifest.json").read_text()) | entries
    if seal:
        manifest["digest"] = digest_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_whole_numbers_that_come_as_floats_are_the_integers_that_they_are():
    known = SimpleNamespace(_numbers={"101": 1, "7.0": 2})
    texts = [Artefact._text(known, item) for item in (101.0, np.float32(101), 7.0, 1.5, "101.0", 8.0)]
    assert texts == ["101", "101", "7.0", "1.5", "101.0", "8"]


def test_refusals(recommender, artefact, served, tmp_path):
    with pytest.raises(RunExistsError, match="exists, and nothing was overwritten"):
        export_run(recommender, artefact)
    with pytest.raises(ConfigError, match="--platforms must be some of cpu, cuda, tpu, got metal"):
        export_run(recommender, tmp_path / "x", ["metal"])
    assert "belong to --vectors" in jaxrec("export", served, "--out", tmp_path / "x", "--users").err
    outcome = jaxrec("export", served, "--out", tmp_path / "v", "--vectors", "--users", "--json").json
    assert outcome["users"] == 60
    assert (tmp_path / "v" / "items.npy").exists()


def test_vectors_that_cannot_all_be_written_are_not_begun(served, tmp_path, monkeypatch):
    """A call without usearch left the other files behind, beside which the next call wrote nothing."""
    line = ("export", served, "--vectors", "--index", "--users", "--json", "--out", tmp_path / "v")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "usearch.index", None)
        assert "needs usearch: pip install" in jaxrec(*line).err
    assert not (tmp_path / "v").exists()
    pytest.importorskip("usearch.index", reason="the extra usearch is not installed")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "items.usearch").write_text("mine")
    assert "items.usearch exists, and nothing was overwritten" in jaxrec(*line).err
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["items.usearch"]
    (tmp_path / "v" / "items.usearch").unlink()
    outcome = jaxrec(*line).json
    assert (outcome["items"], outcome["users"]) == (40, 60)
    assert 0.9 <= outcome["recall@10"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": {"positions": "time-interval"}},
        {"batches": {"position_origin": "end"}, "encoder": {"item_bias": True}},
    ],
)
def test_models_with_times_biases_and_other_origins(tmp_path, sections):
    dataset = small_dataset()
    done = package.fit(
        dataset, small_config(training={"epochs": 1}, **sections), tmp_path / "run", progress=False
    )
    recommender = Recommender.load(done.workdir)
    export_run(recommender, tmp_path / "artefact", ["cpu"])
    times = (
        {"timestamps": [[5, 900], [3], list(range(0, 2500, 100)), [7, 9], []]}
        if recommender.needs_times
        else {}
    )
    loaded = Artefact(tmp_path / "artefact")
    assert_same(loaded.recommend(HISTORIES, 9, **times), recommender.recommend(HISTORIES, 9, **times))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["srgnn", "stosa"])
def test_other_encoders(tmp_path, name):
    run = tmp_path / "run"
    small_dataset().save(tmp_path / "data")
    trained = jaxrec(
        "train",
        "--data",
        tmp_path / "data",
        "--workdir",
        run,
        "--encoder",
        name,
        "--encoder.width",
        16,
        "--batches.max-length",
        16,
        "--batches.batch-size",
        4,
        "--training.epochs",
        1,
        "--json",
    )
    assert trained.status == 0, trained.err
    recommender = Recommender.load(run)
    export_run(recommender, tmp_path / "artefact", ["cpu"])
    assert_same(Artefact(tmp_path / "artefact").recommend(HISTORIES, 9), recommender.recommend(HISTORIES, 9))
