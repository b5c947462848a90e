"""The consistency loss against loops in float64: values, gradients of every variant, what is remembered, what is drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.api import fit
from jaxrec.attention import SoftmaxAttentionConfig
from jaxrec.data import load_dataset, split_dataset
from jaxrec.data.transposed import item_user_rows
from jaxrec.errors import ConfigError, DataError
from jaxrec.models import TransformerConfig
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.optim import trained_mask
from jaxrec.runs import Run
from jaxrec.serving import Recommender
from jaxrec.tasks import ConsistencyConfig, Resources
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from tests.helpers import small_config, small_dataset
from tests.models.cases import random_parameters
from tests.models.oracles import float64, transformer
from tests.tasks.data import D, L, V, toy_batch

U, K, WEIGHT = 9, 4, 0.7
HISTORIES = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5], [8]]
ROWS = [[0], [1, 2], [3]]
USERS = [2, 0, 5, 3]


def task(**options):
    """On a transformer without dropout; every step takes all items."""
    config = TransformerConfig(
        width=D,
        block="post-norm",
        ffn_width=6,
        dropout=0.0,
        layers=1,
        attention=SoftmaxAttentionConfig(heads=2),
    )
    encoder = config.build(DataSpec(V, L, n_users=U))
    options = {"weight": WEIGHT, "newest": K, "items_per_step": V, **options}
    return ConsistencyConfig(**options).build(encoder, CrossEntropyConfig())


def batch_with_targets():
    batch = toy_batch(HISTORIES, ROWS, USERS)
    targets = np.where(np.asarray(batch.segments) > 0, np.asarray(batch.items) % V + 1, 0)
    return batch._replace(
        targets=jnp.asarray(targets, jnp.int32), weights=jnp.asarray((targets > 0).astype(np.float32))
    )


def item_users():
    """Up to K users of each item: of the batch, stored, not known yet (7 and 8), and items of only those or of none."""
    rows = np.full((V + 1, K), -1, np.int32)
    rng = np.random.default_rng(0)
    for item in range(1, V - 2):
        own = rng.choice(U, rng.integers(1, K + 1), replace=False)
        rows[item, : len(own)] = own
    rows[V - 2, 0] = 7
    rows[V - 1, :2] = 8, 2
    return rows


def parameters(consistency, seed=3):
    """Generic values everywhere; users 7 and 8 have no state yet."""
    params = random_parameters(consistency.encoder, batch_with_targets())
    rng = np.random.default_rng(seed)
    heads = jax.eval_shape(consistency.init, jax.random.key(0))
    heads = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), heads)
    states = heads["memory"]["states"].at[7:].set(0.0)
    heads["memory"] = {**heads["memory"], "states": states, "steps": jnp.float32(3)}
    return {**params, "task": heads}


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def cross_entropy(encoder, params):
    """Sum over the targets of the toy batch."""
    table, total = params["items"]["table"][1 : V + 1], 0.0
    for history in HISTORIES:
        for logits, item in zip(
            transformer(encoder, params, np.array(history), "causal") @ table.T, history, strict=True
        ):
            total += np.log(np.exp(logits).sum()) - logits[item % V]
    return total


def distance(consistency, moving, fixed):
    """Mean of 1 - cos, with the side that is stopped taken from ``fixed``."""
    stop, encoder = consistency.config.stop, consistency.encoder
    heads, memory = moving["task"], fixed["task"]["memory"]["states"]
    live = {
        user: transformer(encoder, moving, np.array(history), "causal")[-1]
        for user, history in zip(USERS, HISTORIES, strict=True)
    }
    table = (fixed if stop == "item" else moving)["items"]["table"]
    out = []
    for item in range(1, V + 1):
        own = [(k, u) for k, u in enumerate(item_users()[item]) if u >= 0 and memory[u].any()]
        if not own:
            continue
        shares = softmax(np.array([heads["places"][k] for k, _ in own]))
        states = [live[u] if stop != "users" and u in live else memory[u] for _, u in own]
        mean = sum(share * state for share, state in zip(shares, states, strict=True))
        recovered = mean @ heads["map"]["kernel"] + heads["map"]["bias"]
        e = table[item]
        out.append(1 - e @ recovered / np.sqrt(e @ e) / np.sqrt(recovered @ recovered))
    assert 5 < len(out) < V
    return np.mean(out)


@pytest.mark.parametrize("stop", ["item", "users", "none"])
def test_loss_and_gradient_are_those_of_the_definition(stop):
    """The value, and the derivative along random directions through all parameters at once."""
    consistency = task(stop=stop)
    batch, params = batch_with_targets(), parameters(consistency)
    resources = Resources(item_users=jnp.asarray(item_users()))

    def loss(params):
        return consistency.loss(params, batch, jax.random.key(0), resources)

    (total, weight), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    exact = float64(params)

    def expected(moving):
        n = sum(map(len, HISTORIES))
        return cross_entropy(consistency.encoder, moving) + WEIGHT * n * distance(consistency, moving, exact)

    assert float(total) == pytest.approx(expected(exact), rel=1e-4)
    assert float(weight) == sum(map(len, HISTORIES))
    assert not any(np.any(x) for x in jax.tree.leaves(gradient["task"]["memory"]))
    rng = np.random.default_rng(5)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), exact)
        ends = [jax.tree.map(lambda x, d, s=step: x + s * d, exact, direction) for step in (1e-5, -1e-5)]
        slope = (expected(ends[0]) - expected(ends[1])) / 2e-5
        along = sum(
            float((np.asarray(g, np.float64) * d).sum())
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        assert along == pytest.approx(slope, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_states_are_remembered_from_the_average(decay):
    """After two steps: the average of the parameters, and its state at the end of each user's sequence in the batch."""
    consistency = task(decay=decay)
    first = {**random_parameters(consistency.encoder, batch_with_targets(), seed=1)}
    second = random_parameters(consistency.encoder, batch_with_targets(), seed=2)
    heads = jax.jit(consistency.init)(jax.random.key(0))
    assert ("average" in heads["memory"]) == (decay > 0)
    # User 8 has two sequences in the second batch, of which the later one counts.
    one, other = toy_batch(HISTORIES, ROWS, USERS), toy_batch([[7, 7], [3, 2], [4]], None, [5, 8, 8])
    remember = jax.jit(consistency.remember)
    after = remember({**first, "task": heads}, one, Resources())
    after = remember({**second, "task": after["task"]}, other, Resources())
    exact = [float64(first), float64(second)]
    average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, *exact)
    expected = np.zeros((U, D))
    for user, history in zip(USERS, HISTORIES, strict=True):
        expected[user] = transformer(consistency.encoder, exact[0], np.array(history), "causal")[-1]
    for user, history in [(5, [7, 7]), (8, [4])]:
        expected[user] = transformer(consistency.encoder, average, np.array(history), "causal")[-1]
    memory = after["task"]["memory"]
    np.testing.assert_allclose(memory["states"], expected, rtol=1e-4, atol=1e-5)
    assert float(memory["steps"]) == 2
    np.testing.assert_array_equal(after["items"]["table"], second["items"]["table"])
    if decay:
        np.testing.assert_allclose(memory["average"]["items"]["table"], average["items"]["table"], rtol=1e-5)


