"""Outputs of a finished run: results, ranks, figures, page and printed table."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import jaxrec
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.metrics import over_seeds
from jaxrec.reporting import results as results_module
from jaxrec.reporting.html import model_label
from jaxrec.reporting.results import format_metrics, hardware, versions
from tests.helpers import small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_config(training={"epochs": 2, "seeds": (0, 5)})
    return jaxrec.fit(DATASET, config, tmp_path_factory.mktemp("report") / "run", progress=False)


def test_summary_over_seeds():
    summary = over_seeds([{"HR@10": value} for value in (0.1, 0.2, 0.4)])["HR@10"]
    assert summary["values"] == [0.1, 0.2, 0.4]
    assert summary["mean"] == pytest.approx(0.7 / 3)
    assert summary["sd"] == pytest.approx(np.sqrt(sum((x - 0.7 / 3) ** 2 for x in (0.1, 0.2, 0.4)) / 2))
    assert over_seeds([{"HR@10": 0.1}])["HR@10"]["sd"] is None, "one seed has no spread"


def test_results_record_the_measurement(run):
    results = run.results
    metrics = run.fit.test[1].metrics
    assert results["metrics"]["NDCG@10"]["values"][1] == metrics["NDCG@10"]
    assert results["dataset"]["fingerprint"] == DATASET.fingerprint
    assert results["seeds"] == [0, 5]
    assert results["training"]["steps"] == run.fit.steps
    assert results["training"]["parameters"] == sum(np.asarray(p)[0].size for p in leaves(run.fit.params))
    assert 0 < results["training"]["fill_rate"] <= 1
    assert all(value >= 0 for value in results["timing"].values())
    assert results["versions"]["jaxrec"] == jaxrec.__version__
    assert results["hardware"]["cores"] >= 1
    assert json.loads((run.workdir / "results.json").read_text()) == results


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_ranks_are_saved_for_each_part_and_seed(run):
    for part, expected in (("valid", run.fit.valid), ("test", run.fit.test)):
        for seed, evaluation in zip((0, 5), expected, strict=True):
            loaded, meta = Evaluation.load(run.workdir / "ranks" / f"{part}_seed{seed}.npz")
            np.testing.assert_array_equal(loaded.ranks, evaluation.ranks)
            assert (meta["fingerprint"], meta["part"], meta["seed"]) == (DATASET.fingerprint, part, seed)
            assert loaded.metrics == evaluation.metrics


def test_page_is_self_contained_and_shows_the_numbers(run):
    page = (run.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is loaded from elsewhere"
    assert f"{run.metrics['NDCG@10']:.4f}" in page
    for word in (
        "popularity",
        "popularity-7d",
        "markov",
        "item-knn",
        "graph",
        DATASET.fingerprint[:8],
        "leave-one-out",
    ):
        assert word in page


def test_figures_are_pictures(run):
    for path in (run.workdir / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_table_puts_the_model_beside_the_baselines(run):
    table = format_metrics(run.results)
    lines = table.splitlines()
    assert lines[0].startswith("walks: 60 users, 40 items, ")
    baselines = ["popularity", "popularity-7d", "markov", "item-knn", "graph"]
    assert [line.split()[0] for line in lines[2:8]] == [*baselines, "transformer"]
    assert "±" in lines[7]
    assert table.endswith("(mean ± sd over seeds)")


def test_the_label_names_encoder_attention_and_loss(run):
    assert format_metrics(run.results).splitlines()[7].startswith("transformer (softmax, cross-entropy)")
    assert "transformer (softmax, cross-entropy)" in (run.workdir / "report.html").read_text()
    other = {"encoder": {"name": "stosa"}, "attention": {"name": "wasserstein"}, "objective": {"name": "bce"}}
    assert model_label(other) == "stosa (wasserstein, bce)"
    inside = {"encoder": {"name": "sasrec", "attention": {"name": "miq"}}, "objective": {"name": "bpr"}}
    assert model_label(inside) == "sasrec (miq, bpr)"
    assert model_label({"encoder": {"name": "gru4rec"}, "objective": {"name": "bpr"}}) == "gru4rec (bpr)"


def test_versions_and_hardware_are_plain():
    assert json.loads(json.dumps(versions())) == versions()
    assert {"jax", "flax", "python"} <= set(versions())
    assert hardware()["backend"] == "cpu"


def test_the_commit_is_marked_where_code_differs(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setattr(results_module, "__file__", str(tmp_path / "jaxrec/reporting/results.py"))
    assert "commit" not in versions()
    (tmp_path / "code.py").write_text("one")
    (tmp_path / "record.md").write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")[:12]
    (tmp_path / "record.md").write_text("two")
    assert versions()["commit"] == commit
    (tmp_path / "new.py").write_text("two")
    assert versions()["commit"] == f"{commit}-dirty"
