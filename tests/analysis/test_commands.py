"""Analyses of finished runs, as calls and as commands: output, tables, figures and errors."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments.studies import evaluation_studies
from jaxrec.analysis import stability as stability_module
from jaxrec.analysis.compare import COMPARISON_FILES
from jaxrec.analysis.stability import stability
from jaxrec.data import load_dataset
from jaxrec.errors import CheckpointError, ConfigError, DataError
from jaxrec.evaluation.metrics import metric_values
from jaxrec.runs import Run, run_names
from tests.helpers import replace, small_dataset
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = ["--preset", "smoke", "--quiet", "--batches.batch-size", "4", "--batches.max-length", "16"]
SMALL += ["--evaluation.ks", "5", "10", "--training.epochs", "1", "--json"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name on one small log: two seeds, one seed of another model, another split, and a copy whose
    ranks say that they are of other data.
    """
    folder = tmp_path_factory.mktemp("runs")
    small_dataset().save(folder / "log")
    small_dataset(seed=1).save(folder / "other-log")
    temporal = ["--split.strategy", "temporal", "--split.target", "all", "--split.valid-quantile", "0.5"]
    temporal += ["--split.test-quantile", "0.7"]
    options = {
        "a": ("log", ["--seeds", "2"]),
        "b": ("log", ["--training.seeds", "7", "--optimizer.learning-rate", "0.01"]),
        "temporal": ("log", temporal),
    }
    found = {}
    for name, (data, more) in options.items():
        done = jaxrec("train", "--data", folder / data, "--workdir", folder / name, *SMALL, *more)
        assert done.status == 0, done.err
        found[name] = folder / name
    found["other"] = folder / "other"
    shutil.copytree(found["b"], found["other"])
    ranks = found["other"] / "ranks" / "test_seed7.npz"
    with np.load(ranks) as file:
        arrays = dict(file)
    meta = {**json.loads(str(arrays["meta"])), "fingerprint": "0" * 64}
    np.savez(ranks, **{**arrays, "meta": np.asarray(json.dumps(meta))})
    return found


def refused(outcome, *words):
    assert outcome.status == 1, outcome
    assert outcome.err.startswith("jaxrec: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err


class TestCompare:
    def test_numbers_are_those_of_the_runs(self, runs):
        told = jaxrec("compare", runs["a"], runs["b"], "--metrics", "NDCG@10", "HR@5", "--json").json
        means = {
            name: json.loads((runs[name] / "results.json").read_text())["metrics"]["NDCG@10"]["values"]
            for name in ("a", "b")
        }
        for name, want in means.items():
            assert told["values"][name]["NDCG@10"] == pytest.approx(want)
        first = told["differences"][0]
        assert (first["metric"], first["a"], first["b"]) == ("NDCG@10", "a", "b")
        assert first["difference"] == pytest.approx(means["b"][0] - np.mean(means["a"]))
        assert first["low"] <= first["difference"] <= first["high"]
        assert first["detectable"] > 0
        assert told["users"] == 60
        assert any("cannot expect to see a difference in NDCG@10 below" in line for line in told["limits"])
        assert any(line.startswith("One seed only for b") for line in told["limits"])

    def test_tables_and_figures(self, runs, tmp_path):
        out = tmp_path / "out"
        shown = jaxrec("compare", runs["a"], runs["b"], "--out", out).out
        assert all(part in shown for part in ("| metric", "±", "(1 seed)"))
        assert (out / "comparison.md").read_text().strip() == shown.strip()
        assert (out / "comparison.tex").read_text().count(r"\begin{tabular}") == 2
        assert sorted(path.name for path in out.iterdir()) == sorted(COMPARISON_FILES)
        assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in COMPARISON_FILES[2:])
        latex = jaxrec("compare", runs["a"], runs["b"], "--latex").out
        assert r"\toprule" in latex
        assert "|" not in latex
        refused(jaxrec("compare", runs["a"], runs["b"], "--out", out), "already holds comparison.md")

    def test_what_cannot_be_compared_is_refused(self, runs, tmp_path):
        refused(jaxrec("compare", runs["a"]), "at least two", "got 1")
        refused(jaxrec("compare", runs["a"], runs["other"]), "same dataset fingerprint")
        refused(jaxrec("compare", runs["a"], runs["temporal"]), "same split")
        refused(jaxrec("compare", runs["a"], tmp_path), "config.json not found")
        above = runs["a"].parent
        refused(jaxrec("compare", runs["a"], above), "runs lie below it: name one, such as", str(above))
        refused(jaxrec("evaluate", above), "runs lie below it: name one, such as")
        refused(jaxrec("compare", runs["a"], runs["b"], "--metrics", "AUC"), "unknown metric 'AUC'")
        for command in ("compare", "leaderboard", "ensemble"):
            told = jaxrec(command, runs["a"], runs["b"], "--metrics")
            refused(told, "--metrics: expected at least one metric", "got none")
        refused(jaxrec("leaderboard", runs["a"], "--metrics", "MRR", "MRR"), "each once, got MRR twice")
        out = tmp_path / "out"
        refused(
            jaxrec("compare", runs["a"], runs["b"], "--out", out, "--data", runs["a"].parent / "other-log"),
            "fingerprint",
        )
        assert not out.exists()

    def test_a_change_relative_to_nothing_is_null(self, runs, tmp_path):
        """JSON has no NaN."""
        for name in ("hopeless", "better"):
            shutil.copytree(runs["b"], tmp_path / name)
        path = tmp_path / "hopeless" / "ranks" / "test_seed7.npz"
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "ranks": np.full_like(arrays["ranks"], 40)})
        told = jaxrec("compare", tmp_path / "hopeless", tmp_path / "better", "--json").json
        assert told["differences"][0]["relative"] is None


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("stability",), "stability.md"),
        (("protocols",), "protocols.tex"),
        (("ensemble", "no-run"), "weights.png"),
        (("evaluate", "--breakdown"), "checks.md"),
        (("evaluate", "--steps", "2"), "generation.tex"),
    ],
)
def test_a_directory_that_is_taken_is_refused_before_anything_is_computed(tmp_path, words, file):
    (tmp_path / file).write_text("a former call's")
    command, *others = words
    refused(jaxrec(command, "no-run", *others, "--out", tmp_path), f"{tmp_path} already holds {file}")
    told = jaxrec(command, "no-run", *others, "--out", tmp_path / file)
    refused(told, f"{tmp_path / file} is a file; expected a directory")