def test_codes_of_items_are_not_averaged():
    """With this decay the mean of 3 and 3 is below 3 in float32, and would be the row before it."""
    config = TransformerConfig(width=D, layers=1, item_codes=ItemCodesConfig("hashed", count=2, size=V))
    consistency = ConsistencyConfig(decay=0.1).build(
        config.build(DataSpec(V, L, n_users=U)), CrossEntropyConfig()
    )
    batch = batch_with_targets()
    params = random_parameters(consistency.encoder, batch)
    codes = jnp.asarray(np.arange(2 * (V + 1)).reshape(V + 1, 2) % (V + 1), jnp.float32)
    params = {**params, "items": {**params["items"], "codes": codes}}
    params["task"] = jax.jit(consistency.init)(jax.random.key(0))
    remember = jax.jit(consistency.remember)
    after = remember(remember(params, batch, Resources()), batch, Resources())
    np.testing.assert_array_equal(after["task"]["memory"]["average"]["items"]["codes"], codes)


def test_g_starts_as_the_mean_of_the_known_users():
    consistency = task(stop="users")
    params = parameters(consistency)
    fresh = jax.jit(consistency.init)(jax.random.key(0))
    params["task"] = {**fresh, "memory": params["task"]["memory"]}
    rows = item_users()
    hidden = jnp.zeros((len(ROWS), L, D))
    items = jnp.asarray([1], jnp.int32)
    found = jax.jit(consistency.distance)(
        params, hidden, batch_with_targets(), items, Resources(item_users=jnp.asarray(rows))
    )
    states = np.asarray(params["task"]["memory"]["states"])
    own = [u for u in rows[1] if u >= 0 and states[u].any()]
    mean, e = states[own].mean(axis=0), np.asarray(params["items"]["table"])[1]
    cosine = mean @ e / np.linalg.norm(mean) / np.linalg.norm(e)
    assert float(found) == pytest.approx(1 - cosine, rel=1e-5)


def test_items_are_drawn_from_the_catalogue():
    few = task(items_per_step=V - 1)
    drawn = np.asarray(jax.vmap(few.draw_items)(jax.random.split(jax.random.key(1), 3000)))
    assert drawn.shape == (3000, V - 1)
    share = np.bincount(drawn.reshape(-1), minlength=V + 2) / drawn.size
    assert share[0] == share[V + 1] == 0
    np.testing.assert_allclose(share[1 : V + 1], 1 / V, atol=5 * np.sqrt(1 / V / drawn.size))
    np.testing.assert_array_equal(task().draw_items(jax.random.key(1)), np.arange(1, V + 1))


