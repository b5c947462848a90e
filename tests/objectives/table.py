"""Table of all objectives that drives their tests, and the evaluation of one of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.nn.item_table import EuclideanItemTable, ItemTable
from jaxrec.objectives import (
    BinaryCrossEntropyConfig,
    BPRConfig,
    BPRMaxConfig,
    BPRPositiveVersusNegativeConfig,
    CrossEntropyConfig,
    GeneralizedBinaryCrossEntropyConfig,
    InBatchConfig,
    LossInputs,
    SampledSoftmaxConfig,
    SamplingInputs,
    ScalableCrossEntropyConfig,
    TOP1MaxConfig,
)
from tests.objectives import oracles

N, V, D = 6, 9, 3

# Objectives with sampled negatives: configuration and the oracle of one position.
SAMPLED = {
    "bce": (BinaryCrossEntropyConfig(n_negatives=3), oracles.bce),
    "gbce": (GeneralizedBinaryCrossEntropyConfig(n_negatives=4, calibration=0.75), oracles.gbce(0.75, 4)),
    "bpr": (BPRConfig(n_negatives=2, sampler="popularity", shared=True), oracles.bpr),
    "bpr-max": (BPRMaxConfig(n_negatives=4, regularisation=0.5), oracles.bpr_max(0.5)),
    "top1-max": (TOP1MaxConfig(n_negatives=4, sampler="mixed"), oracles.top1_max),
    "sampled-softmax": (SampledSoftmaxConfig(n_negatives=5, sampler="popularity"), oracles.sampled_softmax),
    "sampled-softmax, own": (
        SampledSoftmaxConfig(n_negatives=5, sampler="uniform", shared=False),
        oracles.sampled_softmax,
    ),
    "sampled-softmax, seen": (
        SampledSoftmaxConfig(n_negatives=5, sampler="uniform", exclude_seen=True, temperature=0.5),
        oracles.sampled_softmax,
    ),
}
PVN = {
    "bpr-pvn": BPRPositiveVersusNegativeConfig(n_negatives=2, pvn_weight=0.7),
    "bpr-pvn, shared": BPRPositiveVersusNegativeConfig(n_negatives=4, pvn_weight=0.2, shared=True),
}
ALL = (
    {name: config for name, (config, _) in SAMPLED.items()}
    | PVN
    | {
        "cross-entropy": CrossEntropyConfig(),
        "in-batch": InBatchConfig(),
        "in-batch, plain": InBatchConfig(log_q=False, temperature=0.5),
        "scalable-cross-entropy": ScalableCrossEntropyConfig(n_buckets=3, bucket_positions=3, bucket_items=4),
        "hard bce": BinaryCrossEntropyConfig(n_negatives=2, sampler="hard"),
    }
)


def problem(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    hidden = scale * rng.normal(size=(N, D))
    vectors, bias = rng.normal(size=(V + 1, D)), rng.normal(size=V + 1)
    targets = np.array([1, 4, 4, 9, 0, 2])
    weights = np.array([1.0, 0.5, 2.0, 1.0, 1.0, 0.0])
    return hidden, vectors, bias, targets, weights


def table_of(config, vectors, bias, shards=None):
    """The kind of item table that a loss is defined for."""
    kind = EuclideanItemTable if isinstance(config, BPRPositiveVersusNegativeConfig) else ItemTable
    return kind(vectors, bias, shards)


def inputs():
    return SamplingInputs(
        item_counts=jnp.asarray([0, 5, 1, 2, 9, 3, 1, 4, 2, 7], jnp.float32),
        users=jnp.asarray([0, 1, 1, 0, -1, -1], jnp.int32),
        seen_items=jnp.asarray([1, 3, 4, 2, 8, 9], jnp.int32),
        seen_offsets=jnp.asarray([0, 3, 6], jnp.int32),
    )


@partial(jax.jit, static_argnums=0)
def compiled(config, hidden, vectors, bias, *rest):
    def loss(hidden, vectors, bias):
        return config.build()(LossInputs(hidden, table_of(config, vectors, bias), *rest))

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(hidden, vectors, bias)


def evaluate(config, hidden, vectors, bias, targets, weights, key):
    """(sum, weight sum, gradients); compiled once for each configuration, over all tests."""
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, vectors, bias)]
    rest = (jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32), key, inputs())
    (total, weight), gradients = compiled(config, *arrays, *rest)
    return total, weight, gradients


# Constants of `jaxrec.objectives.sampled` that choose how the same is computed.
ROUTES = {
    "gathered": {"ITEMS_PER_GATHERED_ROW": 0},
    "gathered, chunks": {"ITEMS_PER_GATHERED_ROW": 0, "CHUNK_BYTES": 200},
    "all scored": {},
    "all scored, chunks": {"CACHED_BYTES": 80},
}