class TestLeaderboard:
    def test_runs_are_sorted_on_one_page(self, runs, tmp_path):
        out = tmp_path / "out"
        result = jaxrec("leaderboard", runs["a"], runs["b"], "--out", out, "--json").json
        means = [np.mean(entry["values"]["NDCG@10"]) for entry in result["entries"]]
        assert means == sorted(means, reverse=True)
        assert {entry["name"] for entry in result["entries"]} == {"a", "b"}
        assert {path.name for path in out.iterdir()} == {
            "leaderboard.md",
            "leaderboard.tex",
            "leaderboard.png",
            "curves.png",
        }
        page = jaxrec("leaderboard", runs["a"], runs["b"]).out
        assert "cannot be told from" in page
        assert "corrected by Holm" not in page, "one pair"
        (caption,) = [line for line in page.splitlines() if "users and seeds gives p of .05 or more" in line]
        (seeds,) = [line for line in page.splitlines() if line.startswith("Fewer than 5 seeds for a")]
        for line in (caption, seeds, "One seed only for b"):
            assert line in (out / "leaderboard.md").read_text()
            assert f"\n% {line}" in (out / "leaderboard.tex").read_text()
        refused(jaxrec("leaderboard", runs["a"], runs["temporal"]), "same split")


class TestProtocols:
    def test_first_is_the_runs_own_and_the_others_differ_from_it(self, runs, tmp_path):
        out = tmp_path / "out"
        told = jaxrec("protocols", runs["a"], "--out", out, "--json").json
        own = json.loads((runs["a"] / "results.json").read_text())
        first, *others = told["protocols"]
        assert first["protocol"] == "full corpus; seen items removed"
        for name, value in first["metrics"].items():
            assert value == pytest.approx(own["metrics"][name]["mean"]), name
            assert first["difference"][name] == 0
        assert told["seeds"] == 2
        assert told["targets"] == own["counts"]["targets"]
        assert told["targets_in_history"] == own["counts"]["targets_in_history"]
        assert "full corpus; seen items kept" in [each["protocol"] for each in others]
        for each in others:
            change = each["metrics"]["MRR"] - first["metrics"]["MRR"]
            assert each["difference"]["MRR"] == pytest.approx(change)
        page = (out / "protocols.md").read_text()
        assert page.count("\n|") == 1 + len(told["protocols"])
        assert f"left out, since a user has too few unseen items to draw: {told['omitted'][0]}" in page
        assert r"\begin{tabular}" in (out / "protocols.tex").read_text()
        refused(jaxrec("protocols", runs["a"], "--out", out), "already holds protocols.md")

    def test_several_targets_a_case_and_moved_data(self, runs):
        options = ("--data", runs["a"].parent / "log", "--negatives", "2", "--json")
        told = jaxrec("protocols", runs["temporal"], *options).json
        own = json.loads((runs["temporal"] / "results.json").read_text())["metrics"]
        first = told["protocols"][0]
        assert "sampled: 2 uniform negatives, seed 0" in [
            *[each["protocol"] for each in told["protocols"]],
            *told["omitted"],
        ]
        assert first["protocol"] == "full corpus; seen items removed"
        assert set(first["metrics"]) == set(own)
        for name, value in first["metrics"].items():
            assert value == pytest.approx(own[name]["mean"]), name
        refused(
            jaxrec("protocols", runs["a"], "--data", runs["a"].parent / "other-log"),
            "fingerprint",
            "same file",
        )