def test_rows_hold_the_newest_training_users():
    split = split_dataset(small_dataset(n_users=40, n_items=15))
    data, rows = split.dataset, item_user_rows(split, 3)
    events = {item: [] for item in range(1, data.n_items + 1)}
    for user in range(data.n_users):
        for place in range(int(split.train_starts[user]), int(split.train_stops[user])):
            events[int(data.items[place])].append((int(data.timestamps[place]), place, user))
    assert (rows[0] == -1).all()
    for item, own in events.items():
        newest = [user for _, _, user in sorted(own, reverse=True)][:3]
        assert rows[item].tolist() == [*newest, -1, -1, -1][:3]


def test_what_is_remembered_is_not_trained():
    consistency = task()
    shapes = jax.eval_shape(consistency.init, jax.random.key(0))
    mask = trained_mask({"items": {"table": 0}, "task": shapes})
    assert not any(jax.tree.leaves(mask["task"]["memory"]))
    assert all(jax.tree.leaves({**mask, "task": {k: v for k, v in mask["task"].items() if k != "memory"}}))
    setup = prepare(small_config().updated({"task": ConsistencyConfig()}), small_dataset())
    state = jax.eval_shape(lambda params: setup.optimizer.init(params), {"task": shapes})
    sizes = sum(x.size for x in jax.tree.leaves(state))
    assert sizes < 3 * (D * D + D + K) + 10
    plain = prepare(small_config(), small_dataset())
    own = jax.eval_shape(lambda: plain.optimizer.init({"items": {"table": jnp.zeros((3, D))}}))
    assert sum(x.size for x in jax.tree.leaves(own)) > 2 * 3 * D, "what has no memory is all trained"


def test_refusals():
    with pytest.raises(ConfigError, match=r"--task\.weight must be a finite number above 0; got 0"):
        ConsistencyConfig(weight=0.0)
    with pytest.raises(ConfigError, match=r"--task\.stop must be one of item, users, none; got 'both'"):
        ConsistencyConfig(stop="both")
    with pytest.raises(ConfigError, match=r"--task consistency needs users"):
        ConsistencyConfig().build(
            dataclasses.replace(task().encoder, spec=DataSpec(V, L)), CrossEntropyConfig()
        )
    config = small_config().updated({"task": ConsistencyConfig()})
    with pytest.raises(DataError, match=r"the users of an item are ordered by time"):
        prepare(config, small_dataset(times=False))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"batches.mode": "prefix"}, r"--batches\.mode prefix"),
        ({"batches.long_histories": "windows"}, r"--batches\.long-histories windows"),
    ],
    ids=["prefixes", "windows"],
)
def test_several_sequences_of_a_user_are_refused(options, given):
    """The state of a user would be that of the prefix or the window which an epoch happens to hold last."""
    config = small_config().updated({"task": ConsistencyConfig(), **options})
    with pytest.raises(
        ConfigError, match=rf"--task consistency .* expected one sequence of each user, got {given}"
    ):
        prepare(config, small_dataset())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, standard_promotion):
    """A run with the consistency loss on a saved log."""
    folder = tmp_path_factory.mktemp("consistency")
    small_dataset().save(folder / "log")
    config = small_config(training={"epochs": 1}).updated(
        {"task": ConsistencyConfig(weight=0.5, newest=5, items_per_step=16, decay=0.9)}
    )
    fit(load_dataset(str(folder / "log")), config, folder / "run", progress=False)
    return folder / "run"


@pytest.mark.slow
def test_finished_runs_answer_without_the_log(finished):
    """The memory has a row for each user, whom the catalogue of a run does not list."""
    run = Run(finished)
    assert run.task.spec.n_users == 60
    assert run.params()["task"]["memory"]["states"].shape == (60, 16)
    assert float(run.params()["task"]["memory"]["steps"]) > 0
    recommender = Recommender.load(finished)
    assert len(recommender.recommend([["i1", "i2"]], k=5)[0].items) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_accumulated_steps_and_no_average():
    """The parts of a batch share what the whole batch remembered."""
    config = small_config(training={"epochs": 1, "accumulate_steps": 2}).updated(
        {
            "task": ConsistencyConfig(weight=0.5, stop="users", newest=5, items_per_step=64, decay=0.0),
            "encoder.dropout": 0.0,
        }
    )
    runs = [
        train(config.updated({"training.accumulate_steps": parts}), small_dataset(), None, progress=False)
        for parts in (1, 2)
    ]
    table = [np.asarray(run.params["items"]["table"]) for run in runs]
    np.testing.assert_allclose(*table, atol=2e-4)
