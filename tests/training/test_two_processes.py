"""Two processes with two devices each train, save, restore and evaluate like one; and what they say when one is missing."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

from jaxrec.data import prepare_in_blocks
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.readers.vectors import attribute_vectors
from jaxrec.training.checkpoint import CheckpointStore
from jaxrec.training.distributed import SHUTDOWN_SECONDS
from jaxrec.training.logging import read_metrics
from tests.flags import xla_flags
from tests.helpers import small_dataset
from tests.processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240
#: Pieces of the line that Gloo prints when it has connected.
GLOO = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|[\d\s]"
)
OPTIONS = ["--preset", "smoke", "--batches.batch-size", "4", "--batches.max-length", "16"]
OPTIONS += ["--encoder.item-bias", "--evaluation.ks", "5", "10"]


class Workplace:
    """Processes that share a dataset and a cache of compiled programs."""

    def __init__(self, folder):
        self.folder = folder
        small_dataset().save(folder / "data")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, devices, arguments):
        environment = {**self.environment, "XLA_FLAGS": xla_flags(devices)}
        return subprocess.Popen(
            [sys.executable, "-m", "jaxrec", *map(str, arguments), "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pair(self, arguments):
        """(exit status, standard output, standard error) of two processes with two devices each."""
        joined = [
            *arguments,
            *("--mesh.data", 2, "--mesh.item", 2),
            *("--distributed.mode", "manual", "--distributed.coordinator", f"127.0.0.1:{free_port()}"),
            *("--distributed.processes", 2, "--distributed.process"),
        ]
        processes = [self.start(2, [*joined, number]) for number in range(2)]
        try:
            outputs = [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]

    def together(self, arguments):
        """Results of a pair, of which only the first may print.

        Gloo, the library of collectives, prints a line of its own from several threads, whose pieces mix.
        """
        outcomes = self.pair(arguments)
        for status, _, err in outcomes:
            assert status == 0, err
        printed = [[line for line in out.splitlines() if GLOO.sub("", line)] for _, out, _ in outcomes]
        assert printed[1] == [], "only the first process prints"
        return json.loads(printed[0][-1])

    def alone(self, arguments):
        process = self.start(1, arguments)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    def train(self, run, epochs):
        return [
            "train",
            "--workdir",
            self.folder / run,
            "--data",
            self.folder / "data",
            *OPTIONS,
            "--training.epochs",
            epochs,
            "--quiet",
        ]

    def resume(self, run, epochs):
        return ["train", "--workdir", self.folder / run, "--resume", "--training.epochs", epochs, "--quiet"]

    def state(self, run):
        """Every array of the last checkpoint, tables cut to the items that there are, and the test ranks."""
        store = CheckpointStore(self.folder / run / "checkpoints")
        step = store.steps()[-1]
        _, saved = store._metadata(step)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {
            part: {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in arrays.items()}
            for part, arrays in saved.items()
        }
        parts, _ = store.restore(target, step)
        store.close()
        arrays = {
            f"{part}/{name}": np.asarray(x) for part, values in parts.items() for name, x in values.items()
        }
        for name in arrays:
            if name.endswith("projections/bias"):
                # A bias of all keys moves no softmax: its gradient is rounding alone, which Adam scales up.
                width = arrays[name].shape[1] // 3
                arrays[name] = np.delete(arrays[name], np.s_[width : 2 * width], axis=1)
        arrays = {
            name: value[:, :41] if any(part in name for part in ("items/table", "item_bias")) else value
            for name, value in arrays.items()
        }
        ranks = np.load(self.folder / run / "ranks" / "test_seed0.npz")["ranks"]
        losses = [line["loss"][0] for line in read_metrics(self.folder / run / "log.jsonl") if "loss" in line]
        return step, arrays, ranks, losses


def assert_close(one, other):
    (step, arrays, ranks, losses), (step_b, arrays_b, ranks_b, losses_b) = one, other
    assert step == step_b
    assert arrays.keys() == arrays_b.keys()
    for name, value in arrays.items():
        np.testing.assert_allclose(arrays_b[name], value, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(losses_b, losses, atol=1e-5)
    np.testing.assert_array_equal(ranks_b, ranks)


def test_two_processes_are_one(tmp_path):
    place = Workplace(tmp_path)
    single = place.alone(place.train("single", 6))
    place.together(place.train("pair", 3))
    shutil.copytree(tmp_path / "pair", tmp_path / "left")
    # Streamed from here on: each process fills the rows of its own devices.
    pair = place.together([*place.resume("pair", 6), "--training.feed", "streamed"])
    assert_close(place.state("single"), place.state("pair"))
    left = place.alone([*place.resume("left", 6), "--mesh.data", 1, "--mesh.item", 1])
    assert_close(place.state("single"), place.state("left"))
    for results in (pair, left):
        assert results["metrics"] == single["metrics"]
        assert {**results["training"], "feed": "resident"} == single["training"]
    evaluated = place.together(["evaluate", tmp_path / "single"])
    assert evaluated["metrics"] == single["metrics"]
    refused = place.pair(place.train("single", 6))
    assert [status for status, _, _ in refused] == [1, 1]
    assert "is not empty: expected a new or empty directory" in refused[0][2]
    assert "the first process refused the run directory" in refused[1][2]


def test_two_processes_train_from_a_partitioned_log(tmp_path):
    """Written by DuckDB in parts, prepared part by part, and read by each process in its share: like one process."""
    pytest.importorskip("duckdb")
    from data_prep.partition import Options, partition

    place = Workplace(tmp_path)
    dataset = small_dataset()
    log = {
        "user_id": np.repeat(list(dataset.user_ids), dataset.lengths),
        "item_id": [dataset.item_ids[item - 1] for item in dataset.items],
        "timestamp": dataset.timestamps,
    }
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    partition(Options(log=str(tmp_path / "log.parquet"), out=tmp_path / "parts", parts=4))
    shutil.rmtree(tmp_path / "data")
    assert prepare_in_blocks(tmp_path / "parts", tmp_path / "data", rows=100).n_users == dataset.n_users
    shares = ["--batches.shares", 2, "--training.feed", "streamed"]
    single = place.alone([*place.train("single", 3), *shares])
    pair = place.together([*place.train("pair", 3), *shares])
    assert_close(place.state("single"), place.state("pair"))
    for part in ("metrics", "valid_metrics", "counts", "baselines", "data_usage", "training"):
        assert pair[part] == single[part]
    # Each process ranks the cases of its own share here too.
    again = place.together(["evaluate", tmp_path / "pair"])
    assert again["metrics"] == single["metrics"]
    assert again["baselines"] == single["baselines"]


def of_attributes(order):
    """Items made of attributes, which are numbered as they appear: in the order of the items."""
    attributes = AttributeTable.from_lists(
        [["third"] if i % 3 == 0 else ["odd", "even"][i % 2 :] for i in order]
    )
    return dataclasses.replace(
        small_dataset(n_items=len(order)),
        item_ids=[f"i{i}" for i in order],
        attributes=attributes,
        item_vectors=attribute_vectors(attributes),
    )


def test_two_processes_start_from_a_run_whose_attributes_have_another_order(tmp_path):
    """They took the rows of the map in the order of the source, without a word."""
    place = Workplace(tmp_path)
    shutil.rmtree(tmp_path / "data")
    for name, order in (("data", range(39, -1, -1)), ("other", range(40))):
        of_attributes(order).save(tmp_path / name)
    place.alone([*place.train("source", 1), "--data", tmp_path / "other"])
    matched = ["--init-from", tmp_path / "source", "--training.init-items", "match"]
    still = ["--optimizer.learning-rate", "1e-30"]
    single = place.alone([*place.train("single", 1), *matched, *still])
    pair = place.together([*place.train("pair", 1), *matched, *still])
    assert pair["metrics"] == single["metrics"]
    np.testing.assert_array_equal(place.state("pair")[2], place.state("single")[2])


def test_a_process_that_never_joins_is_told_in_words(tmp_path):
    place = Workplace(tmp_path)
    manual = ["--distributed.mode", "manual", "--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    counts = ["--distributed.processes", 2, "--distributed.process", 0, "--distributed.timeout-seconds", 2]
    process = place.start(1, [*place.train("run", 1), *manual, *counts])
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "process 0 of 2 waited 2 s at 127.0.0.1:" in err
    assert "not all processes joined: start every one within that time" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_process_that_fails_alone_takes_the_other_down_soon(tmp_path):
    """It says why; the other waits in a collective, for as long as the first waits for it at its end."""
    place = Workplace(tmp_path)
    joined = ["--mesh.data", 2, "--distributed.mode", "manual", "--distributed.processes", 2]
    joined += ["--distributed.coordinator", f"127.0.0.1:{free_port()}", "--distributed.process"]
    missing = ["--data", tmp_path / "missing"]
    started = time.monotonic()
    processes = [place.start(1, [*place.train("run", 1), *joined, 0])]
    processes.append(place.start(1, [*place.train("run", 1), *missing, *joined, 1]))
    try:
        errors = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode for process in processes)
    assert f"jaxrec: no file '{tmp_path / 'missing'}'" in errors[1]
    assert time.monotonic() - started < SHUTDOWN_SECONDS + 90
