"""One device and eight agree, with positions sharded, items sharded, and both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import CrossEntropyConfig, LossInputs
from jaxrec.objectives import sampled as sampled_module
from jaxrec.objectives.fused_cross_entropy import catalogue_cross_entropy
from jaxrec.sharding import ItemShards, place
from tests.objectives import table as objectives

N, V, D = 24, 21, 4
ROWS = 24  # V + 1 padded to a multiple of the shards


def problem(scale):
    rng = np.random.default_rng(0)
    hidden = scale * rng.normal(size=(N, D))
    vectors = rng.normal(size=(ROWS, D))
    vectors[V + 1 :] = 9.0  # padding rows must not count
    targets = rng.integers(1, V + 1, N)
    weights = rng.uniform(0.5, 2, N) * (rng.uniform(size=N) < 0.7)
    bias = rng.normal(size=ROWS)
    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, vectors, bias, weights)]
    return arrays[0], arrays[1], arrays[2], jnp.asarray(targets, jnp.int32), arrays[3]


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=["data", "item", "both"])
@pytest.mark.parametrize(
    ("scale", "tile", "smoothing"),
    [(1.0, 0, 0.1), (200.0, 0, 0.0), (1.0, 1, 0.0)],
    ids=["smoothed", "extreme", "two passes"],
)
def test_eight_devices_equal_one(shape, scale, tile, smoothing, monkeypatch):
    if tile:
        monkeypatch.setattr("jaxrec.objectives.fused_cross_entropy.MOST_TILES", 1)
    mesh = jax.make_mesh(shape, ("data", "item"), axis_types=(AxisType.Auto,) * 2)
    hidden, vectors, bias, targets, weights = problem(scale)

    def local(hidden, vectors, bias, targets, weights):
        config = CrossEntropyConfig(token_chunk=2, item_tile=tile, label_smoothing=smoothing)
        inputs = LossInputs(hidden, ItemTable(vectors, bias), targets, weights)
        total, _ = config.sharded_loss(inputs, axis_name="item", n_items=V)
        return jax.lax.psum(total, "data")

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("data"), P("item"), P("item"), P("data"), P("data")),
        out_specs=P(),
    )

    def alone(hidden, vectors, bias, targets, weights):
        table = ItemTable(vectors[: V + 1], bias[: V + 1])
        inputs = LossInputs(hidden, table, targets, weights)
        return CrossEntropyConfig(label_smoothing=smoothing).loss(inputs)[0]

    case = (hidden, vectors, bias, targets, weights)
    got = jax.jit(jax.value_and_grad(sharded, (0, 1, 2, 4)))(*case)
    want = jax.jit(jax.value_and_grad(alone, (0, 1, 2, 4)))(*case)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_gradient_inside_the_shards_equals_one_device():
    mesh = jax.make_mesh((2, 4), ("data", "item"), axis_types=(AxisType.Auto,) * 2)
    hidden, vectors, bias, targets, weights = problem(1.0)

    def local(hidden, vectors, bias, targets, weights):
        def loss(hidden, vectors):
            table = ItemTable(vectors, bias)
            inputs = LossInputs(hidden, table, targets, weights)
            return catalogue_cross_entropy(inputs, axis_name="item", n_items=V)

        return jax.grad(loss, (0, 1))(hidden, vectors)

    got = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P("data"), P("item"), P("item"), P("data"), P("data")),
            out_specs=(P("data"), P("item")),
        )
    )(hidden, vectors, bias, targets, weights)

    def alone(hidden, vectors):
        table = ItemTable(vectors[: V + 1], bias[: V + 1])
        return catalogue_cross_entropy(LossInputs(hidden, table, targets, weights))

    want = jax.grad(alone, (0, 1))(hidden, vectors)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_axis_name_needs_the_number_of_items():
    hidden, vectors, bias, targets, weights = problem(1.0)
    inputs = LossInputs(hidden, ItemTable(vectors, bias), targets, weights)
    with pytest.raises(ValueError, match=r"n_items: expected the number of items .* got None; pass V"):
        catalogue_cross_entropy(inputs, axis_name="item")


@pytest.mark.parametrize(
    ("name", "route"),
    [(name, "all scored") for name in objectives.ALL]
    + [("bce", "gathered"), ("gbce", "gathered, chunks")]
    + [(name, "all scored, chunks") for name in ("bce", "sampled-softmax", "in-batch")],
)
def test_every_objective_on_a_split_table(name, route, monkeypatch, key):
    """Value, weight and gradients of a table whose rows lie on four devices, and positions on two."""
    config = objectives.ALL[name]
    for constant, value in objectives.ROUTES[route].items():
        monkeypatch.setattr(sampled_module, constant, value)
    hidden, vectors, bias, targets, weights = objectives.problem()
    mesh = jax.make_mesh((2, 4), ("data", "item"), axis_types=(AxisType.Auto,) * 2)
    shards = ItemShards(mesh, objectives.V)
    beyond = shards.rows - objectives.V - 1
    assert beyond > 0
    inputs = objectives.inputs()
    targets, weights = jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)

    def evaluate(shards, hidden, vectors, bias):
        def loss(hidden, vectors, bias):
            table = objectives.table_of(config, vectors, bias, shards)
            return config.loss(LossInputs(hidden, table, targets, weights, key, inputs))

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(hidden, vectors, bias)

    arrays = [np.asarray(x, np.float32) for x in (hidden, vectors, bias)]
    (total, weight), gradients = evaluate(None, *arrays)
    # Rows beyond the catalogue must not count, whatever they hold.
    padded = (
        place(arrays[0], mesh, P("data")),
        place(np.pad(arrays[1], ((0, beyond), (0, 0)), constant_values=9.0), mesh, P("item")),
        place(np.pad(arrays[2], (0, beyond), constant_values=9.0), mesh, P("item")),
    )
    (split_total, split_weight), split = evaluate(shards, *padded)
    np.testing.assert_allclose(split_total, total, rtol=2e-6)
    np.testing.assert_allclose(split_weight, weight, rtol=1e-6)
    for a, b in zip(split, gradients, strict=True):
        a = np.asarray(a)
        assert not a[len(b) :].any()
        np.testing.assert_allclose(a[: len(b)], b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_rows_of_a_split_table_are_those_of_the_whole():
    table = np.arange(44, dtype=np.float32).reshape(11, 4)
    mesh = jax.make_mesh((2, 4), ("data", "item"), axis_types=(AxisType.Auto,) * 2)
    shards = ItemShards(mesh, 10)
    split = place(np.pad(table, ((0, 1), (0, 0))), mesh, P("item"))
    for ids in (np.array([[0, 10], [3, 5]]), np.array([7, 1, 2]), np.array(4)):
        np.testing.assert_array_equal(jax.jit(shards.take)(split, ids.astype(np.int32)), table[ids])
    outside = jax.jit(shards.take)(split, np.array([11, -1], np.int32))
    assert np.isnan(np.asarray(outside)).all(), "an id that no item has is no item"
