"""A small input, and compiled calls of one mechanism on it."""

import jax
import jax.numpy as jnp

from jaxrec.attention import AttentionContext, AttentionSpec
from jaxrec.attention.functional import index_from_start
from tests.attention.variants import QUICK

QUICK_JIT = {"compiler_options": QUICK}
SPEC = AttentionSpec(width=8, max_length=6)
SEGMENTS = jnp.asarray([[1, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2], [1, 1, 2, 0, 0, 0]], jnp.int32)
CONTEXT = AttentionContext(index_from_start(SEGMENTS), SEGMENTS)
X = jax.random.normal(jax.random.key(0), (3, 6, 8))


def initialised(config, spec=SPEC):
    module = config.build(spec)
    return module, jax.jit(module.init, **QUICK_JIT)(jax.random.key(1), X, CONTEXT)["params"]


def applied(module, params, x=X, context=CONTEXT, **keywords):
    """One compiled call; without compilation each operation would be compiled alone."""
    call = jax.jit(
        lambda params, x, context: module.apply({"params": params}, x, context, **keywords), **QUICK_JIT
    )
    return call(params, x, context)
