"""Refusals, special cases that must coincide, and initialisation."""

import dataclasses
import itertools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import (
    ATTENTION,
    POSITIONS,
    AttentionContext,
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    UniformAttentionConfig,
    WassersteinAttentionConfig,
)
from jaxrec.attention.functional import index_from_start
from jaxrec.attention.kernelised import (
    kernel_matrices,
    kernelised_attention,
    mix,
    mixing_weights,
)
from jaxrec.attention.miq import QueryWindow, answer_spread, apply_slot_maps, slide_window
from jaxrec.attention.module import Projections
from jaxrec.attention.positions import (
    alibi_slopes,
    interval_bias,
    interval_buckets,
    question_buckets,
    question_times,
)
from jaxrec.errors import ConfigError, DataError, UnknownNameError
from jaxrec.nn.layers import Dense, take_positions
from tests.attention.small import CONTEXT, QUICK_JIT, SEGMENTS, SPEC, X, applied, initialised


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftmaxAttentionConfig(heads=0), r"--encoder\.attention\.heads must be .*at least 1; got 0"),
        (
            lambda: SoftmaxAttentionConfig(heads=3).check(SPEC),
            r"must divide .* 3 heads for width 8; .*\[1, 2, 4, 8\]",
        ),
        (lambda: SoftmaxAttentionConfig(dropout=1.0), r"attention\.dropout must be .* \[0, 1\); got 1\.0"),
        (lambda: SoftmaxAttentionConfig(rows_per_group=-1), r"rows-per-group must be .* got -1"),
        (lambda: MultiItemQueryAttentionConfig(query_window=0), r"query-window must be .* got 0"),
        (
            lambda: MultiItemQueryAttentionConfig(query_window=7).check(SPEC),
            r"window of 7 items for histories of at most 6; shorten the window or lengthen",
        ),
        (
            lambda: MultiItemQueryAttentionConfig(query_window=6, printed_window=True).check(SPEC),
            r"window of 7 items for histories of at most 6",
        ),
        (
            lambda: MultiItemQueryAttentionConfig(query_level="max"),
            r"query-level must be one of mean, .*got 'max'",
        ),
        (
            lambda: MultiItemQueryAttentionConfig(mapping="loop"),
            r"mapping must be one of fused, vmap.*got 'loop'",
        ),
        (lambda: MultiItemQueryAttentionConfig(dummy_scale=0.0), r"dummy-scale must be .* above 0; got 0"),
        (
            lambda: KernelAttentionConfig(upper="dense"),
            r"attention\.upper must be one of identity, .*got 'dense'",
        ),
        (
            lambda: KernelAttentionConfig(lower="dense"),
            r"attention\.lower must be one of identity, .*got 'dense'",
        ),
        (lambda: KernelAttentionConfig(bandwidth=0), r"bandwidth must be .*at least 1; got 0"),
        (
            lambda: RefinedAttentionConfig(variant="best"),
            r"attention\.variant must be one of simple, .*got 'best'",
        ),
        (lambda: RefinedAttentionConfig(variant="stochastic"), r"must be one of simple, .*got 'stochastic'"),
        (
            lambda: RefinedAttentionConfig(source="logits"),
            r"attention\.source must be one of centred, prob, raw",
        ),
        (lambda: RefinedAttentionConfig(depth=0), r"attention\.depth must be .*at least 1; got 0"),
        (lambda: RefinedAttentionConfig(rank=-1), r"attention\.rank must be .*at least 0; got -1"),
        (lambda: RefinedAttentionConfig(rank=7).check(SPEC), r"got rank 7 for histories of at most 6"),
        (lambda: WassersteinAttentionConfig(heads=8).check(SPEC), r"divide half of .* 8 heads for width 8"),
        (
            lambda: WassersteinAttentionConfig().check(dataclasses.replace(SPEC, positions="rotary")),
            r"--encoder\.positions rotary is defined for dot products",
        ),
        (
            lambda: UniformAttentionConfig().check(dataclasses.replace(SPEC, positions="alibi")),
            r"positions alibi acts on attention scores, .* choose 'learned'",
        ),
        (
            lambda: UniformAttentionConfig().check(dataclasses.replace(SPEC, positions="learned-hstu-time")),
            r"positions learned-hstu-time acts on attention scores, .* choose 'learned'",
        ),
        (
            lambda: SoftmaxAttentionConfig(heads=8).check(dataclasses.replace(SPEC, positions="rotary")),
            r"--encoder\.positions rotary needs an even width of each head: got 1 \(width 8, 8 heads\)",
        ),
        (
            lambda: dataclasses.replace(CONTEXT, mask="none"),
            r"mask must be one of causal, bidirectional; got 'none'",
        ),
    ],
)
def test_refusals_name_the_field_and_the_value(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_unknown_names_list_what_exists():
    with pytest.raises(
        UnknownNameError, match=r"unknown attention mechanism 'mic': .*miq.* Did you mean 'miq'"
    ):
        ATTENTION["mic"]
    with pytest.raises(
        UnknownNameError, match=r"unknown position scheme 'rope': expected one of alibi, hstu-time, learned"
    ):
        SoftmaxAttentionConfig().check(dataclasses.replace(SPEC, positions="rope"))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_kernel_with_additive_positions_warns(positions):
    with pytest.warns(
        UserWarning, match=f"additive '{positions}' positions, which its authors found to interfere"
    ):
        KernelAttentionConfig().check(dataclasses.replace(SPEC, positions=positions))


def test_window_longer_than_typical_histories_is_advised_against():
    config = MultiItemQueryAttentionConfig(query_window=5)
    assert config.advice(np.asarray([2, 5, 60])) == SoftmaxAttentionConfig().advice(np.asarray([1])) == []
    (message,) = config.advice(np.asarray([2, 4, 60]))
    assert re.search(r"query-window gives a window of 5 items, .* at most 4: .* history, here 2", message)


def test_timestamps_asked_for_where_there_are_none():
    module = SoftmaxAttentionConfig().build(dataclasses.replace(SPEC, positions="time-interval"))
    with pytest.raises(DataError, match=r"expected Batch\.timestamps int32\[B, L\], got None"):
        jax.eval_shape(module.init, jax.random.key(0), X, CONTEXT)


@pytest.mark.parametrize(
    "config", [KernelAttentionConfig(share_lower=True), MultiItemQueryAttentionConfig(share_dummies=True)]
)
def test_sharing_needs_an_encoder_that_shares(config):
    with pytest.raises(ConfigError, match=r"share-\w+ is on, but the encoder passes no shared parameters"):
        jax.eval_shape(config.build(SPEC).init, jax.random.key(0), X, CONTEXT)


@pytest.mark.parametrize("name", ATTENTION)
def test_configurations_round_trip_through_json_and_cite_their_paper(name):
    config = ATTENTION[name](heads=2, dropout=0.1)
    assert ATTENTION[name](**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert "arXiv" in config.paper
    assert config.default_positions in POSITIONS


def test_miq_with_one_query_and_no_query_level_is_softmax_attention():
    module, params = initialised(MultiItemQueryAttentionConfig(heads=2, query_window=1, query_level="none"))
    window, pair = params["query_window"]["slots"], params["keys_values"]
    kernel = jnp.concatenate([window["kernel"][0], pair["kernel"]], axis=1)
    bias = jnp.concatenate([window["bias"][0], pair["bias"]])
    same = {"projections": {"kernel": kernel, "bias": bias}, "output": params["output"]}
    softmax = SoftmaxAttentionConfig(heads=2).build(SPEC)
    np.testing.assert_allclose(applied(module, params), applied(softmax, same), atol=1e-6)


@pytest.mark.parametrize("structure", ["identity", "toeplitz", "full", "banded"])
@pytest.mark.parametrize("per_head", [False, True])
def test_kernel_starts_as_softmax_attention_without_positions(structure, per_head):
    config = KernelAttentionConfig(heads=2, upper=structure, lower=structure, bandwidth=3, per_head=per_head)
    module, params = initialised(config)
    softmax = SoftmaxAttentionConfig(heads=2).build(SPEC)
    same = {name: params[name] for name in ("projections", "output")}
    np.testing.assert_array_equal(applied(module, params), applied(softmax, same))
    for matrix in kernel_matrices(config, 6, params.get("kernel", {})):
        np.testing.assert_array_equal(matrix, np.broadcast_to(np.eye(6), matrix.shape))


def test_kernel_matrices_are_upper_and_lower_triangular():
    config = KernelAttentionConfig(upper="toeplitz", lower="full")
    kernels = {"upper": np.arange(1.0, 5.0)[None], "lower": np.arange(1.0, 11.0)[None]}
    upper, lower = kernel_matrices(config, 4, kernels)
    np.testing.assert_array_equal(upper[0], [[1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1]])
    np.testing.assert_array_equal(lower[0], [[1, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 0], [7, 8, 9, 10]])


@pytest.mark.parametrize("structure", ["toeplitz", "full", "banded"])
@pytest.mark.parametrize("origin", ["start", "end"])
def test_kernel_matrices_are_those_that_mix(structure, origin):
    """What is drawn is what a history of full length meets, whatever its positions count from."""
    config = KernelAttentionConfig(upper="identity", lower=structure, bandwidth=2)
    size = (1, *config.size(structure, 4))
    kernel = np.random.default_rng(0).normal(size=size).astype(np.float32)
    places = jnp.arange(4, dtype=jnp.int32)[None]
    positions = places if origin == "start" else places[:, ::-1]
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 3))
    allowed = AttentionContext(positions, jnp.ones((1, 4), jnp.int32)).allowed()[:, None]
    mixed = mix(x, mixing_weights(structure, jnp.asarray(kernel), positions), allowed, jnp.float32)
    _, lower = kernel_matrices(config, 4, {"lower": kernel}, origin)
    np.testing.assert_allclose(mixed[0, :, 0], lower[0] @ np.asarray(x[0, :, 0]), atol=1e-6)