@pytest.mark.slow
@pytest.mark.parametrize("study", ["compare", "stability"])
def test_records_of_studies_name_the_models(runs, monkeypatch, study):
    written = {}
    monkeypatch.setattr(
        evaluation_studies,
        "write_record",
        lambda name, result, **parts: written.update({name: (result, parts)}),
    )
    chosen = tuple(str(runs[name]) for name in ("a", "b"))
    evaluation_studies.main(evaluation_studies.Options(study, chosen, "x", commands=("one", "two")))
    result, parts = written["x"]
    assert result["models"][0].startswith(
        "a: transformer (softmax, cross-entropy), 2 seed(s), trained at commit "
    )
    assert result["models"][1].endswith("; `two`")
    assert parts["command"].endswith(f"evaluation_studies {study} a b --name x"), "it runs as it is written"
    assert "NDCG@10" in parts["body"][-1]


class TestStability:
    def test_curves_tables_and_effects(self, runs, tmp_path):
        out = tmp_path / "out"
        told = jaxrec("stability", runs["a"], runs["b"], "-k", 5, "--out", out, "--json").json
        assert list(told["runs"]) == ["a", "b"]
        for name in ("drop last", "replace random", "replace random 40%"):
            a, b = (told["runs"][run][name]["rank_biased_overlap@5"] for run in ("a", "b"))
            assert (len(a["values"]), len(b["values"])) == (2, 1), "every seed"
            assert a["values"][0] != a["values"][1]
            assert 0 <= a["mean"] <= 1
            effect = told["effects"]["b"][name]
            assert effect["difference"] == pytest.approx(b["mean"] - a["mean"])
            assert effect["p_holm"] >= effect["p_value"]
            assert effect["low"] <= effect["difference"] <= effect["high"]
        assert "a" not in told["effects"], "the first is what the others are compared with"
        assert (out / "stability.png").read_bytes()[:4] == b"\x89PNG"
        assert "b - a" in (out / "stability.md").read_text()
        assert (out / "stability.tex").read_text().count(r"\begin{tabular}") == 2

    def test_refusals(self, runs, monkeypatch):
        with pytest.raises(DataError, match="at least one run"):
            stability([])
        opened, other = Run(runs["b"]), Run(runs["b"])
        other.setup = dataclasses.replace(opened.setup, dataset=small_dataset(seed=1))
        repeating = Run(runs["b"])
        repeating.config = replace(opened.config, evaluation={"remove_seen": False})
        for second, message in ((other, "same dataset"), (repeating, r"same --evaluation\.remove-seen")):
            answers = iter([opened, second])
            with monkeypatch.context() as patched:
                patched.setattr(stability_module, "Run", lambda *_, answers=answers: next(answers))
                patched.setattr(stability_module, "run_stability", lambda *_: [])
                with pytest.raises(DataError, match=message):
                    stability([runs["b"], runs["other"]])
        with pytest.raises(DataError, match="same split"):
            stability([runs["a"], runs["temporal"]])
        refused(jaxrec("stability", runs["a"], "-k", 41), "k must be from 1 to the catalogue's 40 items")
        refused(jaxrec("stability", runs["a"], "-k", 0), "k must be from 1")


