"""What is particular to SR-GNN: scores in groups of queries, and the rejected mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError
from jaxrec.models import SRGNNConfig, srgnn
from tests.models.cases import CASES, layout


def test_scores_do_not_depend_on_the_groups_of_queries(monkeypatch):
    rng = np.random.default_rng(0)
    last, each = (jnp.asarray(rng.normal(size=(2, n, 3)), jnp.float32) for n in (7, 5))
    query, weights = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((3,), (2, 7, 5)))

    def values_and_gradients():
        def total(*inputs):
            out = srgnn.pairwise_scores(*inputs)
            return (weights * out).sum(), out

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(last, each, query)

    whole = values_and_gradients()
    sums = np.asarray(last)[:, :, None] + np.asarray(each)[:, None]
    expected = (np.asarray(query) / (1 + np.exp(-sums))).sum(-1)
    np.testing.assert_allclose(whole[0][1], expected, rtol=1e-5)
    monkeypatch.setitem(srgnn.PAIR_NUMBERS, "cpu", 2 * each.size)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, values_and_gradients()
    )


def test_bidirectional_mask_is_refused():
    case = next(case for case in CASES if case.name == "srgnn-two-steps")
    encoder = SRGNNConfig(width=4).build(case.spec)
    with pytest.raises(
        ConfigError, match="the encoder 'srgnn' reads prefixes: expected the mask 'causal', got 'bidi"
    ):
        encoder.init(jax.random.key(0), layout(case)[0], mask="bidirectional")