def test_query_window_by_vmap_equals_the_batched_product():
    window = QueryWindow(3, SPEC)
    params = jax.jit(window.init, **QUICK_JIT)(jax.random.key(0))["params"]
    assert params["slots"]["kernel"].shape == (3, 8, 8)
    assert (
        len({float(slot.std()) for slot in params["slots"]["kernel"]}) == 3
    )  # each slot is initialised alone
    mapped = nn.vmap(
        Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=2, axis_size=3
    )(8)

    def both(apply):
        return jax.jit(
            jax.value_and_grad(lambda p, x: jnp.sin(apply({"params": p}, x)).sum(), (0, 1)), **QUICK_JIT
        )

    value, (own, by_input) = both(lambda p, x: apply_slot_maps(x, window.apply(p), jnp.float32))(params, X)
    expected, (slots, by_input_expected) = both(mapped.apply)(params["slots"], X)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(by_input, by_input_expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), own["slots"], slots)


def test_window_slides_over_dummies_then_items():
    items = jnp.arange(1.0, 7.0).reshape(1, 6, 1, 1) * jnp.ones((1, 1, 3, 1))
    dummies = jnp.asarray([-1.0, -2.0]).reshape(2, 1, 1) * jnp.ones((1, 3, 1))
    segments = jnp.asarray([[0, 1, 1, 1, 2, 2]], jnp.int32)
    slide = jax.jit(lambda *inputs: slide_window(*inputs[:2], index_from_start(inputs[2])), **QUICK_JIT)
    window = slide(items, dummies, segments)[0, 1:, :, 0]
    np.testing.assert_array_equal(window, [[-1, -2, 2], [-2, 2, 3], [2, 3, 4], [-1, -2, 5], [-2, 5, 6]])


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({}, "none"),
        ({"dummies_as_keys": True, "query_level": "last"}, "rotary"),
        ({"printed_window": True, "heads": 2}, "alibi"),
        ({"query_window": 1, "query_level": "none"}, "none"),
    ],
)
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_mapping_one_query_position_equals_the_fused_attention(options, positions, mask):
    """Values, sown weights and gradients, with dropout of weights."""
    config = MultiItemQueryAttentionConfig(**{"query_window": 3, "dropout": 0.3, **options})
    spec = dataclasses.replace(SPEC, positions=positions)
    fused, params = initialised(config, spec)
    mapped = dataclasses.replace(config, mapping="vmap").build(spec)
    context = dataclasses.replace(CONTEXT, mask=mask)

    def everything(module):
        def loss(params, x, mutable=False):
            keys = {"dropout": jax.random.key(3)}
            out = module.apply({"params": params}, x, context, True, rngs=keys, mutable=mutable)
            return jnp.sin(out if mutable is False else out[0]).sum(), out

        gradients = jax.jit(jax.grad(loss, (0, 1), has_aux=True), **QUICK_JIT)(params, X)
        _, (_, sown) = jax.jit(loss, static_argnums=2, **QUICK_JIT)(params, X, "intermediates")
        return gradients, sown

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        everything(fused),
        everything(mapped),
    )


