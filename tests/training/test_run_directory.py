"""Run directories: paths, locks, files that appear whole, and what a killed or damaged run leaves."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxrec
from jaxrec.data.catalogue import AttributeTable
from jaxrec.errors import CheckpointError, RunExistsError
from jaxrec.files import LOCK, write_atomically
from jaxrec.tasks import S3RecConfig
from jaxrec.training import loop
from jaxrec.training.host_state import HostState
from jaxrec.training.logging import read_metrics
from jaxrec.training.run_directory import check_record, new_record, run_lock
from tests.helpers import small_config, small_dataset
from tests.runs import jaxrec as command

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
SHORT = small_config(training={"epochs": 1})
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["run[1]", "lr[1e-3]", "*[1]?"])
def test_a_path_in_which_checkpoints_would_be_lost_is_rejected_before_training(tmp_path, name):
    with pytest.raises(RunExistsError, match=r"square brackets.*choose another --workdir"):
        jaxrec.fit(DATASET, SHORT, tmp_path / name, progress=False)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["run*", "run?", "lr[0.1", "run #1 &%|", "läufe/🙂"])
def test_other_paths_work(tmp_path, name):
    trained = jaxrec.fit(DATASET, SHORT, tmp_path / name, progress=False)
    assert trained.run.params()


HOLD = """
import sys, time
from pathlib import Path
from jaxrec.training.run_directory import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_second_process_is_rejected_at_once_and_a_killed_one_leaves_no_lock(tmp_path):
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for resume in (False, True):
            begin = time.monotonic()
            with pytest.raises(RunExistsError, match=rf"another process \(pid {holder.pid}\) is writing"):
                jaxrec.fit(DATASET, SHORT, run, resume=resume, progress=False)
            assert time.monotonic() - begin < 30, "it does not wait for the lock"
        refused = command(
            "train", "--workdir", run, "--overwrite", "--preset", "smoke", "--data", ROOT / "nothing.csv"
        )
        assert refused.status == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (run / LOCK).exists(), "the file remains, its lock does not"
    jaxrec.fit(DATASET, SHORT, run, progress=False)


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        jaxrec.fit(DATASET, SHORT, tmp_path / "absent", resume=True, progress=False)
    assert not (tmp_path / "absent").exists()
    with run_lock(tmp_path / "other"), run_lock(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(tmp_path, monkeypatch):
    """The configuration is there before anything else, so that every rule for the directory applies."""

    class Killed(Exception):
        pass

    def kill(*_, **__):
        (tmp_path / "run" / "checkpoints").mkdir()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop, "CheckpointStore", kill)
        with pytest.raises(Killed):
            jaxrec.fit(DATASET, SHORT, tmp_path / "run", progress=False)
    resumed = jaxrec.fit(DATASET, SHORT, tmp_path / "run", resume=True, progress=False)
    assert resumed.metrics == jaxrec.fit(DATASET, SHORT, progress=False).metrics


def test_files_appear_whole_or_not_at_all(tmp_path):
    file = tmp_path / "config.json"
    write_atomically(file, "old")

    def half(stream):
        stream.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, half)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"


def test_lost_and_damaged_logs_do_not_stop_a_resume(tmp_path):
    trained = jaxrec.fit(DATASET, SHORT, tmp_path / "run", progress=False)
    log = tmp_path / "run" / "log.jsonl"
    for content in (None, b"", b"\x00" * 40, b"\xff\xfe{", b"[1]\n"):
        log.unlink() if content is None else log.write_bytes(content)
        again = jaxrec.fit(DATASET, SHORT, tmp_path / "run", resume=True, progress=False)
        assert again.metrics == trained.metrics
        assert read_metrics(log) == []
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"] == again.results["metrics"]


START = """
import sys, signal
import jaxrec.{module} as module
original = module.{function}
def stop(*arguments, **options):
    signal.raise_signal(signal.{number})
    return original(*arguments, **options)
module.{function} = stop
from jaxrec.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "saved"),
    [("training.setup", "split_dataset", False), ("reporting.results", "save_ranks", True)],
)
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_outside_the_loop_are_one_line(tmp_path, module, function, saved, number, status):
    DATASET.save(tmp_path / "data")
    options = ["--data", tmp_path / "data", "--workdir", tmp_path / "run", "--preset", "smoke", "--quiet"]
    options += ["--training.epochs", "1", "--batches.batch-size", "4"]
    program = START.format(module=module, function=function, number=number)
    done = subprocess.run(
        [sys.executable, "-c", program, "train", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"jaxrec: stopped by {number}; ")
    assert ("continue with: jaxrec train --workdir" in done.stderr) == saved
    assert ("nothing was saved" in done.stderr) == (not saved)
    assert "Traceback" not in done.stderr


def test_a_checkpoint_knows_the_attributes_that_its_task_reads():
    def of(names):
        return dataclasses.replace(DATASET, attributes=AttributeTable.from_lists(names))

    names = [["a", "b"] if item % 2 else ["b"] for item in range(DATASET.n_items)]
    state = HostState.start(1)
    pretraining = dataclasses.replace(small_config(), task=S3RecConfig())
    record = new_record(3, pretraining, of(names), state)
    check_record(record, pretraining, of(names))
    with pytest.raises(CheckpointError, match=r"attributes of items with fingerprint .*give the item table"):
        check_record(record, pretraining, of([["a"], *names[1:]]))
    other = new_record(3, small_config(), of(names), state)
    check_record(other, small_config(), of([["a"], *names[1:]]))
