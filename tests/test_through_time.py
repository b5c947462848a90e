"""Cross-validation through time: a run for each cut, continued where it was left, and its tables."""

import json
import signal

import pytest

from jaxrec.data import load_dataset, split_dataset
from jaxrec.errors import CheckpointError, DataError, Interrupted
from jaxrec.runs import Run
from jaxrec.through_time import ThroughTime, fit_through_time
from tests.cli.shared import SMALL, interactions, refused
from tests.helpers import replace, small_config, small_dataset
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
CUTS = (0.6, 0.8)
CONFIG = replace(small_config(), split={"target": "random"}, training={"epochs": 1})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return fit_through_time(DATASET, CONFIG, tmp_path_factory.mktemp("time") / "cuts", CUTS, progress=False)


def training_lines(found, cut):
    log = found.directory / f"cut-{cut:g}" / "log.jsonl"
    return [line for line in log.read_text().splitlines() if "loss" in line]


def test_each_run_is_tested_in_its_own_period(found):
    for cut, split, result in zip(CUTS, CONFIG.split.through_time(CUTS), found.results, strict=True):
        run = Run(found.directory / f"cut-{cut:g}", DATASET)
        assert run.config.split == split
        assert run.metrics == {name: value["mean"] for name, value in result["metrics"].items()}
        own = split_dataset(DATASET, split)
        assert result["counts"]["cases"] == len(own.test)
        assert result["split"]["description"] == own.description
    first, second = (result["split"]["options"] for result in found.results)
    assert first["end_cut"] == second["test_cut"]


def test_a_cut_is_printed_as_it_was_given(tmp_path):
    result = {
        "metrics": {"NDCG@10": {"mean": 0.2}},
        "baselines": {"popularity": {"NDCG@10": 0.1}},
        "split": {"description": "temporal"},
        "counts": {"cases": 9},
        "protocol": "full corpus",
        "config": {"encoder": {"name": "gru4rec"}},
    }
    table = ThroughTime(tmp_path, (0.875, 0.9125), "NDCG@10", (result, result)).to_markdown()
    assert "| 0.875 " in table
    assert "| 0.9125 |" in table


def test_a_period_of_single_targets_beside_one_of_several(tmp_path):
    """Precision, recall and MAP are reported where some case has several targets."""
    results = []
    for names, value in ((("HR@10", "NDCG@10", "Recall@10"), 0.1), (("HR@10", "NDCG@10"), 0.2)):
        results.append(
            {
                "metrics": {name: {"mean": value} for name in names},
                "baselines": {"popularity": dict.fromkeys(names, value)},
                "split": {"description": "temporal"},
                "counts": {"cases": 9},
                "dataset": {},
                "protocol": "full corpus",
                "seeds": [0],
                "config": {"encoder": {"name": "gru4rec"}},
            }
        )
    for order in (results, results[::-1]):
        found = ThroughTime(tmp_path, (0.8, 0.9), "NDCG@10", tuple(order)).to_dict()
        assert list(found["metrics"]) == ["HR@10", "NDCG@10"]


def test_tables_have_every_cut_and_the_spread_over_them(found):
    saved = json.loads((found.directory / "cuts.json").read_text())
    assert saved == json.loads(json.dumps(found.to_dict()))
    values = saved["metrics"]["NDCG@10"]
    assert values[found.label] == [result["metrics"]["NDCG@10"]["mean"] for result in found.results]
    a, b = values["markov"]
    table = (found.directory / "cuts.md").read_text()
    row = next(line for line in table.split("NDCG@10")[1].splitlines() if line.startswith("| markov"))
    shown = [float(cell) for cell in row.strip("| ").split("|")[1:]]
    assert shown == pytest.approx([a, b, (a + b) / 2, abs(a - b) / 2**0.5], abs=6e-5)
    for result in found.results:
        assert result["split"]["description"] in table


def test_a_second_call_trains_nothing_and_refuses_another_configuration(found):
    before = [training_lines(found, cut) for cut in CUTS]
    assert all(before)
    again = fit_through_time(DATASET, CONFIG, found.directory, CUTS, progress=False)
    assert [result["metrics"] for result in again.results] == [result["metrics"] for result in found.results]
    assert [training_lines(found, cut) for cut in CUTS] == before
    with pytest.raises(CheckpointError, match=r"cannot resume .*cut-0\.6 .*encoder\.width"):
        fit_through_time(
            DATASET, replace(CONFIG, encoder={"width": 4}), found.directory, CUTS, progress=False
        )


def test_cuts_without_a_case_between_them_are_refused_before_training(tmp_path):
    # Ten users on each of ten days: two of the cuts fall on the same one.
    log = (list(range(10)) * 10, [number % 13 for number in range(100)], [n // 10 for n in range(100)])
    config = replace(CONFIG, split={"valid_quantile": 0.75})
    with pytest.raises(DataError, match=r"has no test case: .*choose other cuts"):
        fit_through_time(load_dataset(log), config, tmp_path / "cuts", (0.5, 0.75, 0.77), progress=False)
    assert not (tmp_path / "cuts").exists()


def test_an_interruption_says_how_to_go_on_with_all_cuts(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Interrupted("continue with: jaxrec train --workdir cut-0.6 --resume", signal.SIGTERM)

    def kill(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxrec.through_time.fit", stop)
    with pytest.raises(Interrupted) as stopped:
        fit_through_time(DATASET, CONFIG, tmp_path, CUTS, progress=False)
    assert str(stopped.value) == "stopped at cut 0.6, whose state is saved; continue with the same command"
    assert stopped.value.signal_number == signal.SIGTERM
    monkeypatch.setattr("jaxrec.through_time.fit_through_time", kill)
    outcome = jaxrec("through-time", "--out", tmp_path, "--cuts", *CUTS)
    assert outcome.status == 130
    assert (
        outcome.err == "jaxrec: stopped by SIGINT; finished cuts are saved, continue with the same command\n"
    )


@pytest.mark.slow
def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interactions().write_csv("log.csv")
    options = ["--data", "log.csv", "--cuts", *CUTS, "--out", "cuts", "--training.epochs", 1, *SMALL]
    out = jaxrec("through-time", *options, "--json").json
    assert out["cuts"] == list(CUTS)
    assert {path.name for path in (tmp_path / "cuts").iterdir()} == {
        "cut-0.6",
        "cut-0.8",
        "cuts.md",
        "cuts.json",
    }
    assert refused(jaxrec("through-time", "--cuts", 0.8, 0.6, "--out", "other"), "must increase", "0.8 0.6")
    assert refused(jaxrec("through-time", "--cuts", 0.8), "--out must name the directory")