def test_dummies_start_on_the_scale_of_normalised_states():
    """The queries of dummies are as strong as those of items after a layer norm; ten times weaker if small."""
    wide = dataclasses.replace(SPEC, width=64)
    x = jax.random.normal(jax.random.key(0), (2, 6, 64))
    context = AttentionContext(CONTEXT.positions[:2], CONTEXT.segments[:2])

    def ratio(config):
        params = jax.jit(config.build(wide).init, **QUICK_JIT)(jax.random.key(1), x, context)["params"]
        kernel = np.asarray(params["query_window"]["slots"]["kernel"][0])
        return np.std(np.asarray(params["dummies"]["vectors"]) @ kernel) / np.std(np.asarray(x) @ kernel)

    assert ratio(MultiItemQueryAttentionConfig()) == pytest.approx(1.0, abs=0.2)
    assert ratio(MultiItemQueryAttentionConfig(dummy_scale=0.02)) < 0.05


def test_printed_window_has_one_item_more():
    printed = MultiItemQueryAttentionConfig(query_window=2, printed_window=True)
    _, params = initialised(printed)
    assert params["query_window"]["slots"]["kernel"].shape[0] == 3
    assert params["dummies"]["vectors"].shape[0] == 2
    module = MultiItemQueryAttentionConfig(query_window=3).build(SPEC)
    np.testing.assert_array_equal(applied(module, params), applied(printed.build(SPEC), params))


