"""Devices that ``jaxrec train`` makes of a CPU: when, how many, and a run that changes between one and two."""

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.cli import devices
from jaxrec.cli.devices import shown_mesh, with_devices
from jaxrec.config import RunConfig
from jaxrec.cores import physical_cores
from jaxrec.data.batches import BatchConfig
from jaxrec.evaluation.parallel import map_batches
from jaxrec.sharding import MeshConfig, in_turn
from jaxrec.training import loop
from tests.runs import jaxrec


@pytest.fixture
def machine(monkeypatch):
    """A machine of two cores whose environment says nothing; devices asked for are listed, not made."""
    shown = []
    monkeypatch.setattr(devices, "physical_cores", lambda: 2)
    monkeypatch.setattr(devices, "_show_devices", lambda count: shown.append(count) or True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    return shown


def config(*mesh, rows=64):
    return dataclasses.replace(RunConfig(), mesh=MeshConfig(*mesh), batches=BatchConfig(batch_size=rows))


@pytest.mark.parametrize(
    ("mesh", "rows", "resume", "shown", "data"),
    [
        ((), 64, False, [], 1),
        ((), 64, True, [], 1),
        ((2,), 64, False, [2], 2),
        ((1, 2), 64, False, [2], 1),
        ((4,), 64, False, [], 4),
        ((4,), 64, True, [4], 4),
        ((0,), 64, False, [2], 2),
        ((0, 2), 64, False, [2], 1),
        ((0,), 33, False, [], 0),
    ],
)
def test_devices_of_a_mesh(machine, mesh, rows, resume, shown, data):
    """As many as the mesh has, but no more than cores, unless a run goes on; 0 is one per core."""
    before = config(*mesh, rows=rows)
    after = with_devices(before, resume)
    assert machine == shown
    assert after.mesh.data == data
    assert dataclasses.replace(after, mesh=before.mesh) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("XLA_FLAGS", "--xla_force_host_platform_device_count=1"), ("JAX_NUM_CPU_DEVICES", "2")],
)
def test_the_environment_has_the_last_word(machine, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert with_devices(config(0), False) == config(0)
    assert machine == []


def test_evaluation_takes_a_device_of_each_core(machine):
    assert shown_mesh(MeshConfig(0)) == MeshConfig(2)
    assert shown_mesh(MeshConfig(1)) == MeshConfig(1)
    assert machine == [2]


def test_other_flags_of_xla_do_not_matter(machine, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_thunk_runtime=true")
    assert with_devices(config(0), False).mesh.data == 2


def test_devices_cannot_be_added_once_jax_has_its_own():
    jax.devices()
    assert not devices._show_devices(3)


def command(*arguments, flags=None):
    """Results of ``jaxrec`` in a process whose environment says nothing of devices, or what ``flags`` say."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {} if flags is None else {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-m", "jaxrec", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(physical_cores() < 2, reason="needs two cores")
def test_a_run_changes_between_one_device_and_two(tmp_path, files):
    """The losses of one device and of two agree up to rounding, and either continues the other's run."""
    options = ["--preset", "smoke", "--batches.batch-size", 32, "--batches.max-length", 16]
    options += ["--evaluation.ks", 5, 10, "--data", files / "log.csv", "--quiet", "--json"]
    losses = []
    for name, meshes in (("one", (1, 2)), ("two", (2, 1))):
        workdir = tmp_path / name
        for mesh, epochs, more in zip(
            meshes, (2, 4), (options, ["--resume", "--quiet", "--json"]), strict=True
        ):
            words = ["train", *more, "--workdir", workdir, "--training.epochs", epochs, "--mesh.data", mesh]
            results = command(*words) if mesh == 2 else jaxrec(*words).json
            assert results["config"]["mesh"] == {"data": mesh, "item": 1}
            assert mesh == 1 or results["hardware"]["devices"] == ["cpu", "cpu"]
        lines = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) >= 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def slowly_summed(mesh):
    """A program of two devices that takes a while and ends with their sum, and its input."""
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    program = jax.jit(
        lambda x: jax.lax.fori_loop(0, 2000, lambda _, y: y @ y / 48, x).sum(), out_shardings=whole
    )
    return program, jax.device_put(np.ones((2, 48, 48), np.float32), split)


def test_programs_of_several_devices_are_waited_for():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    program, x = slowly_summed(mesh)
    assert program(x) == 2 * 48 * 48
    alone = {"a": program(x[:1]), "b": 3}
    assert in_turn(alone) is alone
    assert in_turn(program(x)).is_ready()
    results = map_batches(program, [x] * 3, 1)
    assert all(result.is_ready() for result in results)


def test_chunks_that_are_run_again_are_waited_for(monkeypatch):
    """After a divergence: more in flight stopped each other, and the process aborted without naming the tensor."""
    program, x = slowly_summed(Mesh(np.array(jax.devices()[:2]), ("data",)))
    waited = []

    def chunk(state, inputs, resources):
        waited.append(state.is_ready())
        return program(x), None

    start, feed = SimpleNamespace(state=program(x).block_until_ready(), step=0), SimpleNamespace()
    feed.take = lambda: SimpleNamespace(inputs=None)
    monkeypatch.setattr(loop, "_begin", lambda *_: (start, None))
    monkeypatch.setattr(loop, "_feed", lambda *_: nullcontext(feed))
    setup = SimpleNamespace(schedule=SimpleNamespace(chunk_steps=1), resources=None)
    loop._replayed(setup, None, None, (chunk, ()), 4)
    assert waited == [True] * 4


@pytest.mark.slow
def test_many_batches_of_a_slow_model_are_ranked_on_two_devices(tmp_path):
    """More programs than a CPU's runtime holds: in flight together they stopped each other, and the process aborted."""
    options = ["--preset", "smoke", "--training.epochs", 1, "--mesh.data", 2, "--quiet", "--json"]
    options += ["--encoder.width", 128, "--batches.max-length", 100, "--evaluation.tokens-per-batch", 200]
    flags = "--xla_force_host_platform_device_count=2"
    results = command("train", "--workdir", tmp_path / "run", *options, flags=flags)
    assert results["hardware"]["devices"] == ["cpu", "cpu"]
    assert results["metrics"]["MRR"]["mean"] > 0
    if physical_cores() > 1:
        again = command("evaluate", tmp_path / "run", "--mesh.data", 2, "--json")
        assert again["metrics"] == results["metrics"]
