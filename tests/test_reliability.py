"""Short form of the reliability campaign: the first bad inputs of its generator, and runs that are killed."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from experiments.reliability import elastic, inputs, kills
from experiments.reliability.base import cache_environment, walks
from experiments.reliability.trials import BROKEN, HELD, Answer, Trial, TrialLog, call, command
from jaxrec.config import load_config
from jaxrec.data import SequenceDataset
from jaxrec.errors import JaxrecError
from jaxrec.reporting.html import _training_curve
from jaxrec.runs import Run
from jaxrec.training.logging import read_metrics

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


def test_details_hold_no_folders(tmp_path):
    text = (
        f"the run {tmp_path}/kills/run is bad: {Path.cwd()}/jaxrec/x.py:7, {sys.prefix}/lib/a.py, '/srv/data/log.csv', "
        "state/items/table 1/2 and /dev/null"
    )
    log = TrialLog(tmp_path / "log.jsonl")
    log.add(Trial(0, "a", "refused", text))
    assert log.read()[0].detail == (
        "the run WORK/kills/run is bad: REPOSITORY/jaxrec/x.py:7, PYTHON/lib/a.py, 'FOLDER/log.csv', "
        "state/items/table 1/2 and /dev/null"
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
    import numpy as np

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


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    """In a process of its own: what forks must not have started JAX's backend."""

    script = (
        "from pathlib import Path; from experiments.reliability import kills; "
        "from experiments.reliability.trials import TrialLog; folder = Path('FOLDER'); "
        "log = TrialLog(folder / 'log.jsonl'); kills.kills(3, 4, 60, folder, log, ('packed',)); "
        "trials = log.read(); assert trials and all(t.outcome == 'resumed' for t in trials), trials; "
        "from experiments.reliability import elastic; again = TrialLog(folder / 'elastic.jsonl'); "
        "elastic.elastic(0, 9, 600, folder / 'elastic', again, only=2); "
        "trials = again.read(); assert [t.outcome for t in trials] == ['resumed'], trials"
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
    assert kills.phases_of(TrialLog(tmp_path / "log.jsonl").read())