def test_dummy_share_and_spread_of_the_answers():
    module, params = initialised(MultiItemQueryAttentionConfig(query_window=3))
    _, sown = applied(module, params, mutable=["intermediates"])
    sown = {name: np.asarray(values[0]) for name, values in sown["intermediates"].items()}
    share = np.asarray([2 / 3, 1 / 3, 0, 0, 0, 0])
    np.testing.assert_allclose(sown["dummy_share"][0], share, rtol=1e-6)
    np.testing.assert_allclose(sown["dummy_share"][1, 1:], share[[0, 1, 0, 1, 2]], rtol=1e-6)
    answers = sown["answers"]
    assert answers.shape == (3, 6, 3, 8)
    # At its first time a sequence has one key, and all answers are its value.
    assert sown["answer_spread"][0, 0] < 1e-3 < sown["answer_spread"][0, 1:].min()
    mean = answers.mean(axis=2, keepdims=True)
    expected = np.sqrt(((answers - mean) ** 2).sum((2, 3)) / (answers**2).sum((2, 3)))
    np.testing.assert_allclose(sown["answer_spread"], expected, atol=1e-4)
    opposite = jnp.asarray([[[[1.0, 0.0], [-1.0, 0.0]]]])
    np.testing.assert_allclose(answer_spread(opposite), [[1.0]])


