"""Evaluation in shares: a process reads the histories of its own part of the log alone, and all have the ranks of one."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.data.sampler import share_of
from jaxrec.training.setup import prepare
from jaxrec.training.shares import evaluate_shares, group_of_process, lowest_processes, on_group
from jaxrec.training.state import initial_params
from tests.helpers import small_config, small_dataset
from tests.processes import pair_of

PROGRAM = """
import dataclasses
import sys

import jax
import numpy as np

number = int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, number)
from jaxrec.errors import NonFiniteError
from jaxrec.sharding import MeshConfig
from jaxrec.training.setup import prepare
from jaxrec.training.shares import evaluate_shares, group_of_process
from jaxrec.training.state import initial_params
from jaxrec.training.state_sharding import _shardings
from tests.helpers import small_config, small_dataset

config = small_config(batches={"shares": 2}, training={"feed": "streamed"})
dataset = small_dataset()
setup = prepare(dataclasses.replace(config, mesh=MeshConfig(data=2)), dataset)
shardings = _shardings(setup.mesh, setup.sharding.axes.params, 0)
params = jax.jit(lambda: initial_params(setup.task, np.uint32(0)), out_shardings=shardings)()
whole = dataclasses.replace(setup, config=dataclasses.replace(setup.config, batches=small_config().batches))
expected = {part: whole.evaluate(params, setup.split.cases(part)) for part in ("valid", "test")}

# Histories of the other process are erased: 0 is no item, and would be another history with other ranks.
total, fingerprint = setup.split.train_stops[-1], dataset.fingerprint
second = dataset.offsets[np.flatnonzero(dataset.offsets[:-1] * 2 // total >= 1)[0]]
items = np.array(dataset.items)
items[second:] *= number == 1
items[:second] *= number == 0
object.__setattr__(dataset, "items", items)
for part, evaluation in expected.items():
    shared = setup.evaluate(params, setup.split.cases(part))
    np.testing.assert_array_equal(shared.ranks, evaluation.ranks)
    assert shared.metrics == evaluation.metrics and shared.counts == evaluation.counts
    np.testing.assert_array_equal(shared.users, evaluation.users)
assert len(set(evaluation.ranks.tolist())) > 10, "ranks say something"

# Where one process fails, all do.
def ranker():
    if number == 1:
        raise NonFiniteError("the item table is damaged")
    return setup.ranker(params)

cases = setup.split.cases("test")
try:
    owners = np.arange(len(cases)) % 2 * 0 + 1
    evaluate_shares(
        ranker, cases, owners, number, dataset.items, config.evaluation, known_items=setup.split.item_counts > 0
    )
except NonFiniteError as error:
    print("equal;", error)
"""


@pytest.mark.slow
def test_a_process_ranks_its_own_part_and_all_have_all_ranks():
    outputs = [output for _, output in pair_of(PROGRAM, "", 240)]
    assert "equal; process 1 could not rank its part of the cases" in outputs[0], outputs[0]
    assert "equal; the item table is damaged" in outputs[1], outputs[1]


def test_groups_of_processes():
    def owners(*rows):
        lowest = lowest_processes(np.array(rows))
        return None if lowest is None else lowest.tolist()

    assert owners([0, 0], [0, 0], [1, 1], [1, 1]) == [0, 0, 1, 1]
    assert owners([3, 2], [0, 1]) == [2, 0], "an item axis over two processes"
    assert owners([0, 1], [0, 1]) is None, "one group is no group"
    assert owners([0, 1], [1, 2], [3, 3]) is None, "groups overlap"
    assert group_of_process(None) is None


def test_a_process_without_others_has_the_ranks_of_an_ordinary_evaluation():
    config, dataset = small_config(), small_dataset()
    setup = prepare(config, dataset)
    params = jax.jit(lambda: initial_params(setup.task, np.array(0, np.uint32)))()
    cases = setup.split.cases("test")
    expected = setup.evaluate(params, cases)
    shared = evaluate_shares(
        lambda: setup.ranker(on_group(params, None)),
        cases,
        np.zeros(len(cases), int),
        0,
        dataset.items,
        config.evaluation,
        known_items=setup.split.item_counts > 0,
    )
    np.testing.assert_array_equal(shared.ranks, expected.ranks)
    assert shared.metrics == expected.metrics
    assert shared.counts == expected.counts


def test_parameters_of_a_group_are_those_of_the_mesh():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    for spec in (PartitionSpec(), PartitionSpec("data")):
        params = {"w": jax.device_put(np.arange(8.0, dtype=np.float32), NamedSharding(mesh, spec))}
        (found,) = on_group(params, mesh).values()
        np.testing.assert_array_equal(found, params["w"])
        assert found.sharding == params["w"].sharding


def test_parts_of_the_log():
    places = np.array([0, 24, 25, 49, 50, 99, 103])
    assert share_of(places, 100, 4).tolist() == [0, 0, 1, 1, 2, 3, 3], (
        "the last user may begin behind the stop"
    )
    assert share_of(places, 100, 1).tolist() == [0] * 7
    assert share_of(np.array([0]), 0, 2).tolist() == [0]
