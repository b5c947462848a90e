"""Exposure to own predictions in training: the loss against an oracle, which inputs are replaced, and by what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError
from jaxrec.models import TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.tasks import NextItem, NextItemConfig, Resources
from jaxrec.tasks.next_item import shift_positions
from jaxrec.training.state import TrainState
from jaxrec.training.step import gradients_of
from tests.models.cases import random_parameters
from tests.models.oracles import float64, transformer
from tests.tasks.data import D, L, V, toy_batch, toy_encoder

HISTORIES = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5], [8]]
ROWS = [[0], [1, 2], [3]]


def task(temperature=1.0, **options):
    return NextItemConfig(**options).build(toy_encoder(), CrossEntropyConfig(temperature=temperature))


def batch_with_targets():
    """Each position's target is the next item of its sequence; the last one's is item 7."""
    batch = toy_batch(HISTORIES, ROWS)
    targets = np.zeros(batch.items.shape, np.int32)
    for r, members in enumerate(ROWS):
        column = 0
        for member in members:
            values = [*HISTORIES[member][1:], 7]
            targets[r, column : column + len(values)] = values
            column += len(values)
    return batch._replace(targets=jnp.asarray(targets), weights=jnp.asarray((targets > 0).astype(np.float32)))


def scores(encoder, exact, items):
    """float64[n, V] of the items after each prefix."""
    return transformer(encoder, exact, np.asarray(items), "causal") @ exact["items"]["table"][1 : V + 1].T


def oracle_inputs(encoder, exact, items):
    """A sequence whose items, but for the first, are the best after the true items before them."""
    best = scores(encoder, exact, items).argmax(axis=1) + 1
    return [items[0], *best[:-1].tolist()]


def test_loss_of_fully_exposed_inputs_is_that_of_the_definition():
    """Every input but the first of a sequence is the greedy prediction from true items; targets stay."""
    exposed = task(exposure=1.0, exposure_choice="greedy")
    batch, encoder = batch_with_targets(), exposed.encoder
    params = random_parameters(encoder, batch)
    total, weight = jax.jit(exposed.loss)(params, batch, jax.random.key(0), Resources())
    exact, expected, changed = float64(params), 0.0, 0
    for history in HISTORIES:
        inputs = oracle_inputs(encoder, exact, history)
        changed += inputs != history
        for logits, target in zip(scores(encoder, exact, inputs), [*history[1:], 7], strict=True):
            expected += np.log(np.exp(logits).sum()) - logits[target - 1]
    assert changed
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(weight) == sum(map(len, HISTORIES))


def test_exposure_is_off_unless_asked_for():
    assert type(task()) is NextItem
    with pytest.raises(ConfigError, match=r"expected --task\.exposure above 0, got 0"):
        NextItemConfig(exposure_choice="greedy")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_places_and_items_are_drawn_as_they_should(temperature):
    """The share of replaced inputs is ``exposure``, and their items follow the softmax after the true items before them."""
    exposed = task(temperature, exposure=0.4)
    batch, encoder, n = batch_with_targets(), exposed.encoder, 4000
    params = random_parameters(encoder, batch)
    keys = jax.random.split(jax.random.key(5), n)
    out = jax.jit(jax.vmap(lambda key: exposed.expose(params, batch, key)))(keys)
    drawn, true = np.asarray(out.items), np.asarray(batch.items)
    np.testing.assert_array_equal(out.targets[0], batch.targets)
    exact = float64(params)
    for r, members in enumerate(ROWS):
        column = 0
        for member in members:
            history = HISTORIES[member]
            assert (drawn[:, r, column] == history[0]).all(), "the first interaction stays"
            logits = scores(encoder, exact, history) / temperature
            softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            for place in range(1, len(history)):
                expected = 0.4 * np.concatenate([[0.0], softmax[place - 1]])
                expected[history[place]] += 0.6
                share = np.bincount(drawn[:, r, column + place], minlength=V + 1)[: V + 1] / n
                assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-3).all()
            column += len(history)
        assert (drawn[:, r, column:] == 0).all()
    assert true.max() <= V


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_weighted_by_how_well_they_are_predicted(temperature):
    """Loss and weights are those of the definition, and the weights take no gradient."""
    batch = batch_with_targets()
    weighted = task(temperature, accuracy_power=0.5)
    params = random_parameters(weighted.encoder, batch)
    step = jax.jit(jax.value_and_grad(weighted.loss, has_aux=True))
    (total, weight), gradient = step(params, batch, jax.random.key(0), Resources())
    exact, expected, sum_of_weights = float64(params), 0.0, 0.0
    weights = np.zeros(batch.weights.shape)
    for row, members in enumerate(ROWS):
        column = 0
        for member in members:
            history = HISTORIES[member]
            for logits, target in zip(
                scores(weighted.encoder, exact, history), [*history[1:], 7], strict=True
            ):
                logits = logits / temperature
                probability = np.exp(logits[target - 1]) / np.exp(logits).sum()
                weights[row, column] = np.sqrt(probability)
                expected -= weights[row, column] * np.log(probability)
                sum_of_weights += weights[row, column]
                column += 1
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(weight) == pytest.approx(sum_of_weights, rel=1e-4)
    fixed = batch._replace(weights=jnp.asarray(weights, jnp.float32))
    plain = jax.jit(jax.grad(lambda p: task(temperature).loss(p, fixed, jax.random.key(0), Resources())[0]))(
        params
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, plain)


@pytest.mark.parametrize("parts", [1, 3])
def test_loss_of_a_step_is_a_mean_however_small_its_weights_are(parts):
    """At the start all items are as likely, so the loss is log V; to the power 4 all weights together are below 1e-3."""
    batch = batch_with_targets()
    weighted = task(accuracy_power=4.0)
    params = jax.tree.map(jnp.zeros_like, random_parameters(weighted.encoder, batch))
    state = TrainState(jnp.int32(0), jnp.uint32(0), params, ())
    loss, weight, _ = jax.jit(lambda state: gradients_of(weighted, parts, state, batch, Resources()))(state)
    assert 0 < float(weight) < 1e-2
    assert float(loss) == pytest.approx(np.log(weighted.spec.n_items), rel=1e-5)


def test_weights_of_targets_that_are_hardly_predicted_stay_within_float32():
    """A probability of e^-24 to the power -6 is not a number of float32."""
    batch, weighted = batch_with_targets(), task(accuracy_power=-6.0)
    params = random_parameters(weighted.encoder, batch)
    hidden = 12 * np.random.default_rng(0).normal(size=(*batch.items.shape, D)).astype(np.float32)
    weights = np.asarray(jax.jit(weighted.weigh)(params, batch, hidden).weights)
    logits = hidden.astype(np.float64) @ float64(params)["items"]["table"][1 : V + 1].T
    own = np.take_along_axis(logits, np.maximum(batch.targets - 1, 0)[..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(logits).sum(axis=-1)) - own
    assert losses[batch.targets > 0].max() > 20
    expected = np.where(batch.targets > 0, np.exp(np.minimum(6 * losses, 60.0)), 0.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-3)


@pytest.mark.parametrize("power", [-7.0, 7.0])
def test_a_power_that_leaves_a_fresh_model_without_finite_weights_is_refused(power):
    encoder = TransformerConfig(width=4).build(DataSpec(20_000, 6))
    with pytest.raises(
        ConfigError,
        match=rf"--task\.accuracy-power {power:g} .* each of 20,000 items .* from -6 to 6; choose one",
    ):
        NextItemConfig(accuracy_power=power).build(encoder, CrossEntropyConfig())
    assert NextItemConfig(accuracy_power=power / 2).build(encoder, CrossEntropyConfig())


def test_positions_are_shifted_by_sequence():
    """Each sequence moves as a whole, by every number of places that leaves it below L, each as likely; padding stays."""
    batch, n = batch_with_targets(), 3000
    shifted = jax.jit(jax.vmap(lambda key: shift_positions(batch, L, key)))(
        jax.random.split(jax.random.key(3), n)
    )
    moved = np.asarray(shifted.positions) - np.asarray(batch.positions)
    np.testing.assert_array_equal(shifted.items[0], batch.items)
    first = moved[:, 1, 0]
    for row, members in enumerate(ROWS):
        column = 0
        for member in members:
            size = len(HISTORIES[member])
            own = moved[:, row, column : column + size]
            assert (own == own[:, :1]).all()
            counts = np.bincount(own[:, 0], minlength=L - size + 1) / n
            expected = 1 / (L - size + 1)
            assert len(counts) == L - size + 1, "the last position stays below L"
            assert (np.abs(counts - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-3).all()
            column += size
        assert (moved[:, row, column:] == 0).all()
    assert not np.array_equal(first, moved[:, 1, 2]), "sequences of a row move apart"


def test_random_offsets_reach_the_encoder():
    batch, shifted = batch_with_targets(), task(random_offsets=True)
    params = random_parameters(shifted.encoder, batch)
    key = jax.random.key(8)
    apart = jax.jit(shift_positions, static_argnums=1)(batch, L, jax.random.fold_in(key, 12))
    loss = jax.jit(shifted.loss)(params, batch, key, Resources())[0]
    plain = jax.jit(task().loss)(params, apart, key, Resources())[0]
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    with pytest.raises(
        ConfigError, match=r"--task\.random-offsets shifts positions .*--encoder\.positions learned"
    ):
        NextItemConfig(random_offsets=True).build(toy_encoder(positions="rotary"), CrossEntropyConfig())


@pytest.mark.slow
def test_predictions_take_no_gradient():
    """The derivative is that of the loss with the replaced inputs held fixed."""
    exposed, plain = task(exposure=1.0, exposure_choice="greedy"), task()
    batch = batch_with_targets()
    params = random_parameters(exposed.encoder, batch)
    key = jax.random.key(1)
    fixed = exposed.expose(params, batch, key)

    def gradient(task, batch):
        return jax.jit(jax.grad(lambda p: task.loss(p, batch, key, Resources())[0]))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient(exposed, batch),
        gradient(plain, fixed),
    )


def test_swapped_items_are_inputs_and_targets():
    """As in SSE-PT's sampler, sequence by sequence; of a million items a random one is never the true one."""
    many = 10**6
    encoder = TransformerConfig(width=4).build(DataSpec(many, 6))
    swap = NextItemConfig(item_swap=0.4).build(encoder, CrossEntropyConfig())
    batch = batch_with_targets()
    count = places = 0
    for seed in range(40):
        drawn = swap.prepare(batch, jax.random.key(seed), Resources())
        items, targets = np.asarray(drawn.items), np.asarray(drawn.targets)
        np.testing.assert_array_equal(drawn.weights, batch.weights)
        for r, members in enumerate(ROWS):
            column = 0
            for member in members:
                history = HISTORIES[member]
                for t, item in enumerate(history):
                    here = column + t
                    following = 7 if t == len(history) - 1 else items[r, here + 1]
                    swapped = items[r, here] != item
                    assert (targets[r, here] != following) if swapped else (targets[r, here] == following)
                    assert 1 <= items[r, here] <= many
                    count, places = count + swapped, places + 1
                column += len(history)
            assert not items[r, column:].any()
            assert not targets[r, column:].any()
    assert abs(count / places - 0.4) < 4 * np.sqrt(0.24 / places)
    last = batch._replace(targets=jnp.where(batch.targets == 7, 7, 0))
    only = swap.prepare(last, jax.random.key(0), Resources())
    np.testing.assert_array_equal(only.targets > 0, last.targets > 0, "no target where there was none")
    both = NextItemConfig(item_swap=0.4, exposure=0.5).build(toy_encoder(), CrossEntropyConfig())
    assert not np.array_equal(both.prepare(batch, jax.random.key(0), Resources()).items, batch.items)
    assert task(exposure=0.5).prepare(batch, jax.random.key(0), Resources()) is batch


def test_refusals():
    with pytest.raises(ConfigError, match=r"--task\.exposure must be a finite number in \[0, 1\]; got 1.5"):
        NextItemConfig(exposure=1.5)
    with pytest.raises(
        ConfigError, match=r"--task\.exposure-choice must be one of sample, greedy; got 'beam'"
    ):
        NextItemConfig(exposure_choice="beam")
