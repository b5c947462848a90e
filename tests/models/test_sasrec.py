import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import PointwiseAttentionConfig, SoftmaxAttentionConfig
from jaxrec.data.batches import Batch, gather_batch
from jaxrec.data.packing import Sequences, pack, pad
from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS, EncoderConfig, TransformerConfig
from jaxrec.nn.embedding import ItemEmbedding, sinusoids
from jaxrec.nn.spec import DataSpec
from tests.models import oracle

V, L, D = 11, 8, 4
LOG = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], np.int32)
SEQUENCES = Sequences(np.array([0, 5, 8]), np.array([5, 3, 6], np.int32), np.array([0, 1, 2], np.int32))
ARRANGEMENTS = [
    {"block": "original", "activation": "relu", "scale_embeddings": True, "init": "xavier"},
    {"block": "post-norm", "ffn_width": 12, "activation": "gelu", "embedding_norm": True},
    {
        "block": "pre-norm",
        "activation": "silu",
        "positions": "sinusoidal",
        "item_bias": True,
        "separate_output": True,
    },
    {"block": "pre-norm", "layers": 1, "positions": "none", "remat": True},
    {"block": "gated", "ffn_width": 6},
    {"block": "attention-only", "embedding_norm": True},
]


def build(heads=1, origin="start", **options):
    config = TransformerConfig(width=D, **{"layers": 2, "dropout": 0.3, "init_scale": 0.5, **options})
    encoder = dataclasses.replace(config, attention=SoftmaxAttentionConfig(heads=heads)).build(
        DataSpec(V, L, origin)
    )
    batch = batch_of(pad(SEQUENCES))
    params = encoder.init(jax.random.key(0), batch, False)["params"]
    # Biases and norms start at zero and one, where mistakes hide.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    return encoder, params


def batch_of(rows, **options):
    return gather_batch(rows, LOG, max_length=options.pop("max_length", L), **options)


def states_by_sequence(encoder, params, batch):
    """Hidden states of each sequence of a batch, keyed by its items."""
    hidden = np.asarray(jax.jit(lambda p, b: encoder.apply({"params": p}, b, False))(params, batch))
    out = {}
    for r in range(batch.items.shape[0]):
        for s in range(1, batch.segments[r].max() + 1):
            inside = batch.segments[r] == s
            out[tuple(batch.items[r][inside].tolist())] = hidden[r][inside]
    return out


@pytest.mark.parametrize("options", ARRANGEMENTS, ids=lambda o: o["block"])
@pytest.mark.parametrize("heads", [1, 2])
def test_equal_to_loops(options, heads):
    encoder, params = build(heads=heads, **options)
    states = states_by_sequence(encoder, params, batch_of(pad(SEQUENCES)))
    for items, hidden in states.items():
        np.testing.assert_allclose(hidden, oracle.sasrec(encoder, params, items), atol=2e-5)


@pytest.mark.parametrize("options", ARRANGEMENTS, ids=lambda o: o["block"])
@pytest.mark.parametrize("origin", ["start", "end"])
def test_same_states_alone_padded_left_and_right_and_packed(options, origin):
    encoder, params = build(origin=origin, **options)
    right = states_by_sequence(encoder, params, batch_of(pad(SEQUENCES), position_origin=origin))
    left = states_by_sequence(
        encoder, params, batch_of(pad(SEQUENCES), position_origin=origin, pad_left=True)
    )
    packed = states_by_sequence(encoder, params, batch_of(pack(SEQUENCES, L), position_origin=origin))
    assert batch_of(pack(SEQUENCES, L)).segments.max() == 2
    for start, n, items in zip(SEQUENCES.starts, SEQUENCES.lengths, right, strict=True):
        alone = batch_of(
            pad(Sequences(*(np.array([x]) for x in (start, n, 0)))), position_origin=origin, max_length=int(n)
        )
        expected = states_by_sequence(encoder, params, alone)[items]
        for states in (right, left, packed):
            np.testing.assert_allclose(states[items], expected, atol=1e-5)


@pytest.mark.parametrize("options", ARRANGEMENTS, ids=lambda o: o["block"])
def test_causal_and_deaf_to_strangers(options):
    """The state at t depends on no later input and on no other sequence, and on some earlier one."""
    encoder, params = build(**options)
    batch = batch_of(pack(SEQUENCES, L))
    shape = (*batch.items.shape, D)

    def with_noise(noise):
        # Each item id is made unique, so that noise on its row is noise on its position.
        flat = jnp.arange(batch.items.size, dtype=jnp.int32).reshape(batch.items.shape) + 1
        table = jnp.concatenate(
            [jnp.zeros((1, D)), params["items"]["table"][batch.items.reshape(-1)] + noise.reshape(-1, D)]
        )
        big = dataclasses.replace(encoder.config, separate_output=False, item_bias=False)
        wide = dataclasses.replace(big, attention=encoder.attention).build(
            dataclasses.replace(encoder.spec, n_items=int(batch.items.size))
        )
        inner = {k: v for k, v in params.items() if k not in ("output_table", "item_bias")}
        real = jnp.where(batch.segments > 0, flat, 0)
        return wide.apply({"params": {**inner, "items": {"table": table}}}, batch._replace(items=real), False)

    jacobian = np.asarray(jax.jit(jax.jacrev(with_noise))(jnp.zeros(shape)))
    influence = np.abs(jacobian).sum(axis=(2, 5))
    for r, t in np.ndindex(*batch.items.shape):
        if batch.segments[r, t] == 0:
            continue
        for r2, j in np.ndindex(*batch.items.shape):
            related = r == r2 and batch.segments[r, t] == batch.segments[r2, j] and j <= t
            if not related:
                assert influence[r, t, r2, j] == 0.0
        earlier = (batch.segments[r, :t] == batch.segments[r, t]).any()
        if earlier:
            assert influence[r, t, r, t - 1] > 0


