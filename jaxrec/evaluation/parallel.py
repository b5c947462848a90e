"""Several batches at once on a CPU, where one batch does not saturate the cores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

from jaxrec.cores import available_cores
from jaxrec.sharding import in_turn

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Batches under way at once, at most.
MOST_WORKERS = 4


def workers(waiting: int = 0) -> int:
    """Number of batches at once: on a CPU one per core that the process may use, and ``waiting`` more.

    An accelerator, and several devices, which must all run the same, get one at a time.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    return min(available_cores() + waiting, MOST_WORKERS)


def waited(result: Result, at_once: int) -> Result:
    """Return the arrays of a batch, waited for if several batches are under way at once, and else as `in_turn` says."""
    return jax.block_until_ready(result) if at_once > 1 else in_turn(result)


def map_batches(function: Callable[[Item], Result], batches: Sequence[Item], at_once: int) -> list[Result]:
    """``function`` of every batch, in order; the first alone, since it compiles the program of all.

    Each thread waits for its batch, since JAX dispatches asynchronously.
    """

    def one(batch: Item) -> Result:
        return waited(function(batch), at_once)

    first = [one(batch) for batch in batches[:1]]
    if at_once == 1:
        return first + [one(batch) for batch in batches[1:]]
    with ThreadPoolExecutor(at_once) as pool:
        return first + list(pool.map(one, batches[1:]))


#: Programs that `map_programs` has run, and so compiled.
_COMPILED: set[Hashable] = set()


def map_programs(
    function: Callable[[Item], Result], batches: Sequence[Item], programs: Sequence[Hashable], at_once: int
) -> list[Result]:
    """``function`` of every batch, in order, where batches belong to several programs.

    Args:
      function: of a batch; waits for its result.
      batches: in the order in which they are begun.
      programs: key of the program of each batch; the first batch of one that is new runs alone, since it compiles it.
      at_once: batches under way at once.
    """
    if at_once == 1:
        return [function(batch) for batch in batches]
    results: dict[int, Result] = {}
    for index, program in enumerate(programs):
        if program not in _COMPILED:
            results[index] = function(batches[index])
            _COMPILED.add(program)
    left = [index for index in range(len(batches)) if index not in results]
    with ThreadPoolExecutor(at_once) as pool:
        results.update(zip(left, pool.map(lambda index: function(batches[index]), left), strict=True))
    return [results[index] for index in range(len(batches))]
