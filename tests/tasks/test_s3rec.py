"""S3-Rec's pretraining: distributions of all draws, the four objectives against an oracle, and refusals."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.errors import ConfigError, DataError
from jaxrec.models import GRU4RecConfig, STOSAConfig, TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.tasks import Resources, S3RecConfig
from jaxrec.tasks.s3rec import negative_items, segment_views
from jaxrec.training.setup import attribute_rows
from tests.models.cases import random_parameters
from tests.models.oracles import float64
from tests.tasks import oracle
from tests.tasks.data import ATTRIBUTES, A, D, L, V, described_dataset, pretraining, resources, toy_batch

HISTORIES = [[3, 1, 4, 1, 5, 9], [2, 6, 7], [5, 3], [8], [10, 11, 12, 10]]
ROWS = [[0], [1, 2, 3], [4]]
TOKEN = V + 1
N = 4000


def many(function, n=N):
    """What ``function(key)`` gives for many keys."""
    keys = jax.random.split(jax.random.key(11), n)
    return jax.device_get(jax.jit(jax.vmap(function))(keys))


def places():
    """(row, columns, items) of every history of the batch."""
    for row, members in enumerate(ROWS):
        column = 0
        for member in members:
            size = len(HISTORIES[member])
            yield row, slice(column, column + size), HISTORIES[member]
            column += size


def test_last_positions_are_always_masked_and_others_at_the_mask_rate():
    batch = toy_batch(HISTORIES, ROWS)
    masked = many(lambda key: pretraining(mask_rate=0.2).prepare(batch, key, Resources()).masked).mean(axis=0)
    expected = np.zeros(masked.shape)
    for row, columns, _ in places():
        expected[row, columns] = 0.2
        expected[row, columns.stop - 1] = 1.0
    np.testing.assert_allclose(masked, expected, atol=4 * 0.4 / N**0.5)
    assert (masked[expected == 0] == 0).all()


def test_negative_items_are_uniform_among_those_outside_the_sequence():
    batch = toy_batch(HISTORIES, ROWS)
    drawn = many(lambda key: negative_items(batch.items, batch.segments, V, key))
    for row, columns, items in places():
        outside = sorted(set(range(1, V + 1)) - set(items))
        counts = collections.Counter(drawn[:, row, columns].ravel().tolist())
        assert sorted(counts) == outside
        share = np.array([counts[item] for item in outside]) / drawn[:, row, columns].size
        np.testing.assert_allclose(share, 1 / len(outside), atol=0.02)


def segments_of(kind):
    batch = toy_batch(HISTORIES, ROWS)
    views, usable = many(lambda key: segment_views(batch, jnp.int32(TOKEN), kind, key))
    return views, usable


@pytest.mark.parametrize("kind", ["one-history", "across-histories"])
def test_segments(kind):
    """Lengths uniform in 1 .. n // 2, starts uniform; one view hides the segment, the others all else."""
    views, usable = segments_of(kind)
    for row, columns, items in places():
        context, alone, negative = np.moveaxis(views[:, row, :, columns], 1, 0)
        size, last = len(items), columns.stop - 1
        if size < 2:
            assert not usable[:, row, last].any(), "a sequence of one item has no segment"
            continue
        assert not usable[:, row, columns.start : last].any(), (
            "one comparison per sequence, at its last position"
        )
        inside = context == TOKEN
        np.testing.assert_array_equal(np.where(inside, TOKEN, items), context)
        np.testing.assert_array_equal(np.where(inside, items, TOKEN), alone)
        assert (negative[~inside] == TOKEN).all()
        assert (negative[inside] >= 1).all()
        assert (negative[inside] <= V).all()
        drawn = collections.Counter(
            (int(row_inside.sum()), int(row_inside.argmax())) for row_inside in inside
        )
        expected = {
            (length, start): 1 / (size // 2) / (size - length + 1)
            for length in range(1, size // 2 + 1)
            for start in range(size - length + 1)
        }
        assert set(drawn) == set(expected)
        for draw, probability in expected.items():
            assert drawn[draw] / N == pytest.approx(probability, abs=4 * 0.5 / N**0.5)
    assert not views[:, np.asarray(toy_batch(HISTORIES, ROWS).segments)[:, None].repeat(3, 1) == 0].any()


def test_negative_segments_of_one_history_are_another_users():
    """Uniform among the stretches of the right length that belong to one history."""
    views, usable = segments_of("one-history")
    row, columns, _ = next(iter(places()))
    own = usable[:, row, columns.stop - 1]
    assert own.mean() > 0.9, "a draw rarely hits the own user four times"
    for length in (1, 2, 3):
        stretches = collections.Counter()
        for history in HISTORIES[1:]:
            stretches.update(tuple(history[i : i + length]) for i in range(len(history) - length + 1))
        context, negative = views[own][:, row, 0, columns], views[own][:, row, 2, columns]
        chosen = (context == TOKEN).sum(axis=1) == length
        drawn = collections.Counter(tuple(x[x != TOKEN].tolist()) for x in negative[chosen])
        assert set(drawn) == set(stretches)
        total = sum(stretches.values())
        for stretch, count in stretches.items():
            assert drawn[stretch] / chosen.sum() == pytest.approx(count / total, abs=0.06)


def test_negative_segments_across_histories_are_consecutive_in_their_concatenation():
    views, usable = segments_of("across-histories")
    row, columns, _ = next(iter(places()))
    assert usable[:, row, columns.stop - 1].all()
    joined = [item for members in ROWS for member in members for item in HISTORIES[member]]
    pairs = {tuple(joined[i : i + 2]) for i in range(len(joined) - 1)}
    two = (views[:, row, 0, columns] == TOKEN).sum(axis=1) == 2
    drawn = {tuple(x[x != TOKEN].tolist()) for x in views[two][:, row, 2, columns]}
    assert drawn == pairs
    assert (9, 2) in drawn, "two users"


def test_no_other_user_in_the_batch_leaves_segments_out():
    batch = toy_batch(HISTORIES, ROWS, users=[0] * len(HISTORIES))
    _, usable = segment_views(batch, jnp.int32(TOKEN), "one-history", jax.random.key(0))
    assert not usable.any()


FORMS = [
    {},
    {"double_sigmoid": True, "padding_attribute": True, "negative_segments": "across-histories"},
    {"form": "paper"},
]


def generic_parameters(task, batch, seed=5):
    """Generic values for the encoder's parameters and the task's."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    heads = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.5, x.shape), jnp.float32), shapes)
    return {**random_parameters(task.encoder, batch), "task": heads}


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_objectives_equal_the_oracle_in_values_and_gradients(options):
    task, batch = pretraining(**options), toy_batch(HISTORIES, ROWS)
    params = generic_parameters(task, batch)
    views = jax.device_get(task.prepare(batch, jax.random.key(4), resources()))
    assert views.masked.sum() > len(HISTORIES)
    assert views.comparisons.sum() >= 3
    got = jax.device_get(jax.jit(lambda p: task.terms(p, views, jax.random.key(0), resources()))(params))
    attributes = np.asarray(resources().attributes)
    expected = oracle.terms(task, float64(params), views, attributes)
    assert set(got) == set(expected)
    for name in expected:
        assert got[name] == pytest.approx(expected[name], rel=2e-4), name

    def loss(exact):
        sums = oracle.terms(task, exact, views, attributes)
        return 0.2 * sums["aap"] + sums["mip"] + sums["map"] + 0.5 * sums["sp"]

    (total, rows), gradient = jax.jit(
        jax.value_and_grad(lambda p: task.loss(p, views, jax.random.key(0), resources()), has_aux=True)
    )(params)
    assert float(rows) == len(ROWS)
    assert float(total) == pytest.approx(loss(float64(params)), rel=2e-4)
    leaves, tree = jax.tree.flatten(float64(params))
    rng, step = np.random.default_rng(6), 1e-6
    for place, (path, value) in enumerate(jax.tree_util.tree_leaves_with_path(jax.device_get(gradient))):
        direction = rng.normal(size=leaves[place].shape)
        if jax.tree_util.keystr(path) == "['items']['table']":
            direction[0] = 0.0
        moved = [
            loss(
                jax.tree.unflatten(
                    tree, [*leaves[:place], leaves[place] + sign * step * direction, *leaves[place + 1 :]]
                )
            )
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(
            (value * direction).sum(),
            (moved[0] - moved[1]) / (2 * step),
            rtol=3e-3,
            atol=3e-3,
            err_msg=str(path),
        )


def test_packing_and_padding_change_nothing_but_draws():
    """With the same draws, histories packed together have the objectives of histories in rows of their own."""
    task = pretraining()
    packed, alone = toy_batch(HISTORIES, ROWS), toy_batch(HISTORIES)
    params = generic_parameters(task, packed)
    views = jax.device_get(task.prepare(packed, jax.random.key(4), resources()))

    def unpack(values, fill=0):
        out = np.full((len(HISTORIES), *values.shape[1:]), fill, values.dtype)
        for member, (row, columns, items) in enumerate(places()):
            out[member, ..., : len(items)] = values[row, ..., columns]
        return out

    separate = views._replace(
        batch=alone, **{name: unpack(getattr(views, name)) for name in views._fields if name != "batch"}
    )
    first, second = (
        task.terms(params, jax.tree.map(jnp.asarray, v), jax.random.key(0), resources())
        for v in (views, separate)
    )
    for name in first:
        assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4), name


def test_objectives_of_weight_zero_have_no_parameters_and_no_cost():
    task = pretraining(aap_weight=0.0, map_weight=0.0, sp_weight=0.0)
    assert set(task.init(jax.random.key(0))) == {"mip"}
    batch = toy_batch(HISTORIES, ROWS)
    params = generic_parameters(task, batch)
    views = task.prepare(batch, jax.random.key(0), Resources())
    assert set(task.terms(params, views, jax.random.key(0), Resources())) == {"mip"}
    only = pretraining(aap_weight=0.0, mip_weight=0.0, map_weight=0.0)
    assert set(only.init(jax.random.key(0))) == {"sp"}


def test_parameter_count_and_widths():
    size = sum(x.size for x in jax.tree.leaves(pretraining().init(jax.random.key(0))))
    assert size == 4 * (D * D + D) + A * D
    with_padding = pretraining(padding_attribute=True).init(jax.random.key(0))
    assert with_padding["attributes"]["table"].shape == (A + 1, D)
    encoder = STOSAConfig(width=4, attention=ATTENTION["wasserstein"]()).build(
        DataSpec(V, L, n_attributes=A, n_special=1)
    )
    gaussian = S3RecConfig().build(encoder, CrossEntropyConfig())
    assert gaussian.init(jax.random.key(0))["mip"]["kernel"].shape == (8, 8)


def test_attributes_in_rows():
    dataset = dataclasses.replace(described_dataset(n_items=V), attributes=ATTRIBUTES)
    np.testing.assert_array_equal(attribute_rows(dataset), resources().attributes)
    wrong = dataclasses.replace(ATTRIBUTES, values=ATTRIBUTES.values + 1)
    with pytest.raises(DataError, match=r"attribute ids must be 1\.\.5, got 6 for item 'i"):
        attribute_rows(dataclasses.replace(dataset, attributes=wrong))
    with pytest.raises(DataError, match="expected a dataset with attributes, got one without"):
        attribute_rows(dataclasses.replace(dataset, attributes=None))


def built(task=None, width=D, **spec):
    options = {"n_attributes": A, "n_special": 1, **spec}
    n_items, length = options.pop("n_items", V), options.pop("max_length", L)
    encoder = TransformerConfig(width=width).build(DataSpec(n_items, length, **options))
    return S3RecConfig(**(task or {})).build(encoder, CrossEntropyConfig())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: built(n_attributes=0),
            r"--task\.aap-weight and --task\.map-weight need attributes .* set both weights to 0",
        ),
        (lambda: built(max_length=1), r"--batches\.max-length must be at least 2 for segments; got 1"),
        (lambda: built(n_items=6), r"--batches\.max-length must be below the 6 items .* got 6"),
        (
            lambda: S3RecConfig(mask_rate=1.5),
            r"--task\.mask-rate must be a finite number in \[0, 1\]; got 1\.5",
        ),
        (
            lambda: S3RecConfig(aap_weight=0.0, mip_weight=0.0, map_weight=0.0, sp_weight=0.0),
            r"one of --task\.aap-weight, .* must be above 0",
        ),
        (
            lambda: S3RecConfig(form="paper", double_sigmoid=True),
            r"--task\.double-sigmoid belongs to --task\.form code",
        ),
        (
            lambda: S3RecConfig().build(
                GRU4RecConfig(width=4).build(DataSpec(V, L, n_attributes=A)), CrossEntropyConfig()
            ),
            r"--task s3rec-pretraining reads histories in both directions: the encoder 'gru4rec' reads histories forwards",
        ),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
