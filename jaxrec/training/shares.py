"""Evaluation in shares: each process ranks the cases of its own part of the log, on its own devices.

The rows of the mesh (its axis ``data``) stand for equal parts of the log, as they do for the shares of training batches.
Processes that hold the same rows, since the axis ``item`` spans them, are one group and rank the same cases together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Int, Integer

from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import JaxrecError, NonFiniteError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.evaluate import (
    Evaluation,
    check_cutoffs,
    evaluation_of,
    rank_cases,
    repeat_counts,
    usable_cases,
)
from jaxrec.evaluation.ranker import Ranker
from jaxrec.training.state import Params

#: States of a process, the first number that it sends to the others.
_DONE, _NON_FINITE, _FAILED = range(3)


class Group(NamedTuple):
    """Processes that rank one part of the cases.

    Attributes:
      owner: lowest process of the group.
      mesh: devices of the group; None for a single device.
      owners: int64[rows], lowest process of the group of each row of the whole mesh.
    """

    owner: int
    mesh: Mesh | None
    owners: np.ndarray


def group_of_process(mesh: Mesh | None) -> Group | None:
    """Return the group of this process on the mesh of a run; None where the processes do not form several groups."""
    if mesh is None or jax.process_count() == 1:
        return None
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    owners = lowest_processes(processes)
    if owners is None:
        return None
    rows = (processes == jax.process_index()).any(axis=1)
    devices = mesh.devices[rows]
    part = Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types) if devices.size > 1 else None
    return Group(int(owners[rows][0]), part, owners)


def lowest_processes(processes: Integer[np.ndarray, "R C"]) -> Int[np.ndarray, " R"] | None:
    """int64[R], the lowest process in each row of a mesh; None for one group, or where groups overlap.

    >>> lowest_processes(np.array([[0, 0], [1, 1]])), lowest_processes(np.array([[0, 1], [2, 3]]))
    (array([0, 1]), array([0, 2]))
    """
    members = [frozenset(row) for row in processes.tolist()]
    if len(set(members)) == 1 or any(one != other and one & other for one in members for other in members):
        return None
    return np.asarray([min(row) for row in members])


def on_group(params: Params, mesh: Mesh | None) -> Params:
    """Parameters that lie on the whole mesh as those of a group, which holds all of them; nothing is copied."""

    def own(x: jax.Array) -> jax.Array:
        parts = [shard.data for shard in x.addressable_shards]
        if mesh is None:
            return parts[0]
        assert isinstance(x.sharding, NamedSharding)
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(mesh, x.sharding.spec), parts, dtype=x.dtype
        )

    return jax.tree.map(own, params)


def evaluate_shares(
    ranker: Callable[[], Ranker],
    cases: EvaluationCases,
    owners: Integer[np.ndarray, " E"],
    owner: int,
    items: Any,
    config: EvaluationConfig,
    *,
    timestamps: Any = None,
    known_items: Bool[np.ndarray, " V1"],
) -> Evaluation:
    """Rank the cases of this process's group and join the ranks of all groups.

    Args:
      ranker: builds the ranker of this process.
      cases: of a split, the same in every process.
      owners: `Group.owner` of each case.
      owner: that of this process.
      items: int32[N], the log, of which only the histories of the own cases are read.
      config: as for `jaxrec.evaluation.evaluate.evaluate_cases`, and so the rest.
      timestamps: see there.
      known_items: see there.

    Raises:
      JaxrecError: as `evaluate_cases`; where one process fails, all do.
    """
    check_cutoffs(config.ks, len(known_items) - 1)
    owners = owners[np.diff(cases.target_offsets) > 0]
    cases, counts = usable_cases(cases, known_items)
    of_target = np.repeat(owners, np.diff(cases.target_offsets))
    message = np.zeros(2 + np.bincount(of_target).max(), np.int32)
    failure: JaxrecError | None = None
    try:
        model, rows = ranker(), np.flatnonzero(owners == owner)
        if len(rows):
            own, message[1] = rank_cases(model, cases.select(rows), items, timestamps, config.remove_seen)
            message[2 : 2 + len(own)] = own
    except JaxrecError as error:
        failure = error
        message[0] = _NON_FINITE if isinstance(error, NonFiniteError) else _FAILED
    # A process that failed sends its state too: the others would wait for it forever.
    messages = np.asarray(multihost_utils.process_allgather(message))
    if failure is not None:
        raise failure
    _check_states(messages[:, 0])
    ranks = np.empty(len(of_target), np.int32)
    for process in np.unique(owners):
        place = of_target == process
        ranks[place] = messages[process, 2 : 2 + place.sum()]
    counts |= repeat_counts(int(messages[np.unique(owners), 1].sum()), config.remove_seen)
    return evaluation_of(ranks, cases, counts, ks=config.ks, remove_seen=config.remove_seen)


def _check_states(states: Int[np.ndarray, " P"]) -> None:
    """Raise where another process failed."""
    failed = np.flatnonzero(states != _DONE)
    if not len(failed):
        return
    kind = NonFiniteError if (states[failed] == _NON_FINITE).all() else JaxrecError
    raise kind(f"process {failed[0]} could not rank its part of the cases: its own message says why")
