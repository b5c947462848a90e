"""Runs in real processes, killed and interrupted, resumed to the very bits of an uninterrupted run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrec.training.checkpoint import FORMAT, CheckpointStore, _load
from jaxrec.training.logging import read_metrics
from tests.flags import xla_flags
from tests.helpers import small_dataset
from tests.tasks.data import described_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--preset",
    "smoke",
    "--quiet",
    "--json",
    "--batches.batch-size",
    "4",
    "--batches.max-length",
    "16",
]
OPTIONS += ["--training.epochs", "24", "--training.checkpoint-seconds", "0", "--evaluation.ks", "5", "10"]
PATIENCE_SECONDS = 240  # a hang is told from a slow machine


class Workplace:
    """A saved dataset, and processes that train on it with one cache of compiled programs."""

    def __init__(self, folder, dataset, options, flags=None):
        self.folder, self.options = folder, options
        dataset.save(folder / "data")
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT)}
        # Without flags the processes compile as a user's do.
        self.environment.pop("XLA_FLAGS")
        if flags:
            self.environment["XLA_FLAGS"] = flags

    def start(self, workdir, resume):
        command = [sys.executable, "-m", "jaxrec", "train", "--workdir", str(workdir)]
        # A resumed run takes its settings from the directory.
        command += (
            ["--resume", "--quiet", "--json"]
            if resume
            else ["--data", str(self.folder / "data"), *self.options]
        )
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, workdir, resume):
        process = self.start(workdir, resume)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    def start_until(self, workdir, resume, new_lines, stage=""):
        """A process whose log, or that of a stage, has grown by ``new_lines``."""
        log = workdir / stage
        already = count_lines(log) if resume else 0
        process = self.start(workdir, resume)
        give_up = time.monotonic() + PATIENCE_SECONDS
        # On resume the log is first cut back to the checkpoint, so the count may fall before it grows.
        while count_lines(log) < already + new_lines:
            assert process.poll() is None, f"ended too early: {process.communicate()}"
            assert time.monotonic() < give_up
            time.sleep(0.01)
        return process


def count_lines(workdir):
    path = workdir / "log.jsonl"
    return len(read_metrics(path)) if path.exists() else 0


def arrays(workdir):
    """Every array of the last checkpoint as stored, and the ranks of every held-out target."""
    store = CheckpointStore(workdir / "checkpoints")
    step = store.steps()[-1]
    _, parts = store._metadata(step)
    loaded = _load(store._path(step), parts, FORMAT)
    store.close()
    found = {
        f"{part}/{name}": np.asarray(value) for part, flat in loaded.items() for name, value in flat.items()
    }
    for path in sorted((workdir / "ranks").iterdir()):
        found[path.stem] = np.load(path)["ranks"]
    assert len(found) > 20
    return step, found


def assert_same_bits(one, other):
    (step, a), (other_step, b) = arrays(one), arrays(other)
    assert step == other_step
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), f"{name} differs"


def without_clock(results):
    return {name: value for name, value in results.items() if name not in ("timing", "workdir", "versions")}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("kill"), small_dataset(), OPTIONS)


@pytest.fixture(scope="module")
def uninterrupted(workplace):
    return workplace.folder / "whole", workplace.finish(workplace.folder / "whole", resume=False)


def test_a_run_killed_again_and_again_ends_with_the_same_bits(workplace, uninterrupted, tmp_path):
    whole, results = uninterrupted
    total = count_lines(whole)
    run = tmp_path / "run"
    moments = random.Random(2024)
    reached = []
    for attempt in range(3):
        process = workplace.start_until(run, resume=attempt > 0, new_lines=moments.randint(1, total // 8))
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (run / "results.json").exists(), "killed after the end: the run is too short for this test"
        reached.append(count_lines(run))
    assert reached == sorted(reached)
    assert reached[0] < reached[-1], "each resumed process went on where the last one was killed"
    resumed = workplace.finish(run, resume=True)
    assert_same_bits(whole, run)
    assert without_clock(resumed) == without_clock(results)
    lines = [
        [(line["step"], line.get("loss")) for line in read_metrics(d / "log.jsonl")] for d in (whole, run)
    ]
    assert lines[0] == lines[1], "no step of the log is missing or told twice"


def test_signals_save_say_how_to_resume_and_exit_with_their_number(workplace, uninterrupted, tmp_path):
    whole, results = uninterrupted
    run = tmp_path / "run"
    for number, status, resume in ((signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)):
        process = workplace.start_until(run, resume=resume, new_lines=4)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == status
        assert "Traceback" not in err
        told = re.search(
            r"^jaxrec: stopped at step (\d+) of \d+ and saved; continue with: jaxrec (.*)$", err, re.M
        )
        assert told, err
        assert told[2] == f"train --workdir {run} --resume"
        store = CheckpointStore(run / "checkpoints")
        assert store.steps()[-1] == int(told[1]), "the very step that it stopped at"
        store.close()
    resumed = workplace.finish(run, resume=True)
    assert_same_bits(whole, run)
    assert without_clock(resumed) == without_clock(results)


def test_killed_while_reporting(workplace, uninterrupted, tmp_path):
    """What the end of a run writes is written again by a resume, half-written files and all."""
    whole, results = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "results.json").unlink()
    (run / "catalogue" / "meta.json").unlink()
    (run / "ranks" / "test_seed0.npz").write_bytes(b"PK")
    assert without_clock(workplace.finish(run, resume=True)) == without_clock(results)
    assert_same_bits(whole, run)
    told = subprocess.run(
        [sys.executable, "-m", "jaxrec", "recommend", str(run), "--history", "i1", "--json"],
        env=workplace.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert len(json.loads(told.stdout.splitlines()[-1])["items"]) == 10, told.stderr


def test_a_run_of_two_stages_killed_in_each_ends_with_the_same_bits(tmp_path):
    """Options of the first stage are in the directory, too: a resume needs nothing but its name."""
    options = ["--preset", "s3rec-two-stage", "--quiet", "--json", "--batches.max-length", "8"]
    options += ["--encoder.width", "8", "--encoder.layers", "1", "--encoder.ffn-width", "8"]
    options += ["--batches.batch-size", "4", "--training.epochs", "8", "--training.checkpoint-seconds", "0"]
    options += ["--training.metric", "NDCG@10", "--evaluation.ks", "5", "10", "--pretraining.options"]
    options += ["training.epochs=4", "training.evaluate-every=0.5", "batches.prefixes-per-sequence=4"]
    options += ["batches.batch-size=8", "training.chunk-steps=4"]
    workplace = Workplace(tmp_path, described_dataset(n_users=24), options, xla_flags(1))
    whole, run = tmp_path / "whole", tmp_path / "run"
    results = workplace.finish(whole, resume=False)
    first = workplace.start_until(run, resume=False, new_lines=4, stage="pretraining")
    first.kill()
    first.communicate()
    assert not (run / "pretraining/results.json").exists(), "the first stage is too short for this test"
    second = workplace.start_until(run, resume=True, new_lines=4)
    second.kill()
    second.communicate()
    assert (run / "pretraining/results.json").exists()
    assert not (run / "results.json").exists(), "the second stage is too short for this test"
    resumed = workplace.finish(run, resume=True)
    assert_same_bits(whole / "pretraining", run / "pretraining")
    assert_same_bits(whole, run)
    assert without_clock(resumed) == without_clock(results)
