"""MIQ's dummies as tokens of the input, which pass through the layers of an encoder."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import MultiItemQueryAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import TransformerConfig
from jaxrec.models.attentive import tokens_context
from jaxrec.models.blocks import Block
from jaxrec.nn.spec import DataSpec
from tests.attention.small import CONTEXT, QUICK_JIT, SEGMENTS, SPEC, X

SPEC_OF_DATA = DataSpec(9, 6)
MIQ = MultiItemQueryAttentionConfig(query_window=3, dummies_as_keys=True, dummies_as_tokens=True)
ITEMS = jnp.asarray([[1, 2, 3, 4, 5, 6], [0, 7, 8, 1, 2, 3], [4, 5, 6, 0, 0, 0]], jnp.int32)
BATCH = Batch(ITEMS, CONTEXT.positions, SEGMENTS, ITEMS, jnp.ones((3, 6)))


def encoder_of(attention, **options):
    encoder = TransformerConfig(width=8, layers=2, dropout=0.0, attention=attention, **options).build(
        SPEC_OF_DATA
    )
    return encoder, jax.jit(encoder.init, **QUICK_JIT)(jax.random.key(0), BATCH)["params"]


def states(encoder, params):
    return jax.jit(lambda params: encoder.apply({"params": params}, BATCH), **QUICK_JIT)(params)


@pytest.mark.parametrize("block", ["pre-norm", "post-norm", "original"])
def test_equal_to_dummies_of_each_layer_with_the_tokens_states(block):
    """The tokens' states in front of each layer, computed apart, as that layer's own dummies."""
    encoder, params = encoder_of(MIQ, block=block)
    tokens = params["shared_attention"]["vectors"][None]
    shape, config = encoder.attention_spec(), encoder.config
    layer = Block(block, MIQ, shape, 8, config.activation, 0.0, config.norm_epsilon)
    norm = nn.LayerNorm(epsilon=config.norm_epsilon)
    own = {name: value for name, value in params.items() if name != "shared_attention"}

    @functools.partial(jax.jit, **QUICK_JIT)
    def read_and_next(params, tokens):
        read = tokens if block == "post-norm" else norm.apply({"params": params["attention_norm"]}, tokens)
        return read, layer.apply({"params": params}, tokens, tokens_context(tokens), False)

    for name in ("layer_0", "layer_1"):
        read, tokens = read_and_next(params[name], tokens)
        attention = {**params[name]["attention"], "dummies": {"vectors": read[0]}}
        own[name] = {**params[name], "attention": attention}
    each = dataclasses.replace(MIQ, dummies_as_tokens=False)
    reference = encoder.clone(config=dataclasses.replace(config, attention=each))
    np.testing.assert_allclose(states(encoder, params), states(reference, own), atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == encoder.parameter_count()


def test_tokens_of_both_layers_learn():
    encoder, params = encoder_of(MIQ)

    def loss(params):
        return jnp.sin(encoder.apply({"params": params}, BATCH)).sum()

    gradient = jax.jit(jax.grad(loss), **QUICK_JIT)(params)
    assert np.abs(gradient["shared_attention"]["vectors"]).min() > 0


def test_refusals():
    with pytest.raises(ConfigError, match=r"share-dummies and .*dummies-as-tokens exclude each other"):
        dataclasses.replace(MIQ, share_dummies=True).check(SPEC)
    with pytest.raises(ConfigError, match=r"dummies-as-tokens is on, but the encoder passes no tokens"):
        jax.eval_shape(MIQ.build(SPEC).init, jax.random.key(0), X, CONTEXT)
