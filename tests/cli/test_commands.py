"""Every command, on the bundled data and on small files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import jaxrec as package
from jaxrec.cli import common
from jaxrec.cli import main as main_module
from jaxrec.cli.main import COMMANDS
from jaxrec.data import load_dataset
from jaxrec.training import loop
from tests.cli.shared import SMALL, refused
from tests.runs import jaxrec


class TestTrain:
    def test_an_interruption_names_the_directory_that_nobody_named(self, tmp_path, monkeypatch):
        def stop(dataset, config, workdir, **_):
            workdir.mkdir(parents=True)
            (workdir / "config.json").write_text("{}")
            raise KeyboardInterrupt

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("jaxrec.api.fit", stop)
        outcome = jaxrec("train", "--preset", "smoke", "--quiet", "--no-compile-cache")
        assert outcome.status == 130
        (workdir,) = Path("runs").iterdir()
        assert outcome.err.endswith(f"continue with: jaxrec train --workdir {workdir} --resume\n")

    def test_main_job_leaves_a_run_directory(self, bundled):
        run, outcome = bundled
        results = json.loads((run / "results.json").read_text())
        told = outcome.json
        assert told.pop("workdir") == str(run)
        assert told == results
        assert results["dataset"]["users"] == 4333
        assert results["dataset"]["fingerprint"] == load_dataset("movietweetings").fingerprint
        assert results["split"]["protocol"] == "leave-one-out"
        assert set(results["baselines"]) == {"popularity", "popularity-7d", "markov", "item-knn", "graph"}
        assert results["baselines"]["popularity"]["HR@10"] == pytest.approx(0.146, abs=0.001)
        assert results["metrics"]["HR@10"]["mean"] > 10 * 10 / 2414, "ten times chance"
        assert results["timing"].keys() >= {"compile_seconds", "training_seconds", "interactions_per_second"}
        assert results["versions"].keys() >= {"jaxrec", "jax", "python"}
        for name in (
            "config.json",
            "log.jsonl",
            "report.html",
            "ranks/test_seed0.npz",
            "ranks/valid_seed0.npz",
        ):
            assert (run / name).stat().st_size > 0
        assert {path.name for path in (run / "figures").iterdir()} == {
            "training.png",
            "by_history_length.png",
            "by_popularity.png",
        }

    def test_progress_tells_rate_and_metric(self, bundled):
        _, outcome = bundled
        assert "int/s" in outcome.err
        assert "valid NDCG@10" in outcome.err
        assert "training uses" in outcome.err
        assert "the test" in outcome.err

    def test_table_for_people(self, files, tmp_path):
        outcome = jaxrec("train", "--data", files / "log.parquet", "--workdir", tmp_path / "run", *SMALL)
        assert outcome.status == 0, outcome.err
        assert "popularity" in outcome.out
        assert "markov" in outcome.out
        assert "one seed: its spread is unknown" in outcome.out
        assert f"next: jaxrec recommend {tmp_path / 'run'}" in outcome.out
        assert outcome.err == "", "quiet"

    def test_formats_give_the_same_dataset(self, small, files, tmp_path):
        expected = small[1].json["dataset"]["fingerprint"]
        for name in ("log.tsv", "log.parquet"):
            out = tmp_path / name
            assert jaxrec("prepare", files / name, "--out", out, "--json").json["fingerprint"] == expected
        options = ["--user-column", "who", "--item-column", "what", "--time-column", "when"]
        prepared = jaxrec("prepare", files / "odd.csv", *options, "--out", tmp_path / "odd", "--json")
        assert prepared.json["fingerprint"] == expected

    def test_seeds_are_summarised(self, small):
        metric = small[1].json["metrics"]["NDCG@10"]
        assert len(metric["values"]) == 2
        assert metric["mean"] == pytest.approx(np.mean(metric["values"]))
        assert metric["sd"] == pytest.approx(np.std(metric["values"], ddof=1))
        assert small[1].json["seeds"] == [0, 1]

    def test_resume_from_the_directory_alone(self, files, tmp_path, monkeypatch):
        run = tmp_path / "run"
        options = [*SMALL, "--training.checkpoint-seconds", "0", "--training.epochs", "4", "--json"]
        whole = jaxrec("train", "--data", files / "log.csv", "--workdir", tmp_path / "whole", *options).json

        class StopAtOnce(loop.StopRequest):
            signal_number = signal.SIGTERM

            def __init__(self):
                self._previous = {}

        monkeypatch.setattr(loop, "StopRequest", StopAtOnce)
        stopped = jaxrec("train", "--data", files / "log.csv", "--workdir", run, *options)
        monkeypatch.undo()
        assert stopped.status == 128 + signal.SIGTERM
        assert f"continue with: jaxrec train --workdir {run} --resume" in stopped.err
        refused(jaxrec("recommend", run, "--history", "i1"), "not finished", "--resume")
        fewer = ["--evaluation.baselines", "markov", "popularity"]
        resumed = jaxrec("train", "--workdir", run, "--resume", *fewer, "--quiet", "--json").json
        assert resumed["metrics"] == whole["metrics"]
        assert resumed["baselines"] == {name: whole["baselines"][name] for name in ("popularity", "markov")}
        whole["config"]["evaluation"]["baselines"] = ["markov", "popularity"]
        assert resumed["config"] == whole["config"]

    def test_refuses_a_directory_that_holds_a_run(self, small, files):
        run, _ = small

        def state():  # but for the lock, which names the last process that held it
            files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
            return {path: path.stat().st_mtime_ns for path in files}

        before = state()
        again = ["train", "--data", files / "log.csv", "--workdir", run, *SMALL]
        refused(jaxrec(*again), "is not empty", "--resume", "--overwrite")
        refused(jaxrec(*again, "--resume", "--overwrite"), "exclude each other")
        refused(
            jaxrec("train", "--workdir", run, "--resume", "--encoder.width", "8"),
            "encoder.width: saved 16, given 8",
        )
        refused(jaxrec("train", "--workdir", run, "--resume", "--data", "movietweetings"), "data.source")
        assert before == state()

    def test_overwrite(self, files, tmp_path):
        run = tmp_path / "run"
        command = ["train", "--data", files / "log.csv", "--workdir", run, *SMALL, "--json"]
        jaxrec(*command)
        changed = jaxrec(*command, "--overwrite", "--evaluation.baselines", "--training.epochs", "1").json
        assert changed["config"]["training"]["epochs"] == 1
        assert changed["baselines"] == {}
        assert json.loads((run / "results.json").read_text())["config"]["training"]["epochs"] == 1

    def test_parts_are_chosen_by_name_with_their_options(self, files, tmp_path):
        options = [
            "--attention",
            "hstu",
            "--attention.heads",
            "2",
            "--objective",
            "bce",
            "--objective.n-negatives",
            "2",
        ]
        run = jaxrec(
            "train", "--data", files / "log.csv", "--workdir", tmp_path / "run", *SMALL, *options, "--json"
        )
        config = run.json["config"]
        assert (config["encoder"]["attention"]["name"], config["encoder"]["attention"]["heads"]) == (
            "hstu",
            2,
        )
        assert (config["objective"]["name"], config["objective"]["n_negatives"]) == ("bce", 2)

    @pytest.mark.slow
    def test_another_encoder_from_training_to_recommending(self, files, tmp_path):
        """STOSA with stochastic AWRSR: trained, resumed, ranked again, asked, and drawn."""
        run = tmp_path / "run"
        start = ["train", "--data", files / "log.csv", "--workdir", run, *SMALL, "--encoder", "stosa"]
        softmax = [*start, "--attention", "softmax"]
        refused(jaxrec(*softmax), "expected attention 'wasserstein', got SoftmaxAttentionConfig")
        start += ["--attention.variant", "stochastic", "--encoder.width", "8"]
        first = jaxrec(*start, "--objective", "bpr-pvn", "--objective.pvn-weight", "0.01", "--json").json
        config = first["config"]
        assert (config["encoder"]["name"], config["encoder"]["width"]) == ("stosa", 8)
        assert (config["encoder"]["layers"], config["encoder"]["norm_epsilon"]) == (1, 1e-12), (
            "STOSA's own defaults"
        )
        attention = config["encoder"]["attention"]
        assert (attention["name"], attention["variant"]) == ("wasserstein", "stochastic")
        assert config["objective"]["pvn_weight"] == 0.01
        longer = jaxrec(
            "train", "--workdir", run, "--resume", "--training.epochs", "4", "--quiet", "--json"
        ).json
        assert longer["training"]["steps"] > first["training"]["steps"]
        assert longer["config"]["encoder"] == config["encoder"]
        assert jaxrec("evaluate", run, "--json").json["metrics"] == longer["metrics"]
        assert len(jaxrec("recommend", run, "--history", "i1", "i2", "-k", 3, "--json").json["items"]) == 3
        drawn = jaxrec("attention", run, "--history", "i1", "i2", "i3", "--json").json["figures"]
        assert all(Path(path).stat().st_size > 0 for path in drawn.values())


class TestEvaluate:
    def test_agrees_with_the_results_to_the_last_digit(self, bundled, small):
        for (run, outcome), part in ((bundled, "test"), (small, "test"), (small, "valid")):
            again = jaxrec("evaluate", run, "--split", part, "--json").json
            assert again["metrics"] == outcome.json["metrics" if part == "test" else "valid_metrics"]
            assert again["part"] == part
            if part == "test":
                assert again["baselines"] == outcome.json["baselines"]

    def test_table_for_people(self, small):
        outcome = jaxrec("evaluate", small[0], "--ks", 1, 7)
        assert outcome.out.startswith("test\nlog: 60 users, 40 items")
        assert all(name in outcome.out for name in ("HR@1 ", "NDCG@7"))
        assert "@10" not in outcome.out
        assert "mean ± sd over seeds" in outcome.out

    def test_the_data_may_have_moved_but_not_changed(self, small, files, tmp_path):
        run, outcome = small
        again = jaxrec("evaluate", run, "--data", files / "log.parquet", "--json").json
        assert again["metrics"] == outcome.json["metrics"]
        refused(jaxrec("evaluate", run, "--data", "movietweetings"), "fingerprint", "give the same file")


class TestRecommend:
    def test_a_new_user(self, bundled):
        outcome = jaxrec("recommend", bundled[0], "--history", "tt0111161", "tt0468569", "-k", "10")
        lines = outcome.out.splitlines()
        assert len(lines) == 10
        assert lines[0].split()[0] == "1"
        assert "(20" in lines[0] or "(19" in lines[0], "the title tells the year"
        assert outcome.err == ""
        answer = jaxrec("recommend", bundled[0], "--history", "tt0111161", "tt0468569", "--json").json
        assert [line.split()[1] for line in lines] == answer["items"]
        assert not {"tt0111161", "tt0468569"} & set(answer["items"])
        assert answer["scores"] == sorted(answer["scores"], reverse=True)

    def test_unknown_items_are_named_and_ignored(self, small):
        run, _ = small
        mixed = jaxrec("recommend", run, "--history", "i1", "nope", "i3", "--json")
        assert mixed.json["unknown"] == ["nope"]
        assert "ignored unknown items: nope" in mixed.err
        assert (
            mixed.json["items"] == jaxrec("recommend", run, "--history", "i1", "i3", "--json").json["items"]
        )
        strangers = jaxrec("recommend", run, "--history", "x", "y", "--json")
        assert len(strangers.json["items"]) == 10
        assert "no item of the history is known; these are the most popular items" in strangers.err

    def test_seed_and_seen_items(self, small):
        run, _ = small
        by_seed = [
            jaxrec("recommend", run, "--history", "i1", "--seed", s, "--json").json["scores"] for s in (0, 1)
        ]
        assert by_seed[0] != by_seed[1]
        everything = jaxrec("recommend", run, "--history", "i1", "i2", "-k", 40, "--json").json["items"]
        assert len(everything) == 38
        with_seen = jaxrec("recommend", run, "--history", "i1", "i2", "-k", 40, "--keep-seen", "--json").json[
            "items"
        ]
        assert sorted(with_seen) == sorted(f"i{i}" for i in range(40))

    def test_refusals(self, small, tmp_path):
        run, _ = small
        refused(
            jaxrec("recommend", run, "--history", "i1", "-k", 41),
            "k must be an integer from 1 to the catalogue's 40 items",
        )
        refused(jaxrec("recommend", run, "--history", "i1", "-k", 0), "k must be an integer from 1")
        refused(
            jaxrec("recommend", run, "--history", "i1", "--seed", 9),
            "--seed must be one of the run's (0, 1)",
        )
        refused(jaxrec("recommend", tmp_path, "--history", "i1"), "config.json not found")


class TestDataCommands:
    def test_audit(self, files):
        outcome = jaxrec("audit", "movietweetings", "--json")
        assert "4,333" in jaxrec("audit", "movietweetings").out
        assert isinstance(outcome.json, dict)
        assert "40" in jaxrec("audit", files / "log.csv").out

    def test_prepare_then_train(self, files, small, tmp_path):
        saved = tmp_path / "my data"
        outcome = jaxrec("prepare", files / "log.csv", "--out", saved)
        assert f"next: jaxrec train --data '{saved}'" in outcome.out  # one word of the shell
        run = jaxrec(
            "train", "--data", saved, "--workdir", tmp_path / "run", *SMALL, "--seeds", 2, "--json"
        ).json
        assert run["metrics"] == small[1].json["metrics"]
        refused(jaxrec("prepare", files / "log.csv", "--out", saved), "not empty")

    def test_filters(self, files, tmp_path):
        strict = ["--filter", "k-core", "--min-interactions", "8"]
        counts = [
            jaxrec(
                "prepare", files / "log.csv", *options, "--out", tmp_path / str(len(options)), "--json"
            ).json["users"]
            for options in ([], strict)
        ]
        assert counts[1] < counts[0]


def test_studies_of_finished_runs(small, tmp_path):
    run, _ = small
    shutil.copytree(run, tmp_path / "twin")
    compared = jaxrec("compare", run, tmp_path / "twin", "--json").json
    assert {
        d["effect"]["difference"] if "effect" in d else d["difference"] for d in compared["differences"]
    } == {0.0}
    assert len(jaxrec("protocols", run, "--json").json["protocols"]) > 1
    steady = jaxrec("stability", run, "-k", 5, "--json")
    assert steady.json["runs"]
    assert "softmax" in jaxrec("attention", "--json").json["mechanisms"]
    drawn = jaxrec("attention", run, "--history", "i1", "i2", "i3", "--out", tmp_path / "figures", "--json")
    assert drawn.json["figures"]
    assert all(Path(path).stat().st_size > 0 for path in drawn.json["figures"].values())


def test_help_version_and_unknown_commands():
    usage = jaxrec("--help")
    assert usage.status == 0
    assert jaxrec().out == usage.out
    for command in COMMANDS:
        assert f"  {command}" in usage.out
        page = jaxrec(command, "--help")
        assert page.status == 0
        assert f"jaxrec {command}" in page.out.splitlines()[0]
    assert jaxrec("--version").out == f"jaxrec {package.__version__}\n"
    unknown = jaxrec("fly")
    assert unknown.status == 2
    assert "unknown command 'fly': expected one of train" in unknown.err
    for command, option in (("train", "--bogus"), ("tune", "--resume"), ("estimate", "--resume")):
        wrong = jaxrec(command, option)
        assert wrong.status == 2
        assert option in wrong.err
        assert "--workdir" not in wrong.err, "of another command"


def test_advice_of_jaxrec_is_a_plain_line(monkeypatch):
    forms = []

    def command(arguments):
        for file in (main_module.__file__, "/elsewhere/library.py"):
            forms.append(warnings.formatwarning("choose another", UserWarning, file, 3, line=""))
        return 0

    usual = warnings.formatwarning
    monkeypatch.setitem(main_module.COMMANDS, "advise", ("common", "give advice"))
    monkeypatch.setattr(common, "advise", command, raising=False)
    assert main_module.main(["advise"]) == 0
    assert forms == [
        "warning: choose another\n",
        "/elsewhere/library.py:3: UserWarning: choose another\n",
    ]
    assert warnings.formatwarning is usual


def test_as_a_process():
    """Without JAX for what needs none: help answers at once."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = (
        "import sys; from jaxrec.cli.main import main; s = main(['--help']); print('jax' in sys.modules, s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("False 0\n"), done.stderr
    piped = subprocess.run(
        [sys.executable, "-m", "jaxrec", "audit", "movietweetings", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert piped.returncode == 0, piped.stderr
    assert isinstance(json.loads(piped.stdout.splitlines()[-1]), dict)