def test_hstu_time_is_the_time_of_the_next_interaction():
    timestamps = jnp.asarray([[0, 10, 100, 7, 1007, 5]], jnp.int32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0]], jnp.int32)
    np.testing.assert_array_equal(question_times(timestamps, segments), [[10, 100, 100, 1007, 1007, 5]])
    seconds = jnp.asarray([0, 1, 2, 60, 86_400, 2**31 - 1], jnp.int32)
    expected = [int(np.log(max(1, s)) / 0.301) for s in np.asarray(seconds, np.int64)]
    np.testing.assert_array_equal(question_buckets(seconds), expected)
    table = jnp.arange(128.0)[None]
    bias = interval_bias("hstu-time", table, timestamps, segments)
    assert bias.shape == (1, 1, 6, 6)
    assert bias[0, 0, 1, 0] == int(np.log(100) / 0.301)  # from key 0 to the interaction after query 1
    assert bias[0, 0, 2, 2] == 0


def test_kernelised_formula_equals_the_module():
    """The definition, with U and L as matrices, against the mixtures of keys and values."""
    config = KernelAttentionConfig(heads=2, upper="toeplitz", lower="full", per_head=True)
    module, params = initialised(config)
    params["kernel"] = jax.tree.map(
        lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params["kernel"]
    )
    context = AttentionContext(jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32))
    x = X[:1]
    q, k, v = Projections(2, SPEC).apply({"params": params["projections"]}, x, None)
    factors = (jnp.asarray(matrix)[None] for matrix in kernel_matrices(config, 6, params["kernel"]))
    out, weights = kernelised_attention(q, k, v, *factors, 0.0, context.allowed()[:, None])
    dense = params["output"]["dense"]
    expected = np.asarray(out).reshape(1, 6, 8) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    hidden, sown = applied(module, params, x, context, mutable=["intermediates"])
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    np.testing.assert_allclose(sown["intermediates"]["attention_weights"][0], weights, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "miq", "awrsr", "kernel", "uniform"])
def test_bidirectional_mask_reads_the_whole_sequence_and_no_other(name):
    module, params = initialised(ATTENTION[name](heads=2))
    both = dataclasses.replace(CONTEXT, mask="bidirectional")
    _, sown = applied(module, params, context=both, mutable=["intermediates"])
    weights = np.asarray(sown["intermediates"]["attention_weights"][0])
    weights = weights.reshape(3, -1, 6, 6)
    same = np.asarray(SEGMENTS)[:, :, None] == np.asarray(SEGMENTS)[:, None]
    allowed = (same & (np.asarray(SEGMENTS) > 0)[:, None]) | np.eye(6, dtype=bool)
    assert not weights[np.broadcast_to(~allowed[:, None], weights.shape)].any()
    assert (weights[np.broadcast_to(allowed[:, None], weights.shape)] > 0).all()
    np.testing.assert_array_equal(both.allowed(), allowed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "knows_the_order"),
    [
        (SoftmaxAttentionConfig(heads=2), False),
        (KernelAttentionConfig(heads=2, lower="identity"), True),
        (KernelAttentionConfig(heads=2, upper="identity", lower="toeplitz"), True),
    ],
    ids=["softmax", "kernel U", "kernel L"],
)
def test_without_positions_the_kernel_alone_knows_the_order(config, knows_the_order):
    """Under the causal mask, too, the newest state of softmax attention is the same for any order of those before it."""
    module, params = initialised(config)
    if knows_the_order:  # the factors start at the identity
        params = {**params, "kernel": jax.tree.map(lambda x: x + 0.3, params["kernel"])}
    shuffled = jnp.concatenate([X[:, [3, 0, 4, 2, 1]], X[:, 5:]], axis=1)
    one = dataclasses.replace(CONTEXT, segments=jnp.ones_like(SEGMENTS))
    states = applied(module, params, X, context=one), applied(module, params, shuffled, context=one)
    change = np.abs(np.asarray(states[0] - states[1])[:, 5]).max()
    assert change > 1e-3 if knows_the_order else change < 1e-5


