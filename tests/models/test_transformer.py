"""What is particular to the transformer, and embeddings; `test_encoders` holds what every encoder must do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import PointwiseAttentionConfig, SoftmaxAttentionConfig
from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS, EncoderConfig, TransformerConfig
from jaxrec.nn.embedding import ItemEmbedding, sinusoids
from jaxrec.nn.spec import DataSpec
from tests.models.cases import D, L, V, layout, transformer


def test_layers_of_hstu():
    """Pointwise attention between a norm and the residual is a whole layer: nothing else has parameters."""
    config = TransformerConfig(width=D, layers=2, block="attention-only")
    encoder = dataclasses.replace(config, attention=PointwiseAttentionConfig(heads=2)).build(DataSpec(V, L))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), layout(transformer("hstu"))[0])["params"]
    assert set(shapes) == {"items", "layer_0", "layer_1", "final_norm"}
    assert set(shapes["layer_0"]) == {"attention", "attention_norm"}
    layer = 5 * (D * D + D) + 2 * L + 2 * D
    assert encoder.parameter_count() == (V + 1) * D + 2 * layer + 2 * D
    assert sum(x.size for x in jax.tree.leaves(shapes)) == encoder.parameter_count()


@pytest.mark.slow
def test_positions_of_published_hstu_are_vectors_at_the_input_and_a_bias_of_time():
    """Without the vectors the states are those of "hstu-time", without the bias those of "learned"."""
    spec = DataSpec(V, L, has_timestamps=True)
    batch = layout(transformer("hstu"))[0]
    seconds = np.random.default_rng(0).integers(1, 10**6, batch.items.shape).astype(np.int32)
    batch = batch._replace(timestamps=np.sort(seconds, axis=1))

    def encoder(positions):
        attention = PointwiseAttentionConfig(heads=2)
        config = TransformerConfig(width=D, layers=2, block="attention-only", attention=attention)
        return dataclasses.replace(config, positions=positions, init_scale=1.0).build(spec)

    both = encoder("learned-hstu-time")
    params = jax.tree.map(lambda x: x + 0.5, both.init(jax.random.key(0), batch)["params"])
    assert sum(x.size for x in jax.tree.leaves(params)) == both.parameter_count()
    states = both.apply({"params": params}, batch)

    vectors = {"table": jnp.zeros_like(params["positions"]["table"])}
    timed = {name: value for name, value in params.items() if name != "positions"}
    np.testing.assert_array_equal(
        both.apply({"params": {**params, "positions": vectors}}, batch),
        encoder("hstu-time").apply({"params": timed}, batch),
    )

    def without_bias(values):
        table = values["attention"]["positions"]["table"]
        return {**values, "attention": {**values["attention"], "positions": {"table": 0.0 * table}}}

    layers = {name: without_bias(values) for name, values in params.items() if name.startswith("layer")}
    learned = encoder("learned").apply({"params": params}, batch)
    np.testing.assert_allclose(both.apply({"params": {**params, **layers}}, batch), learned, atol=1e-6)
    assert np.abs(states - learned).max() > 0.01


def test_published_parameter_count():
    """The original on ML-1M with D = 50: items, 200 positions, and two blocks of 3 + 2 square maps with biases."""
    config = TransformerConfig(width=50, block="original")
    encoder = config.build(DataSpec(3416, 200, "end"))
    assert encoder.parameter_count() == 3417 * 50 + 200 * 50 + 2 * (5 * (50 * 50 + 50) + 4 * 50) + 100


def test_popular_item_gradient_is_summed_in_float32():
    """5,000 unit gradients to one row give 5,000 (a bfloat16 gather would stop at 256), in a bfloat16 encoder too."""
    embedding = ItemEmbedding(DataSpec(3, 5), 2, jax.nn.initializers.normal())
    items = jnp.full((5000,), 2, jnp.int32)
    params = embedding.init(jax.random.key(0), items)
    gradient = jax.grad(lambda p: embedding.apply(p, items).astype(jnp.bfloat16).astype(jnp.float32).sum())(
        params
    )
    np.testing.assert_array_equal(gradient["params"]["table"][2], 5000.0)


def test_item_beyond_the_table_is_not_silently_another_item():
    embedding = ItemEmbedding(DataSpec(3, 5), 2, jax.nn.initializers.normal())
    params = embedding.init(jax.random.key(0), jnp.array([1]))
    assert np.isnan(embedding.apply(params, jnp.array([4]))).all()


def test_sinusoids():
    table = np.asarray(sinusoids(5, 6))
    np.testing.assert_allclose(table[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(table[3, 0], np.sin(3.0), rtol=1e-5)
    assert sinusoids(5, 7).shape == (5, 7)


def test_refusals():
    with pytest.raises(
        ConfigError,
        match=r"--encoder\.block must be one of original, post-norm, pre-norm, gated, attention-only; got 'pre'",
    ):
        TransformerConfig(block="pre")
    with pytest.raises(ConfigError, match=r"ffn-width has nothing to act on .* expected 0, got 64"):
        TransformerConfig(block="attention-only", ffn_width=64)
    with pytest.raises(
        ConfigError,
        match=r"--encoder\.activation must be one of relu, gelu, gelu-tanh, silu, identity, swiglu",
    ):
        TransformerConfig(activation="swish")
    with pytest.raises(
        ConfigError, match=r"--encoder\.dropout must be a finite number in \[0, 1\); got 1\.0"
    ):
        TransformerConfig(dropout=1.0)
    with pytest.raises(ConfigError, match=r"heads must divide the encoder's width: got 3 heads for width 4"):
        TransformerConfig(width=4, attention=SoftmaxAttentionConfig(heads=3)).build(DataSpec(V, L))
    with pytest.raises(NotImplementedError, match="EncoderConfig must define build"):
        EncoderConfig().build(DataSpec(V, L))
    assert ENCODERS["sasrec"] is TransformerConfig


def test_refusals_of_padding_as_keys():
    with pytest.raises(ConfigError, match=r"--encoder\.padding-keys must be one of none, zero, propagated"):
        TransformerConfig(padding_keys="all")
    with pytest.raises(
        ConfigError, match=r"padding-keys zero works with attention 'softmax' alone: got Pointw"
    ):
        TransformerConfig(padding_keys="zero", attention=PointwiseAttentionConfig())
    with pytest.raises(ConfigError, match=r"padding-keys zero counts .* got --encoder\.positions rotary"):
        TransformerConfig(padding_keys="zero", positions="rotary")
    encoder = TransformerConfig(width=D, padding_keys="propagated").build(DataSpec(V, L))
    batch = layout(transformer("any"))[0]
    with pytest.raises(ConfigError, match=r"padding-keys propagated needs a task with a causal mask"):
        jax.eval_shape(lambda: encoder.init(jax.random.key(0), batch, mask="bidirectional"))
