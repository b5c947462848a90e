"""A small input, and compiled calls of one mechanism on it."""

import functools

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


@functools.lru_cache(maxsize=32)
def program(module, mutable):
    def call(params, x, context):
        return module.apply({"params": params}, x, context, mutable=list(mutable) or False)

    return jax.jit(call, **QUICK_JIT)


def applied(module, params, x=X, context=CONTEXT, mutable=()):
    """One compiled call; without compilation each operation would be compiled alone."""
    return program(module, tuple(mutable))(params, x, context)
