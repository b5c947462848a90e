"""Short form of the reliability campaign: the first bad inputs of its generator, and runs that are killed."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.reliability import __main__ as campaign
from experiments.reliability import clock, elastic, endurance, inputs, kills
from experiments.reliability.base import cache_environment, walks
from experiments.reliability.trials import BROKEN, HELD, Answer, Trial, TrialLog, call, command, stamp
from jaxrec.config import load_config
from jaxrec.data import SequenceDataset
from jaxrec.errors import JaxrecError
from jaxrec.reporting.html import _training_curve
from jaxrec.runs import Run
from jaxrec.training.logging import read_metrics
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_bad_inputs_end_in_words_or_in_the_right_answer(tmp_path):
    outcomes = set()
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        trial = inputs.trial(1, tmp_path / "base", False, number, folder)
        assert trial.outcome in HELD, trial
        outcomes.add(trial.outcome)
    assert {"refused", "same"} <= outcomes


def test_the_judge_sees_failures():
    def late():
        time.sleep(5)

    assert call(lambda: 1 / 0).problem == "raw error"
    assert call(late, 0.1).problem == "hang"
    assert call(partial(Run, 7)).problem == ""
    case = inputs.Case("x", command, right={"a": 1})
    assert inputs.judged(Answer(0, {"a": 2}, "", ""), case)[0] == "wrong"
    assert inputs.judged(Answer(0, {"a": 1}, "", ""), case)[0] == "same"
    assert inputs.judged(Answer(0, None, "", ""), case._replace(must="refused"))[0] == "wrong"
    assert not set(BROKEN) & set(HELD)


def test_the_log_continues_behind_a_cut_line(tmp_path):
    log = TrialLog(tmp_path / "log.jsonl")
    log.add(Trial(0, "a", "refused"))
    with log.path.open("ab") as file:
        file.write(b'\n{"number": 1, "ki')
    log.add(Trial(2, "b", "same"))
    assert [trial.number for trial in log.read()] == [0, 2]


@pytest.mark.parametrize("value", [None, 1.5, [1], "a\0b"])
def test_paths_of_other_types_are_refused(value):
    for function in (Run, SequenceDataset.load):
        with pytest.raises(JaxrecError, match="must be a path"):
            function(value)


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(JaxrecError, match="cannot be read: File name too long"):
        load_config(tmp_path / ("x" * 3000) / "config.json")


def test_a_dataset_with_a_name_that_is_too_long_is_refused(tmp_path):
    long = tmp_path / ("x" * 3000)
    with pytest.raises(JaxrecError, match="does not exist"):
        SequenceDataset.load(long)
    with pytest.raises(JaxrecError, match="cannot be used: File name too long"):
        walks().save(long)
    assert "no file 'xxx" in jaxrec("prepare", "x" * 3000, "--out", tmp_path / "out").err


def test_details_hold_no_folders(tmp_path):
    text = (
        f"the run {tmp_path}/kills/run is bad: {Path.cwd()}/jaxrec/x.py:7, {sys.prefix}/lib/a.py, '/srv/data/log.csv', "
        f"state/items/table 1/2, {Path.cwd()}-beside-it/a.py and /dev/null"
    )
    log = TrialLog(tmp_path / "log.jsonl")
    log.add(Trial(0, "a", "refused", text))
    assert log.read()[0].detail == (
        "the run WORK/kills/run is bad: REPOSITORY/jaxrec/x.py:7, PYTHON/lib/a.py, 'FOLDER/log.csv', "
        "state/items/table 1/2, FOLDER/a.py and /dev/null"
    )


def test_a_trial_is_repeated_by_its_number(tmp_path):
    twice = []
    for name in ("a", "b"):
        (tmp_path / name / "work").mkdir(parents=True)
        twice.append(inputs.trial(3, tmp_path / "base", False, 5, tmp_path / name / "work"))
    assert twice[0]._replace(detail="") == twice[1]._replace(detail="")


@pytest.mark.parametrize(
    "line",
    [
        {"step": 2, "valid": {"NDCG@11": [0.5]}},
        {"step": 2, "valid": 7},
        {"step": 2, "valid": {"NDCG@10": 7}},
        {"step": "2", "loss": [1.0]},
        {"step": 2, "loss": ["1.0"]},
        {"step": 2, "loss": [1.0, 2.0]},
        {"stop": 2, "loss": [1.0], "valid": {"NDCG@10": [0.5]}},
    ],
)
def test_a_page_is_drawn_of_a_damaged_log(tmp_path, line):
    lines = [{"step": 1, "loss": [2.0]}, line]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    figure = _training_curve(read_metrics(tmp_path / "log.jsonl"), "NDCG@10")
    assert len(figure.axes) == 1, "no validation is drawn"


def test_layouts_of_elastic_runs():
    for number in range(40):
        layouts, ends = elastic.sequence_of(0, number)
        assert len(layouts) == len(ends)
        assert list(ends) == sorted(set(ends))
        assert ends[-1] == elastic.EPOCHS
    assert elastic.sequence_of(0, 20) == elastic.sequence_of(0, 20)
    assert len({elastic.sequence_of(0, number) for number in range(40)}) > 30


def test_a_difference_of_runs_is_seen():
    ranks = np.arange(4)
    one = elastic.Content({"a": np.zeros(3), "b": np.ones(2)}, [1.0, 0.5], ranks)
    assert elastic.difference(one, one) == (0.0, "")
    assert elastic.difference(one, one._replace(losses=[1.0, 0.75])) == (0.25, "losses")
    assert elastic.difference(one, one._replace(arrays={**one.arrays, "b": np.array([1.0, 3.0])})) == (
        2.0,
        "b",
    )
    assert (
        elastic.difference(one, one._replace(arrays={**one.arrays, "b": np.array([1.0, np.nan])}))[1] == "b"
    )
    assert elastic.difference(one, one._replace(losses=[1.0]))[0] == float("inf")
    assert elastic.difference(one, one._replace(arrays={"a": np.zeros(3)}))[0] == float("inf")


def test_strata_of_kills_have_their_shares_and_the_order_of_a_run():
    drawn = [name for number in range(300) for name in kills.strata_of(random.Random(number), 10, True)]
    for name, share in kills.SHARES.items():
        assert abs(drawn.count(name) / 3000 - share) < 0.03
    one = kills.strata_of(random.Random(5), 200, True)
    forward = [name for name in one if name not in ("start", "saving")]
    assert forward == sorted(forward, key=list(kills.SHARES).index)
    assert "pretraining" not in kills.strata_of(random.Random(5), 200, False)
    assert Counter(kills.configuration_of(n, tuple(kills.MIX)) for n in range(25)) == kills.MIX


def test_the_phase_of_a_process_is_that_of_its_own_files(tmp_path):
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    (tmp_path / "ranks").mkdir()
    for name in ("log.jsonl", "results.json", "ranks/a.npz"):
        (tmp_path / name).write_text("old")
    signs = kills.Signs(tmp_path)
    assert kills.phase(tmp_path, signs, 9) == "start"
    (tmp_path / "log.jsonl").write_text("new line")
    os.utime(tmp_path / "log.jsonl", ns=(5, 5))
    assert kills.phase(tmp_path, signs, 12) == "training"
    assert kills.phase(tmp_path, signs, 9) == "evaluation"
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    assert kills.phase(tmp_path, signs, 12) == "saving"
    assert signs.saves() == 1
    os.replace(tmp_path / "ranks/a.npz", tmp_path / "ranks/b.npz")
    assert kills.phase(tmp_path, signs, 12) == "final writing"


def test_a_folder_that_was_written_to_has_another_stamp(tmp_path):
    file = tmp_path / "a" / "b.txt"
    file.parent.mkdir()
    file.write_text("one")
    before = stamp(tmp_path)
    assert stamp(tmp_path) == before
    times = file.stat()
    time.sleep(0.02)
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stamp(tmp_path) != before, "the same size and time of writing"


def test_the_clock_goes_back_at_its_moment(monkeypatch):
    monkeypatch.setattr(time, "time", time.time)
    monkeypatch.setattr(time, "time_ns", time.time_ns)
    real = time.time
    clock.set_back(0.05, 3600.0)
    assert abs(time.time() - real()) < 1
    time.sleep(0.06)
    assert 3599 < real() - time.time() < 3601
    assert 3599 < real() - time.time_ns() / 1e9 < 3601
    results = {"timing": {"a": 1.0, "b": -2.0, "c": float("inf")}}
    assert clock.impossible_times(results) == ["b", "c"]


def test_growth_and_loss_of_speed_are_seen():
    def run(growth, loss, noise=0.5):
        rng = np.random.default_rng(0)
        samples, steps = [], 0.0
        for second in range(0, 3600, 5):
            steps += 5 * (100 - loss * second / 3600)
            memory = 500 + growth * second / 3600 + noise * rng.normal()
            samples.append(endurance.Sample(second, memory, float(second), int(steps)))
        return endurance.figures(samples)

    assert run(0, 0)["verdict"] == "memory flat, speed steady"
    assert run(50, 0)["verdict"] == "memory grows, speed steady"
    assert run(0, 20)["verdict"] == "memory flat, speed falls"
    assert run(0, 0, 400)["verdict"].startswith("memory undecided")
    exact = endurance.slope([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])
    assert exact.share == pytest.approx(0.4)
    assert exact.low == pytest.approx(exact.high)
    # By hand: slope 1.3, residual sum of squares .3, t quantile 4.302653 for two degrees of freedom.
    rough = endurance.slope([0, 1, 2, 3], [1.0, 2.0, 4.0, 4.5 + 0.4 / 3 - 0.1 / 3])
    slope, mean = rough.share * 2.9, 2.9
    residuals = [v - mean - slope * (x - 1.5) for x, v in enumerate([1.0, 2.0, 4.0, 4.6])]
    half = 4.302653 * (sum(r * r for r in residuals) / 2 / 5) ** 0.5 / mean
    assert rough.high - rough.share == pytest.approx(half, rel=1e-5)


def test_memory_of_this_process_is_read(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 5, "loss": [1.0]}\n{"step": 9, "valid": {}}\n{"st')
    sample = endurance._sample(os.getpid(), tmp_path, time.monotonic())
    assert 20 < sample.mebibytes < 50_000
    assert sample.processor > 0
    assert sample.steps == 9


def test_failures_of_an_earlier_commit_are_done_again(tmp_path):
    earlier, log = TrialLog(tmp_path / "a.jsonl", "abc"), TrialLog(tmp_path / "b.jsonl", "def")
    for number, outcome in enumerate(["same", "raw error", "refused"]):
        earlier.add(Trial(number, "x", outcome))
    log.add(Trial(2, "x", "same"))
    campaign._take_over(earlier, log)
    assert [(t.number, t.commit) for t in log.read()] == [(0, "abc"), (2, "def")]
    assert log.missing(3) == [1]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    """In a process of its own: what forks must not have started JAX's backend."""

    script = (
        "from pathlib import Path; from experiments.reliability import kills; "
        "from experiments.reliability.trials import TrialLog; folder = Path('FOLDER'); "
        "log = TrialLog(folder / 'log.jsonl'); kills.kills(3, 4, 300, folder, log, ('packed',)); "
        "trials = log.read(); assert trials and all(t.outcome == 'resumed' for t in trials), trials; "
        "from experiments.reliability import elastic; again = TrialLog(folder / 'elastic.jsonl'); "
        "elastic.elastic(0, 9, 600, folder / 'elastic', again, only=2); "
        "trials = again.read(); assert [t.outcome for t in trials] == ['resumed'], trials; "
        "from experiments.reliability import clock; late = TrialLog(folder / 'clock.jsonl'); "
        "clock.clock(0, 9, 600, folder / 'clock', late, only=6); "
        "assert [t.outcome for t in late.read()] == ['same'], late.read(); "
        "import jax, pytest; jax.devices(); "
        "pytest.raises(RuntimeError, clock.clock, 0, 9, 600, folder / 'clock', late, only=6).match('must not fork')"
    ).replace("FOLDER", str(tmp_path))

    environment = {**os.environ, **cache_environment(tmp_path / "compiled")}
    environment.pop("XLA_FLAGS", None)
    subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=400,
    )
    assert sum(kills.phases_of(TrialLog(tmp_path / "log.jsonl").read())["phases"].values()) == 4
