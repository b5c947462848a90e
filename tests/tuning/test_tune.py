"""Whole studies: from a dataset to the test value of the trial that validation chose."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxrec as package
from jaxrec.data import SequenceDataset
from jaxrec.errors import ConfigError
from jaxrec.tuning import tune
from jaxrec.tuning.report import Oracle, best_trial, training_seconds
from tests.cli.shared import interactions, refused
from tests.flags import xla_flags
from tests.runs import jaxrec

SPACE = {"optimizer.learning-rate": [1e-4, 3e-2]}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory, dataset, config):
    return tune(
        dataset, config, tmp_path_factory.mktemp("tunes") / "a", budget=2, space=SPACE, progress=False
    )


def test_report_has_the_test_value_of_the_best_trial_alone(result):
    assert package.tune is tune
    saved = json.loads((result.directory / "results.json").read_text())
    assert saved == json.loads(json.dumps(result.to_dict()))
    assert saved["counts"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert saved["best"]["valid"] == max(trial.score for trial in result.trials)
    assert saved["best"]["test"] == package.Run(result.workdir).metrics
    assert saved["oracle"] is None
    assert saved["seconds"] > 0
    finished = [
        trial for trial in result.trials if (result.directory / "trials" / trial.name / "ranks").exists()
    ]
    assert finished == [result.best]
    table = (result.directory / "table.md").read_text()
    assert "000 (defaults)" in table
    assert "oracle" not in table.lower()
    assert (result.directory / "figure.png").stat().st_size > 5000


def test_oracle_needs_no_further_training(result, dataset, config):
    logs = {
        trial.name: (result.directory / "trials" / trial.name / "log.jsonl").read_bytes()
        for trial in result.trials
    }
    again = tune(dataset, config, result.directory, budget=2, space=SPACE, oracle=True, progress=False)
    assert again.trials == result.trials
    assert again.test == result.test
    for name, log in logs.items():
        assert (result.directory / "trials" / name / "log.jsonl").read_bytes() == log
    expected = {name: package.Run(result.directory / "trials" / name).metrics["NDCG@10"] for name in logs}
    assert again.oracle.tests == expected
    assert again.to_dict()["oracle"]["maximum"] == max(expected.values())
    assert again.oracle.gap == max(expected.values()) - expected[result.best.name]
    assert "ORACLE, no result of a method" in again.to_markdown()
    assert "test NDCG@10 (oracle)" in again.to_markdown()


def test_oracle_and_choice():
    oracle = Oracle({"000": 0.2, "001": 0.3}, "000")
    assert oracle.best == "001"
    assert oracle.gap == pytest.approx(0.1)
    assert "0.3000 (trial 001), +0.1000 against the one that validation chose" in oracle.sentence("HR@10")
    assert Oracle({"000": 0.2}, "000").to_dict()["sd"] is None


def test_training_seconds_of_a_log_that_was_cut_off(tmp_path):
    lines = '{"seconds": 1.5}\n{"valid": {"MRR": [0.1]}}\n{"seconds": 2}\n'
    for end in ('{"secon', '{"valid": {"MRR": [0.1]}'):
        (tmp_path / "log.jsonl").write_text(lines + end)
        assert training_seconds(tmp_path) == 3.5
    assert training_seconds(tmp_path / "absent") == 0


def test_refused_before_anything_is_written(tmp_path, dataset, config):
    for options, words in [
        ({"out": ""}, "--out must be the directory"),
        ({"config": config.updated({"pretraining.preset": "s3rec-pretrain"})}, "in every trial"),
        ({"config": config.updated({"encoder.attention.heads": 3})}, "heads must divide"),
        ({"pruner": "halving"}, "--pruner must be one of median, none"),
        ({"budget": 0}, "--budget must be an integer at least 1"),
    ]:
        with pytest.raises(ConfigError) as error:
            tune(**{"dataset": dataset, "config": config, "out": tmp_path / "a", "space": SPACE, **options})
        assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_command_prints_the_space_and_refuses_in_one_line(tmp_path):
    shown = jaxrec("tune", "--preset", "smoke", "--print-space", "--space.attention.heads", "fixed")
    assert shown.status == 0, shown.err
    assert 'optimizer.learning-rate = "log:0.0001:0.01"' in shown.out
    assert "heads" not in shown.out
    (tmp_path / "space.toml").write_text(shown.out)
    again = jaxrec("tune", "--preset", "smoke", "--print-space", "--space", tmp_path / "space.toml")
    assert again.out == shown.out
    assert "--space.OPTION" in jaxrec("tune", "--help").out
    out = ["--preset", "smoke", "--out", tmp_path / "a"]
    refused(jaxrec("tune", *out, "--space.encoder.widht", "8,16"), "--space.encoder.widht", "encoder.width")
    refused(jaxrec("tune", *out, "--space.encoder.width"), "--space.encoder.width needs a value")
    refused(jaxrec("tune", *out, "--budget", "-3"), "--budget must be", "-3")
    refused(jaxrec("tune", "--preset", "smoke"), "--out must be")
    assert not (tmp_path / "a").exists()


def poisoned(dataset):
    """The dataset with every user's test target replaced."""
    items = np.array(dataset.items)
    last = dataset.offsets[1:] - 1
    items[last] = items[last] % dataset.n_items + 1
    return SequenceDataset(
        items,
        dataset.offsets,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        timestamps=dataset.timestamps,
        item_titles=dataset.item_titles,
        meta={"name": "walks"},
    )


