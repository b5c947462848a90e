"""Two processes with two devices each give the answer of one device."""

from tests.flags import xla_flags
from tests.processes import pair_of

PROGRAM = """
import sys
import jax
import numpy as np

jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
from jaxrec.evaluation.ranking import candidate_table, rank_targets, top_k
from jaxrec.nn.item_table import ItemTable
from tests.evaluation import oracle

rng = np.random.default_rng(0)
hidden, vectors, bias = oracle.whole_numbers(rng, 11, 50, 4)
targets = rng.integers(1, 51, 11).astype(np.int32)
seen = rng.integers(0, 51, (11, 5))
struck = oracle.strike(oracle.score_matrix(hidden, vectors, bias), seen)
assert jax.device_count() == 4 and jax.local_device_count() == 2
for shape in ((2, 2), (1, 4), (4, 1)):
    mesh = jax.make_mesh(shape, ("data", "item"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    table = candidate_table(ItemTable(vectors, bias), item_chunk=7, mesh=mesh)
    np.testing.assert_array_equal(rank_targets(hidden, table, targets, seen), oracle.ranks(struck, targets))
    items = top_k(hidden, table, 9, seen)[1]
    np.testing.assert_array_equal(items, oracle.order(struck)[:, :9])
print("equal")
"""


def test_two_processes_give_the_same_answer():
    for status, output in pair_of(PROGRAM, xla_flags(2), 120):
        assert status == 0, output
        assert "equal" in output
