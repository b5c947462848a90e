"""The run-time check of shapes accepts what fits and rejects what does not."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxrec.attention.base import allowed_positions
from jaxrec.evaluation.metrics import metric_values
from jaxrec.nn.segments import per_segment
from jaxrec.training.state import initial_params


def test_numpy_passes_where_jax_does():
    segments = np.asarray([[1, 1, 0]], np.int32)
    np.testing.assert_array_equal(
        allowed_positions(segments, query_positions=None), allowed_positions(jnp.asarray(segments))
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: allowed_positions(jnp.ones((3,), jnp.int32)),
        lambda: allowed_positions(jnp.ones((2, 3), jnp.float32)),
        lambda: allowed_positions(jnp.ones((2, 3), jnp.int32), query_positions=jnp.zeros((1, 1), jnp.int32)),
        lambda: per_segment(jnp.ones((2, 3)), jnp.ones((2, 4), jnp.int32)),
        lambda: metric_values(jnp.ones((3,), jnp.int32), "HR@1"),
        lambda: initial_params(None, jnp.zeros((2,), jnp.uint32)),
    ],
    ids=["rank", "type", "union", "two arguments", "kind of array", "other package"],
)
def test_misfits_are_rejected(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