def test_selected_positions_under_both_masks():
    module, params = initialised(SoftmaxAttentionConfig(heads=2))
    columns = jnp.asarray([[5, 0], [2, 4], [1, 2]], jnp.int32)
    for mask, queries in itertools.product(("causal", "bidirectional"), (None, X[::-1])):
        context = dataclasses.replace(CONTEXT, mask=mask)
        whole, part = jax.jit(
            lambda p, q, c=context: [
                module.apply({"params": p}, X, c, False, q, at) for at in (None, columns)
            ]
        )(params, queries)
        np.testing.assert_allclose(part, jnp.take_along_axis(whole, columns[:, :, None], axis=1), atol=1e-5)


def test_query_weights_come_out_and_sum_to_one():
    module, params = initialised(MultiItemQueryAttentionConfig(query_window=3))
    _, sown = applied(module, params, mutable=["intermediates"])
    weights = sown["intermediates"]["query_weights"][0]
    assert weights.shape == (3, 6, 3)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
    assert sown["intermediates"]["attention_weights"][0].shape == (3, 1, 3, 6, 6)


def test_rows_shorter_than_the_window_or_than_the_maximum_length():
    for config in (
        MultiItemQueryAttentionConfig(query_window=5),
        KernelAttentionConfig(),
        RefinedAttentionConfig(),
    ):
        module, params = initialised(config)
        whole = applied(module, params)
        for length in (1, 2):
            context = AttentionContext(CONTEXT.positions[:1, :length], SEGMENTS[:1, :length])
            part = applied(module, params, X[:1, :length], context)
            np.testing.assert_allclose(part, whole[:1, :length], atol=1e-6)


def test_projections_are_initialised_for_their_own_fan():
    """Fused kernels must not be initialised as if D mapped to 3 D."""
    ones = dataclasses.replace(
        SPEC, width=64, kernel_init=nn.initializers.variance_scaling(1, "fan_avg", "normal")
    )
    x, context = jnp.ones((1, 2, 64)), AttentionContext(*[jnp.ones((1, 2), jnp.int32)] * 2)
    for config in (SoftmaxAttentionConfig(), MultiItemQueryAttentionConfig(query_window=2)):
        params = jax.jit(config.build(ones).init, **QUICK_JIT)(jax.random.key(0), x, context)["params"]
        for name in ("projections", "keys_values", "query_window"):
            if name in params:
                found = params[name].get("slots", params[name])
                assert found["kernel"].std() == pytest.approx(64**-0.5, rel=0.05)


def test_interval_buckets_double():
    seconds = jnp.asarray([0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 2**31 - 1], jnp.int32)
    np.testing.assert_array_equal(interval_buckets(seconds), [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 61])


def test_distances_do_not_depend_on_what_positions_count_from():
    """In place of the columns, the positions give the same distances within a sequence."""
    ends = jnp.asarray([[5, 4, 3, 2, 1, 0], [0, 1, 0, 2, 1, 0], [1, 0, 0, 0, 0, 0]], jnp.int32)
    allowed = CONTEXT.allowed()
    columns = jnp.arange(6)[None, :, None] - jnp.arange(6)[None, None, :]
    real = allowed & (SEGMENTS > 0)[:, :, None]
    starts = CONTEXT.positions
    for distance in (starts[:, :, None] - starts[:, None, :], ends[:, None, :] - ends[:, :, None]):
        np.testing.assert_array_equal(jnp.where(real, distance, 0), jnp.where(real, columns, 0))


def test_slopes_for_eight_heads_are_those_that_the_paper_prints():
    np.testing.assert_allclose(
        alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    )


def test_chosen_columns_are_those_of_each_row():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    positions = np.array([[4, 0], [2, 2]], np.int32)
    expected = np.stack([np.stack([x[b, p] for p in positions[b]]) for b in range(2)])
    np.testing.assert_array_equal(take_positions(x, jnp.asarray(positions)), expected)