class TestEvaluate:
    def test_several_targets_have_all_metrics(self, runs):
        told = jaxrec("evaluate", runs["temporal"], "--json").json
        names = ("HR", "Recall", "Precision", "NDCG", "MAP", "MRR")
        assert told["metrics"].keys() == {"MRR", *(f"{name}@{k}" for name in names for k in (5, 10))}
        with np.load(runs["temporal"] / "ranks" / "test_seed0.npz") as file:
            want = metric_values(file["ranks"], "MAP@10", file["target_offsets"]).mean()
        assert told["metrics"]["MAP@10"]["mean"] == pytest.approx(want)
        assert told["split"]["protocol"] == "temporal"
        assert told["counts"].keys() >= {"users_without_targets", "targets_unseen_in_training"}

    def test_lists_beyond_accuracy(self, runs):
        told = jaxrec("evaluate", runs["a"], "--list-metrics-k", 5, "--json").json["beyond_accuracy"]
        assert 0 < told["coverage@5"]["mean"] <= 1
        assert len(told["gini@5"]["values"]) == 2
        assert "coverage@5: " in jaxrec("evaluate", runs["a"], "--list-metrics-k", 5).out
        refused(
            jaxrec("evaluate", runs["a"], "--list-metrics-k", 41),
            "--list-metrics-k must be from 1 to the catalogue's 40 items, got 41",
        )


class TestChecks:
    def test_all_checks_with_tables_and_figures(self, runs, tmp_path):
        out = tmp_path / "out"
        options = ["--shuffle", "both", "--retie", 2, "--breakdown", "--check-metric", "HR@5", "--out", out]
        result = jaxrec("evaluate", runs["a"], *options, "--json").json
        own = json.loads((runs["a"] / "results.json").read_text())["metrics"]["HR@5"]["mean"]
        shuffled = result["sequentiality"]["shuffles"]
        assert shuffled["all"]["before"] == shuffled["all-but-last"]["before"] == pytest.approx(own)
        assert shuffled["all"]["difference"] == pytest.approx(shuffled["all"]["after"] - own)
        spreads = {spread["name"]: spread for spread in result["ties"]["spreads"]}
        assert spreads["model"]["original"] == pytest.approx(own)
        assert len(spreads["graph"]["draws"]) == 2
        assert spreads["popularity"]["original"] == pytest.approx(result["baselines"]["popularity"]["HR@5"])
        groups = result["breakdown"]["groups"]["repetition"]
        assert sum(group["cases"] for group in groups["model"]) == 60
        assert set(groups) == {"model", *result["baselines"]}
        assert set(result["check_seconds"]) == {"shuffle", "retie", "breakdown"}
        names = {"checks.md", "checks.tex", "shuffled.png", "ties.png", "breakdown.png"}
        assert {path.name for path in out.iterdir()} == names
        shown = jaxrec("evaluate", runs["a"], "--shuffle", "both", "--breakdown").out
        assert "| all-but-last" in shown
        for name, mark in (("checks.md", ""), ("checks.tex", "% ")):
            lines = (out / name).read_text().splitlines()
            assert any(
                line.startswith(f"{mark}Order of the interactions before the newest") for line in lines
            )
            assert any(
                "in 0.0% of cases a tie crosses the border of the training part" in line for line in lines
            )
        assert "new to the user" in shown

    def test_several_targets_and_errors(self, runs):
        result = jaxrec("evaluate", runs["temporal"], "--breakdown", "--shuffle", "all", "--json").json
        assert "gap" in result["breakdown"]["groups"]
        refused(jaxrec("evaluate", runs["a"], "--retie", -1), "--retie: expected a number of random orders")
        refused(jaxrec("evaluate", runs["a"], "--check-metric", "AUC"), "unknown metric 'AUC'")


class TestAttention:
    def test_figures_and_refusals(self, runs, tmp_path):
        drawn = jaxrec(
            "attention", runs["a"], "--history", "i1", "nope", "i2", "--out", tmp_path, "--json"
        ).json
        assert all(path.endswith(".png") for path in drawn["figures"].values())
        refused(
            jaxrec("attention", runs["a"], "--history", "nope", "--out", tmp_path), "no item of the catalogue"
        )
        listed = jaxrec("attention").out
        assert all(part in listed for part in ("softmax: ", "paper: ", "--attention.heads 1"))


def test_open_run(runs):
    assert Run(runs["a"]).seeds == (0, 1)
    with pytest.raises(CheckpointError, match="fingerprint"):
        Run(runs["a"], load_dataset(runs["a"].parent / "other-log")).params()
    with pytest.raises(ConfigError, match=r"config\.json not found"):
        Run(runs["a"].parent)
    assert run_names([runs["a"], runs["b"]]) == ["a", "b"]
    assert run_names(["x/run", "y/run"]) == ["x/run", "y/run"]


def test_a_run_is_given_once_and_has_a_name(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert run_names([".", "../b/"]) == ["a", "b"]
    with pytest.raises(
        DataError, match=r"expected different run directories, got \.\./a/\. twice: give it once"
    ):
        run_names(["../b", "../a/.", tmp_path / "a"])
    for command in ("leaderboard", "compare", "stability"):
        refused(jaxrec(command, "../a", "."), "expected different run directories, got ../a twice")
