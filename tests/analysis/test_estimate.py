"""Estimates against the arrays and programs of real runs, and operations counted by hand."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis.estimate import (
    DataSizes,
    Estimate,
    estimate,
    largest_batch,
    matmul_flops,
    rows_per_epoch,
)
from jaxrec.data.batches import BatchConfig
from jaxrec.data.sampler import Position, RowStream
from jaxrec.errors import ConfigError
from jaxrec.objectives import BinaryCrossEntropyConfig
from jaxrec.tasks import S3RecConfig
from jaxrec.training.feed import ChunkFeed
from jaxrec.training.setup import prepare, schedule_steps
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk
from tests.helpers import small_config, small_dataset
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")

SIZES = DataSizes(items=40, interactions=800, users=60, timestamps=True)


def flops_of(function, *arguments):
    return matmul_flops(jax.jit(function).trace(*arguments).jaxpr.jaxpr)


def test_operations_by_hand():
    a, b, c = jnp.ones((3, 5)), jnp.ones((5, 7)), jnp.ones((2, 3, 5))
    assert flops_of(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7
    assert flops_of(lambda c, b: c @ b, c, b) == 2 * 2 * 3 * 5 * 7
    assert flops_of(lambda c: jnp.einsum("bld,bmd->blm", c, c), c) == 2 * 2 * 3 * 3 * 5
    assert flops_of(lambda a: a * 2 + jnp.exp(a), a) == 0

    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), x, None, length=11)[0]

    assert flops_of(loop, a) == 11 * 2 * 3 * 5 * 5
    assert flops_of(jax.checkpoint(lambda a, b: a @ b), a, b) == 2 * 3 * 5 * 7
    assert flops_of(jax.vmap(lambda row: row @ b), a) == 2 * 3 * 5 * 7
    branch = flops_of(lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 7))), a, b)
    assert branch == 2 * 3 * 5 * 7


@pytest.mark.parametrize("feed", ["resident", "streamed"])
def test_memory_is_that_of_the_program_that_training_compiles(feed):
    config = small_config(training={"seeds": (0, 1), "feed": feed})
    dataset = small_dataset()
    setup = prepare(config, dataset)
    sizes = DataSizes(dataset.n_items, dataset.n_interactions, dataset.n_users, timestamps=True)
    got = estimate(config, sizes, rate=1e9)
    seeds = np.arange(2, dtype=np.uint32)
    state = jax.jit(jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)))(seeds)
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert got.parameter_bytes == got.best_bytes == params
    assert got.parameter_bytes + got.optimizer_bytes == whole
    assert got.parameters == setup.encoder.parameter_count()
    assert got.log_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(setup.resources))
    steps = setup.schedule.chunk_steps
    with ChunkFeed(setup.streams, [Position()] * 2, config.batches, steps, 2, setup.host_log) as chunks:
        present, ahead = chunks.take(), chunks.take()
        one = sum(leaf.nbytes for leaf in jax.tree.leaves((present.inputs, ahead.inputs))) / 2
    own = schedule_steps(config, rows_per_epoch(config.batches, sizes)).chunk_steps
    assert got.input_bytes == 2 * one / steps * own
    if feed == "resident":
        rows, _ = setup.streams[0].take(Position(), 4 * 7)
        plan = jax.tree.map(lambda x: np.stack([x, x]).reshape(2, 7, 4, -1).astype(np.int32), rows)
        chunk = make_train_chunk(setup.task, setup.optimizer, config.batches)
        temporary = chunk.lower(state, plan, setup.resources).compile().memory_analysis().temp_size_in_bytes
        assert got.temporary_bytes == pytest.approx(temporary, rel=0.05)
    assert got.matmul_flops > 0
    assert got.least_step_seconds == got.matmul_flops / 1e9
    assert got.total_bytes > got.temporary_bytes > 0


def test_a_log_that_training_would_stream_or_refuse():
    """What int32 cannot index is streamed whatever its share of the device; a sampler of seen items cannot be."""
    many = DataSizes(items=40, interactions=2**31, users=60)
    streamed = estimate(small_config(training={"resident_share": 1.0}), many, rate=1e9, optimised=False)
    assert streamed.log_bytes == 4 * 41
    objective = BinaryCrossEntropyConfig(exclude_seen=True)
    refused = dataclasses.replace(small_config(training={"feed": "streamed"}), objective=objective)
    with pytest.raises(ConfigError, match=r"--objective\.exclude-seen.*cannot be streamed"):
        estimate(refused, SIZES, rate=1e9)


def test_operations_grow_with_the_batch():
    small, large = (estimate(small_config(batches={"batch_size": b}), SIZES, rate=1e9) for b in (4, 8))
    assert large.matmul_flops == pytest.approx(2 * small.matmul_flops, rel=0.02)
    assert large.temporary_bytes > small.temporary_bytes
    assert large.parameter_bytes == small.parameter_bytes


@pytest.mark.parametrize("interactions", [6, 31])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"long_histories": "windows"},
        {"mode": "padded"},
        {"mode": "padded", "long_histories": "windows"},
        {"mode": "prefix"},
        {"mode": "prefix", "prefixes_per_sequence": 4},
    ],
)
def test_rows_of_an_epoch(options, interactions):
    config = BatchConfig(max_length=20, **options)
    stops = np.arange(1, 301) * interactions
    rows = RowStream(stops - interactions, stops, config, seed=0).rows_per_epoch
    sizes = DataSizes(items=40, interactions=300 * interactions, users=300)
    assert rows_per_epoch(config, sizes) == pytest.approx(rows, rel=0.12)
    assert rows_per_epoch(config, DataSizes(items=40, interactions=300 * 21)) >= 300


def test_the_largest_batch_fits_and_a_larger_one_does_not():
    config = small_config()
    budget = estimate(config.updated({"batches.batch_size": 40}), SIZES, rate=1e9).total_bytes
    best, too_large = largest_batch(config, SIZES, budget)
    assert best.total_bytes <= budget
    assert 34 <= best.batch_size < too_large <= 48
    assert estimate(config.updated({"batches.batch_size": too_large}), SIZES, rate=1e9).total_bytes > budget
    with pytest.raises(ConfigError, match=r"--memory: .* GiB are too few for a batch of 1 rows"):
        largest_batch(config, SIZES, 1000)


def test_batches_that_are_tried_split_into_shares_and_parts(monkeypatch):
    tried = []

    def sizes(config, *_, **__):
        size = config.batches.batch_size
        tried.append(size)
        return Estimate(size, 1, 1, 0, 0, 0, 0, 0, 1000 * size, 1.0, 1.0, 1.0, 0.0, "none", None)

    monkeypatch.setattr("jaxrec.analysis.estimate.estimate", sizes)
    config = small_config().updated(
        {"batches.shares": 4, "batches.batch_size": 36, "training.accumulate_steps": 3}
    )
    best, too_large = largest_batch(config, SIZES, 1000 * 1001)
    assert best.batch_size <= 1001 < too_large
    best, too_large = largest_batch(config, SIZES, 10**12, most=1000)
    assert (best.batch_size, too_large) == (996, None)
    assert {size % 12 for size in tried} == {0}


def test_as_a_command(tmp_path):
    options = ["--preset", "smoke", "--batches.batch-size", 4, "--batches.max-length", 16]
    sizes = ["--items", 40, "--interactions", 800, "--users", 60]
    result = jaxrec("estimate", *options, *sizes, "--seeds", 2, "--json").json
    assert (result["seeds"], result["batch_size"]) == (2, 4)
    assert result["total_bytes"] > result["temporary_bytes"] > 0
    shown = jaxrec("estimate", *options, *sizes).out
    assert "| total of these arrays" in shown
    assert "On top come the process itself" in shown
    held = int(re.search(r"took ([\d,]+) MiB of the host's memory", shown)[1].replace(",", ""))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert 50 < held <= int(peak[1]) / 1024 + 1
    assert "This is rough" in shown
    small_dataset().save(tmp_path / "log")
    data = jaxrec("estimate", *options, "--data", tmp_path / "log", "--memory", 0.01, "--json").json
    assert data["total_bytes"] <= 0.01 * 2**30
    assert data["batch_size"] > 4
    timed = ["--objective", "bce", "--attention", "hstu", "--encoder.positions", "learned-hstu-time"]
    assert jaxrec("estimate", *timed, *options, *sizes, "--json").json["parameters"] > 0
    missing = jaxrec("estimate", *options)
    assert missing.status == 1
    assert "--items, --interactions: expected the sizes of the log, or --data" in missing.err
    none = jaxrec("estimate", *options, *sizes, "--attributes", 3, "--attributes-per-item", 0)
    assert "--attributes-per-item: expected a number of at least 1, got 0" in none.err
    idle = jaxrec("estimate", *options, *sizes, "--attributes-per-item", 3)
    assert "--attributes-per-item: expected --attributes beside it" in idle.err
    both = jaxrec("estimate", *options, "--data", tmp_path / "log", *sizes)
    assert "--items, --interactions, --users: expected no sizes beside --data" in both.err
    for mesh in (("--mesh.item", 2), ("--mesh.data", 0)):
        refused = jaxrec("estimate", *options, *sizes, *mesh)
        assert "--mesh.data, --mesh.item: estimates are for one device" in refused.err


@pytest.mark.slow
def test_pretraining_counts_the_attributes_of_items():
    config = small_config(batches={"mode": "prefix"}).updated({"task": S3RecConfig()})
    few, many = (
        estimate(config, dataclasses.replace(SIZES, attributes=6, attributes_per_item=m), rate=1e9)
        for m in (1, 1000)
    )
    assert many.total_bytes - few.total_bytes >= 4 * 999 * (SIZES.items + 1)
    line = ("estimate", "--preset", "s3rec-pretrain", "--items", 60, "--interactions", 800, "--attributes", 6)
    parameters = [jaxrec(*line[:-1], count, "--json").json["parameters"] for count in (6, 16)]
    assert parameters[1] - parameters[0] == 10 * 64, "a vector of the preset's width for each attribute"