@pytest.mark.slow
def test_test_targets_change_nothing_but_the_final_ranks(tmp_path, dataset, config):
    config = config.updated({"training.epochs": 4.0})
    space = {"optimizer.learning-rate": "log:1e-4:1e-1", "encoder.dropout": "0:0.5"}
    other = poisoned(dataset)
    assert other.fingerprint != dataset.fingerprint
    a, b = (
        tune(data, config, tmp_path / name, budget=4, space=space, progress=False)
        for name, data in (("a", dataset), ("b", other))
    )
    assert a.trials == b.trials
    assert a.best == b.best
    assert a.test != b.test
    valid = [package.Run(x.workdir, data).results["valid_metrics"] for x, data in ((a, dataset), (b, other))]
    assert valid[0] == valid[1]


def command(folder, out, budget):
    words = ["tune", "--data", folder / "log.csv", "--preset", "smoke", "--quiet", "--json", "--out", out]
    words += [
        "--batches.batch-size",
        4,
        "--batches.max-length",
        16,
        "--training.epochs",
        8,
        "--budget",
        budget,
    ]
    words += ["--training.checkpoint-seconds", 0, "--space", folder / "space.toml", "--evaluation.ks", 5, 10]
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jaxrec", *map(str, words)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    interactions().write_csv(tmp_path / "log.csv")
    (tmp_path / "space.toml").write_text('optimizer.learning-rate = "log:1e-3:1e-1"\n')
    return tmp_path


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_killed_study_goes_on_without_training_twice(folder):
    process = command(folder, folder / "killed", 2)
    log = folder / "killed/trials/001/log.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("valid") >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = (folder / "killed/trials/000/log.jsonl").read_bytes()
    killed = finished(command(folder, folder / "killed", 2))
    assert (folder / "killed/trials/000/log.jsonl").read_bytes() == first
    whole = finished(command(folder, folder / "whole", 2))
    assert [trial["scores"] for trial in killed["trials"]] == [trial["scores"] for trial in whole["trials"]]
    assert killed["best"]["test"] == whole["best"]["test"]


@pytest.mark.slow
def test_two_processes_share_a_budget(folder):
    processes = [command(folder, folder / "shared", 3) for _ in range(2)]
    results = [finished(process) for process in processes]
    last = json.loads((folder / "shared/results.json").read_text())
    assert last["counts"]["complete"] + last["counts"]["pruned"] == 3
    assert len({json.dumps(trial["options"]) for trial in last["trials"]}) == 3
    assert sum(trial["default"] for trial in last["trials"]) == 1
    assert any(result["best"]["test"] == last["best"]["test"] for result in results)


def test_best_trial_is_the_first_of_equal_ones(result):
    equal = [dataclasses.replace(trial, score=0.5) for trial in result.trials]
    assert best_trial(equal).name == "000"
    assert best_trial([dataclasses.replace(equal[0], state="pruned"), equal[1]]).name == "001"