@pytest.mark.parametrize(
    ("options", "heads"),
    list(itertools.product(ARRANGEMENTS, [1, 2])),
    ids=lambda o: o["block"] if isinstance(o, dict) else str(o),
)
def test_parameter_count_is_the_formula(options, heads):
    encoder, params = build(heads=heads, **options)
    assert sum(x.size for x in jax.tree.leaves(params)) == encoder.parameter_count()


def test_layers_of_hstu():
    """Pointwise attention between a norm and the residual is a whole layer: nothing else has parameters."""
    config = TransformerConfig(width=D, layers=2, block="attention-only")
    encoder = dataclasses.replace(config, attention=PointwiseAttentionConfig(heads=2)).build(DataSpec(V, L))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), batch_of(pad(SEQUENCES)))["params"]
    assert set(shapes) == {"items", "layer_0", "layer_1", "final_norm"}
    assert set(shapes["layer_0"]) == {"attention", "attention_norm"}
    layer = 5 * (D * D + D) + 2 * L + 2 * D
    assert encoder.parameter_count() == (V + 1) * D + 2 * layer + 2 * D
    assert sum(x.size for x in jax.tree.leaves(shapes)) == encoder.parameter_count()


def test_published_parameter_count():
    """The original on ML-1M with D = 50: items, 200 positions, and two blocks of 3 + 2 square maps with biases."""
    config = TransformerConfig(width=50, block="original")
    encoder = config.build(DataSpec(3416, 200, "end"))
    assert encoder.parameter_count() == 3417 * 50 + 200 * 50 + 2 * (5 * (50 * 50 + 50) + 4 * 50) + 100


def test_dropout_acts_in_training_only():
    encoder, params = build()
    batch = batch_of(pad(SEQUENCES))
    still = [encoder.apply({"params": params}, batch, False) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    noisy = [
        encoder.apply({"params": params}, batch, True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1)
    ]
    assert not np.allclose(*noisy)


def test_padding_row_stays_zero_and_untrained():
    encoder, params = build()
    fresh = encoder.init(jax.random.key(3), batch_of(pad(SEQUENCES)), False)["params"]
    assert not np.asarray(fresh["items"]["table"][0]).any()
    gradient = jax.grad(lambda p: encoder.apply({"params": p}, batch_of(pad(SEQUENCES)), False).sum())(params)
    assert not np.asarray(gradient["items"]["table"][0]).any()


def test_hidden_states_of_padding_are_zero():
    for options in ARRANGEMENTS:
        encoder, params = build(**options)
        batch = batch_of(pad(SEQUENCES), pad_left=True)
        hidden = np.asarray(encoder.apply({"params": params}, batch, False))
        assert not hidden[batch.segments == 0].any()


def test_bfloat16_is_close_and_keeps_float32_states():
    encoder, params = build()
    half = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, dtype="bfloat16"))
    batch = batch_of(pad(SEQUENCES))
    exact, rounded = (e.apply({"params": params}, batch, False) for e in (encoder, half))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    assert not np.array_equal(rounded, exact)


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


def test_single_position_and_empty_rows():
    encoder, params = build()
    empty = Batch(*(np.zeros((2, L), np.int32) for _ in range(4)), np.zeros((2, L), np.float32))
    assert not np.asarray(encoder.apply({"params": params}, empty, False)).any()
    one = Batch(
        np.array([[3]], np.int32),
        np.zeros((1, 1), np.int32),
        np.ones((1, 1), np.int32),
        np.zeros((1, 1), np.int32),
        np.ones((1, 1), np.float32),
    )
    assert np.isfinite(encoder.apply({"params": params}, one, False)).all()


def test_refusals():
    with pytest.raises(
        ConfigError,
        match=r"--encoder\.block must be one of original, post-norm, pre-norm, gated, attention-only; got 'pre'",
    ):
        TransformerConfig(block="pre")
    with pytest.raises(ConfigError, match=r"ffn-width has nothing to act on .* expected 0, got 64"):
        TransformerConfig(block="attention-only", ffn_width=64)
    with pytest.raises(
        ConfigError, match=r"--encoder\.activation must be one of relu, gelu, gelu-tanh, silu"
    ):
        TransformerConfig(activation="swish")
    with pytest.raises(
        ConfigError, match=r"--encoder\.dropout must be a finite number in \[0, 1\); got 1\.0"
    ):
        TransformerConfig(dropout=1.0)
    with pytest.raises(ConfigError, match=r"heads must divide the encoder's width: got 3 heads for width 4"):
        build(heads=3)
    with pytest.raises(NotImplementedError, match="EncoderConfig must define build"):
        EncoderConfig().build(DataSpec(V, L))
    assert ENCODERS["sasrec"] is TransformerConfig
