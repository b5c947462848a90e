"""Vectors of users through a run: packed rows, streams, meshes, resumption, and users whom training does not have."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.data import SequenceDataset
from jaxrec.errors import Interrupted
from jaxrec.optim import decay_mask, user_mask
from jaxrec.sharding import MeshConfig
from jaxrec.training import loop
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from tests.helpers import StopAfter, assert_same_run, replace, small_config, small_dataset

DATASET = small_dataset()
USERS = {"user": "added", "user_width": 8, "user_swap": 0.2, "user_unknown": 0.1, "user_dropout": 0.1}
CONFIG = small_config(encoder=USERS, training={"epochs": 2, "seeds": (0, 3)}, optimizer={"user_decay": 0.01})


def quiet(config=CONFIG, dataset=DATASET, workdir=None, **options):
    return train(config, dataset, workdir, progress=False, **options)


@pytest.fixture(scope="module")
def whole():
    return quiet()


def tastes(n_users=30, n_items=40, length=12):
    """Users who pick from two items of their own after a common item: without their vector the next item is a guess."""
    rng = np.random.default_rng(0)
    own = rng.integers(2, n_items + 1, (n_users, 2))
    items = np.ones((n_users, length), np.int32)
    items[:, 1::2] = own[np.arange(n_users)[:, None], rng.integers(0, 2, (n_users, length // 2))]
    items[::7, :] = np.roll(items[::7, :], 1, axis=1)
    offsets = np.arange(n_users + 1, dtype=np.int64) * length
    return SequenceDataset(
        items.reshape(-1), offsets, [f"u{u}" for u in range(n_users)], [f"i{i}" for i in range(n_items)]
    )


@pytest.mark.slow
def test_users_whom_training_has_are_marked_and_trained():
    """One user has a single training interaction, so no target: marked as unknown, and the vector stays as drawn."""
    lengths = np.array([6, 3, 7])
    dataset = SequenceDataset(
        np.arange(1, 17, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        list("abc"),
        [str(i) for i in range(16)],
    )
    config = small_config(encoder={"user": "film"}, training={"epochs": 4}, batches={"batch_size": 1})
    run = quiet(config, dataset)
    users = run.seed_params(0)["users"]
    np.testing.assert_array_equal(users["known"], [1, 0, 1])
    fresh = initial_state(run.setup.task, run.setup.optimizer, jnp.uint32(0)).params["users"]["table"]
    np.testing.assert_allclose(users["table"][1], fresh[1], atol=1e-7)
    assert (np.abs(users["table"] - fresh).max(axis=1)[[0, 2]] > 1e-4).all()
    np.testing.assert_array_equal(run.setup.known_users, [True, False, True])


@pytest.mark.slow
def test_batches_name_the_user_of_each_sequence():
    """The next item depends on whose history it is, and packed rows hold several users: the loss shows who is read."""
    config = small_config(
        encoder={"user": "added", "dropout": 0.0},
        training={"epochs": 60, "evaluate_every": 20, "select": "last"},
        optimizer={"learning_rate": 0.01},
        evaluation={"remove_seen": False},
    )
    dataset = tastes()
    with_users = quiet(config, dataset)
    without = quiet(replace(config, encoder={"user": "none"}), dataset)
    names = [with_users.setup.split.test.users, without.setup.split.test.users]
    np.testing.assert_array_equal(*names)
    of_item_one = dataset.items[with_users.setup.split.test.history_stops - 1] == 1
    hits = [(run.test[0].ranks[of_item_one] <= 2).mean() for run in (with_users, without)]
    assert hits[0] > 0.9, "their own two items"
    assert hits[1] < hits[0]
    ranker = with_users.setup.ranker(with_users.seed_params(0))
    cases = with_users.setup.split.test
    from jaxrec.evaluation.histories import histories_of

    histories = histories_of(cases, dataset.items)
    strangers = dataclasses.replace(histories, users=None)
    states, bare = np.asarray(ranker.encode(histories)), np.asarray(ranker.encode(strangers))
    assert np.abs(states - bare).max() > 0.1, "without users all are new"
    mixed = dataclasses.replace(histories, users=np.where(np.arange(len(cases.users)) % 2, -1, cases.users))
    np.testing.assert_allclose(ranker.encode(mixed)[::2], states[::2], atol=1e-5)
    np.testing.assert_allclose(ranker.encode(mixed)[1::2], bare[1::2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["prefix", "film"])
def test_streamed_is_resident_and_resumed_is_whole(place, tmp_path, monkeypatch):
    config = replace(CONFIG, encoder={"user": place})
    resident = quiet(config, workdir=tmp_path / "resident")
    streamed = quiet(replace(config, training={"feed": "streamed"}))
    assert_same_run(resident, streamed)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", StopAfter(0))
        with pytest.raises(Interrupted):
            quiet(config, workdir=tmp_path / "parts")
    assert_same_run(resident, quiet(config, workdir=tmp_path / "parts", resume=True))


@pytest.mark.slow
def test_mesh_equals_one_device(whole):
    meshed = quiet(dataclasses.replace(CONFIG, mesh=MeshConfig(2, 2)))
    for name in ("table", "known", "new"):
        np.testing.assert_allclose(meshed.params["users"][name], whole.params["users"][name], atol=2e-5)
    for a, b in zip(whole.test, meshed.test, strict=True):
        assert (a.ranks != b.ranks).mean() <= 0.02, "near ties may swap places"


@pytest.mark.slow
def test_one_compilation_and_two_seeds(monkeypatch):
    traces = []
    from jaxrec.training import step

    original = step.train_step
    monkeypatch.setattr(step, "train_step", lambda *a: traces.append(1) or original(*a))
    run = quiet()
    assert len(traces) == 1
    first, second = (run.seed_params(index)["users"]["table"] for index in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.slow
def test_decay_of_users_alone():
    setup = prepare(CONFIG, DATASET)
    params = jax.eval_shape(lambda: initial_state(setup.task, setup.optimizer, jnp.uint32(0)).params)
    decayed = jax.tree_util.tree_leaves_with_path(user_mask(params))
    assert [jax.tree_util.keystr(path) for path, yes in decayed if yes] == ["['users']['table']"]
    assert not decay_mask(params, "kernels-and-items")["users"]["table"]
    assert decay_mask(params, "all")["users"]["table"]
    strong = quiet(replace(CONFIG, optimizer={"user_decay": 900.0}, training={"seeds": (0,)}))
    assert np.abs(strong.params["users"]["table"]).max() < np.abs(strong.params["items"]["table"]).max() / 10
    np.testing.assert_array_equal(strong.params["users"]["known"][0], strong.setup.known_users)


@pytest.mark.slow
def test_users_are_matched_by_id(tmp_path):
    """A log with other users and more items: each user that both have starts from its vector."""
    config = replace(CONFIG, training={"seeds": (0,), "epochs": 1})
    jaxrec.fit(DATASET, config, tmp_path / "source", progress=False)
    other = small_dataset(n_users=40, n_items=45, seed=3)
    other = dataclasses.replace(other, user_ids=[f"u{2 * u}" for u in range(40)])
    started = replace(
        config,
        training={"init_from": str(tmp_path / "source"), "init_items": "match"},
        optimizer={"learning_rate": 1e-30},
    )
    run = jaxrec.fit(other, started, progress=False)
    before = jaxrec.Run(tmp_path / "source", DATASET).params()["users"]["table"]
    after = run.fit.seed_params(0)["users"]["table"]
    np.testing.assert_allclose(after[:30], before[::2], atol=1e-25)
    assert np.abs(after[30:]).max() > 0.0
    fresh = initial_state(run.fit.setup.task, run.fit.setup.optimizer, jnp.uint32(0)).params["users"]["table"]
    chex.assert_trees_all_close(after[30:], fresh[30:], atol=1e-6)
