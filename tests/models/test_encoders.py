"""Every line of the table: values and gradients, causality, padding and packing, selection, precision, a mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS
from jaxrec.optim import is_frozen
from jaxrec.sharding import MeshConfig, build_mesh
from jaxrec.training.state_sharding import on_mesh
from tests.attention.variants import QUICK
from tests.models.cases import (
    CASES,
    SEQUENCES,
    D,
    L,
    V,
    batch_of,
    layout,
    random_parameters,
    sequence,
)
from tests.models.oracles import ORACLES, float64

#: Ends of segments, positions inside them, padding, and one position twice.
QUERIES = np.array([[5, 0], [2, 2], [5, 0], [3, 4], [0, 5], [5, 4], [5, 5], [0, 3]], np.int32)

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@functools.cache
def program(case):
    """The encoder, generic parameters, and what one compiled program says of the batch of the table."""
    encoder = case.config.build(case.spec)
    batch, _ = layout(case)
    params = random_parameters(encoder, batch)
    half = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, dtype="bfloat16"))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def everything(params, batch, queries, cotangent):
        def states(params):
            return encoder.apply({"params": params}, batch, mask=case.mask)

        hidden, pull = jax.vjp(states, params)
        selected = encoder.apply({"params": params}, batch, query_positions=queries, mask=case.mask)
        rounded = half.apply({"params": params}, batch, mask=case.mask)
        return hidden, pull(cotangent)[0], selected, rounded

    rng = np.random.default_rng(2)
    shape = jax.eval_shape(functools.partial(encoder.apply, mask=case.mask), {"params": params}, batch).shape
    cotangent = rng.normal(size=shape).astype(np.float32)
    out = jax.device_get(everything(params, batch, QUERIES, cotangent))
    everything(params, batch._replace(items=batch.items[::-1]), QUERIES, cotangent)
    assert everything._cache_size() == 1, "one compilation serves all batches of a shape"
    return encoder, params, batch, cotangent, out


def oracle_states(case, encoder, params, name):
    return ORACLES[case.encoder](encoder, params, sequence(case, name), case.mask)


@every_case
def test_states_equal_the_oracle_wherever_a_sequence_lies(case):
    """Sequences of 1 item to the maximum: alone, padded on either side, and packed."""
    encoder, params, batch, _, (hidden, _, _, _) = program(case)
    exact = {name: oracle_states(case, encoder, float64(params), name) for name in SEQUENCES}
    for name, row, columns in layout(case)[1]:
        np.testing.assert_allclose(hidden[row, columns], exact[name], rtol=1e-4, atol=2e-5, err_msg=name)
    assert not hidden[batch.segments == 0].any(), "padding has the zero state"
    assert np.abs(exact["long"]).max() > 0.1


@every_case
def test_gradients_equal_differences_of_the_oracle(case):
    """Along one random direction per parameter."""
    encoder, params, _, cotangent, (_, gradient, _, _) = program(case)
    _, where = layout(case)
    exact, step = float64(params), 1e-6
    leaves, tree = jax.tree.flatten(exact)
    rng = np.random.default_rng(3)

    def loss(leaves):
        states = {
            name: oracle_states(case, encoder, jax.tree.unflatten(tree, leaves), name) for name in SEQUENCES
        }
        return sum((cotangent[row, columns] * states[name]).sum() for name, row, columns in where)

    for place, (path, value) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
        if is_frozen([entry.key for entry in path]):
            assert not value.any(), "what the dataset gives is not trained"
            continue
        direction = rng.normal(size=leaves[place].shape)
        if jax.tree_util.keystr(path).endswith("['table']") and "items" in jax.tree_util.keystr(path[:1]):
            direction[0] = 0.0  # the row of padding is not trained
        moved = [
            loss([*leaves[:place], leaves[place] + sign * step * direction, *leaves[place + 1 :]])
            for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(
            (value * direction).sum(), expected, rtol=2e-3, atol=2e-3, err_msg=jax.tree_util.keystr(path)
        )


@every_case
def test_padding_row_of_item_tables_is_untrained(case):
    _, _, _, _, (_, gradient, _, _) = program(case)
    for name, value in gradient.items():
        if name.endswith("items") and "codes" in value:
            assert not value["codes"].any(), "codes are not trained"
            assert value["code_table"].any()
        elif name.endswith("items"):
            assert not value["table"][0].any()
            assert value["table"][1:].any()


@every_case
def test_selected_positions_have_the_states_of_the_whole_batch(case):
    _, _, _, _, (hidden, _, selected, _) = program(case)
    expected = np.take_along_axis(hidden, QUERIES[..., None], axis=1)
    np.testing.assert_allclose(selected, expected, rtol=1e-4, atol=2e-5)


@every_case
def test_bfloat16_is_close_and_keeps_float32_states(case):
    _, _, _, _, (hidden, _, _, rounded) = program(case)
    assert rounded.dtype == np.float32
    assert np.abs(rounded - hidden).max() < 0.06 * max(1.0, np.abs(hidden).max())
    assert not np.array_equal(rounded, hidden)


@every_case
def test_parameter_count_is_the_formula(case):
    encoder, params, *_ = program(case)
    assert sum(x.size for x in jax.tree.leaves(params)) == encoder.parameter_count()


@every_case
def test_states_do_not_depend_on_the_width_of_the_row(case):
    encoder, params, _, _, (hidden, _, _, _) = program(case)
    _, where = layout(case)
    for name in ("single", "middle"):
        items = sequence(case, name)
        narrow = batch_of(case, [[(0, items)]], len(items))
        alone = apply_compiled(encoder, case.mask)(params, narrow)
        row, columns = next((row, columns) for other, row, columns in where if other == name)
        np.testing.assert_allclose(alone[0], hidden[row, columns], rtol=1e-4, atol=2e-5)


@every_case
def test_influence_by_gradients(case):
    """A state depends on the items of its own sequence that it may see, and on nothing else."""
    config, codes = case.config, case.config.item_codes
    if codes.on:  # a row of its own for every item, whose gradient is the item's
        config = dataclasses.replace(config, item_codes=dataclasses.replace(codes, size=4 * L))
    encoder = config.build(dataclasses.replace(case.spec, n_items=4 * L, n_special=0))
    rows = [[(0, 6)], [(0, 3), (4, 2)], [(2, 4)], []]
    content = [[(c, range(1 + r * L + c, 1 + r * L + c + n)) for c, n in row] for r, row in enumerate(rows)]
    batch = batch_of(case, content)
    params = random_parameters(encoder, batch)
    if codes.on:
        own = np.broadcast_to(np.arange(4 * L + 1, dtype=np.float32)[:, None], params["items"]["codes"].shape)
        params["items"]["codes"] = own
    tables = {name: params[name] for name in params if name.endswith("items")}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def jacobian(tables):
        def states(tables):
            return encoder.apply({"params": {**params, **tables}}, batch, mask=case.mask)

        return jax.jacrev(states)(tables)

    gradients = jax.device_get(jacobian(tables))
    if codes.on:
        parts = [np.abs(gradients["items"]["code_table"]).sum(axis=(2, 3, 5))]
    else:
        parts = [np.abs(x).sum(axis=(2, 4))[..., 1:] for x in jax.tree.leaves(gradients)]
    influence = sum(parts).reshape(4, L, 4, L)  # of the item at [r, t, row, column]
    segments = batch.segments
    same = (segments[:, :, None, None] == segments) & (segments > 0)
    same &= np.eye(4, dtype=bool)[:, None, :, None]
    column = np.arange(L)
    later = (column > column[:, None])[None, :, None, :]
    visible = same if case.sees_later_items else same & ~later
    assert not influence[~visible].any()
    pairs = visible & (column == column[:, None] - 1)[None, :, None, :]
    assert (influence[pairs] > 0).all() or case.name == "srgnn-padding-faults"
    if case.sees_later_items:
        assert (influence[same & later] > 0).any()


@pytest.mark.parametrize("case", [c for c in CASES if not c.sees_later_items], ids=str)
def test_later_items_change_no_earlier_state(case):
    """For repeated items, too, whose place in a session graph is not a matter of gradients."""
    encoder, params, _, _, (hidden, _, _, _) = program(case)
    items = sequence(case, "long")
    for t in range(1, L):
        for other in (items[t] % V + 1, items[t - 1]):
            changed = batch_of(
                case, [[(0, [*items[:t], other, *items[t + 1 :]])]] + [[]] * (len(QUERIES) - 1)
            )
            states = apply_compiled(encoder, case.mask)(params, changed)
            np.testing.assert_allclose(states[0, :t], hidden[0, :t], rtol=1e-5, atol=1e-6)


@functools.lru_cache(maxsize=2)
def apply_compiled(encoder, mask):
    return jax.jit(
        lambda params, batch: encoder.apply({"params": params}, batch, mask=mask), compiler_options=QUICK
    )


@every_case
def test_dropout_acts_in_training_only(case):
    encoder, params, batch, *_ = program(case)
    if not encoder.config.dropout:
        encoder = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, dropout=0.3))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def noisy(params, key):
        return encoder.apply({"params": params}, batch, True, mask=case.mask, rngs={"dropout": key})

    first, second = (np.asarray(noisy(params, jax.random.key(k))) for k in (0, 1))
    assert not np.allclose(first, second)
    assert not first[batch.segments == 0].any()
    if encoder.selects_in_training:
        return  # whose states tests/tasks/test_s3rec.py compares
    with pytest.raises(ConfigError, match="query_positions selects positions in evaluation only"):
        encoder.apply({"params": params}, batch, True, QUERIES, mask=case.mask)


@every_case
def test_fresh_parameters_are_finite_with_a_zero_row_of_padding(case):
    encoder, _, batch, *_ = program(case)
    fresh = jax.jit(encoder.init, compiler_options=QUICK)(jax.random.key(3), batch)["params"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fresh))
    tables = [fresh[name] for name in fresh if name.endswith("items")]
    assert all(not np.any(items.get("table", items.get("codes"))[0]) for items in tables)


@every_case
def test_mesh_of_eight_devices_equals_one_device(case):
    """Rows over four devices and item tables over two: the same states and gradients up to rounding."""
    encoder, params, batch, cotangent, (hidden, gradient, _, _) = program(case)
    mesh = build_mesh(MeshConfig(data=4, item=2), len(QUERIES), V)
    sharded = on_mesh(encoder, mesh)
    tables = [name for name in params if name.endswith("items") or name in ("output_table", "item_bias")]

    def each_table(function, tree):
        return {
            name: jax.tree_util.tree_map_with_path(
                lambda path, x: (
                    x if any(whole in str(path) for whole in ("special", "code_table")) else function(x)
                ),
                value,
            )
            if name in tables
            else value
            for name, value in tree.items()
        }

    padded = each_table(
        lambda x: jax.device_put(sharded.shards.pad(x), NamedSharding(mesh, P("item"))), params
    )
    rows = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), batch)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def states_and_gradient(params, batch, cotangent):
        hidden, pull = jax.vjp(lambda p: sharded.apply({"params": p}, batch, mask=case.mask), params)
        return hidden, pull(cotangent)[0]

    states, pulled = jax.device_get(states_and_gradient(padded, rows, cotangent))
    np.testing.assert_allclose(states, hidden, rtol=1e-4, atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        each_table(lambda x: x[: V + 1], pulled),
        gradient,
    )


def test_the_table_covers_every_registered_encoder():
    assert {type(case.config) for case in CASES} == set(ENCODERS.values())
    assert {case.encoder for case in CASES} == set(ORACLES)
    assert D % 2 == 0
