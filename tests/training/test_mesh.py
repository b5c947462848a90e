"""Training on meshes of one to eight devices: the same numbers, less memory a device, and what is refused."""

import dataclasses
import re
import shutil

import chex
import jax
import numpy as np
import pytest

from jaxrec.attention.wasserstein import WassersteinAttentionConfig
from jaxrec.data.sampler import Position
from jaxrec.errors import CheckpointError, ConfigError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import EncodingOptions
from jaxrec.evaluation.evaluate import evaluate_cases
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.ranking import candidate_table
from jaxrec.models.stosa import STOSAConfig
from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives import BinaryCrossEntropyConfig, BPRPositiveVersusNegativeConfig, SampledSoftmaxConfig
from jaxrec.sharding import ItemShards, MeshConfig, build_mesh, place
from jaxrec.training.feed import device_rows
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk
from tests.helpers import replace, small_config, small_dataset

DATASET = small_dataset()
V = DATASET.n_items
#: Enough for some hundred steps.
EPOCHS = 24


def config(data=1, item=1, **sections):
    base = small_config(training={"epochs": EPOCHS, "evaluate_every": 6, "chunk_steps": 20})
    return dataclasses.replace(replace(base, **sections), mesh=MeshConfig(data, item))


def quiet(settings, workdir=None, **options):
    return train(settings, DATASET, workdir, progress=False, **options)


def whole(params):
    """Parameters on the host; of tables the rows that items have."""
    host = jax.tree.map(np.asarray, params)
    host["items"]["table"] = host["items"]["table"][:, : V + 1]
    # A bias of all keys moves no softmax: its gradient is rounding alone, which Adam scales up to whole steps.
    attention = host["layer_0"]["attention"]["projections"]
    width = attention["bias"].shape[1] // 3
    attention["bias"] = np.delete(attention["bias"], np.s_[width : 2 * width], axis=1)
    return host


def losses(run):
    return [line["loss"] for line in read_metrics(run.workdir / "log.jsonl") if "loss" in line]


def assert_same_run(one, other, atol=2e-5):
    """Equal up to rounding: parameters and losses; exactly: ranks, and where every seed stands in the data."""
    chex.assert_trees_all_close(whole(one.params), whole(other.params), atol=atol)
    np.testing.assert_allclose(losses(one), losses(other), atol=atol)
    assert one.host_state.positions == other.host_state.positions
    assert one.steps == other.steps
    for a, b in zip([*one.valid, *one.test], [*other.valid, *other.test], strict=True):
        assert (a.ranks != b.ranks).mean() <= 0.02, "near ties may swap places"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One device, uninterrupted; and checkpoints of half a run on one and on eight devices."""
    folder = tmp_path_factory.mktemp("mesh")
    one = quiet(config(), folder / "one")
    half = {"epochs": EPOCHS // 2}
    quiet(config(training=half), folder / "half1")
    quiet(config(2, 4, training=half), folder / "half8")
    return folder, one


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2), (4, 1), (4, 2)], ids=str)
def test_training_agrees_with_one_device(runs, tmp_path, shape):
    _, one = runs
    assert one.steps >= 100
    run = quiet(config(*shape), tmp_path / "run")
    assert_same_run(one, run)
    table = run.params["items"]["table"]
    assert table.addressable_shards[0].data.shape[1] == -(-(V + 1) // shape[1])
    assert not np.asarray(table)[:, V + 1 :].any(), "rows beyond the catalogue stay zero"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "shape", "feed"),
    [
        ("half8", (2, 2), "streamed"),
        ("half8", (1, 2), "resident"),
        ("half8", (1, 1), "resident"),
        ("half1", (2, 4), "resident"),
    ],
)
def test_resume_on_other_devices(runs, tmp_path, saved, shape, feed):
    folder, one = runs
    shutil.copytree(folder / saved, tmp_path / "run")
    assert_same_run(one, quiet(config(*shape, training={"feed": feed}), tmp_path / "run", resume=True))


@pytest.mark.slow
def test_a_checkpoint_of_another_mesh_and_another_configuration_is_refused(runs):
    folder, _ = runs
    with pytest.raises(CheckpointError, match=r"another configuration: encoder\.width: saved 16, given 32"):
        quiet(config(encoder={"width": 32}), folder / "half8", resume=True)


@pytest.mark.slow
def test_seeds_side_by_side_and_a_table_with_bias():
    """Seeds under one `vmap`, whose tables carry a leading axis on the mesh."""
    settings = config(
        training={"epochs": 2, "evaluate_every": 1, "seeds": (0, 3), "over_seeds": "vmap"},
        encoder={"item_bias": True, "separate_output": True},
    )
    one = quiet(settings)
    split = quiet(dataclasses.replace(settings, mesh=MeshConfig(2, 2)))
    assert split.params["item_bias"].addressable_shards[0].data.shape == (2, 21)
    for name in ("item_bias", "output_table"):
        np.testing.assert_allclose(np.asarray(split.params[name])[:, : V + 1], one.params[name], atol=1e-5)
    chex.assert_trees_all_close(whole(one.params)["items"], whole(split.params)["items"], atol=1e-5)


def chunk_of(settings, dataset, steps=4):
    """(setup, compiled chunk, its arguments) of a run's first steps."""
    setup = prepare(settings, dataset)
    sharding = setup.sharding
    state = jax.jit(
        jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)),
        out_shardings=sharding.shardings(),
    )(np.zeros(1, np.uint32))
    rows, _ = setup.streams[0].take(Position(), steps * settings.batches.batch_size)
    inputs = sharding.put(settings.batches.batch_size)(device_rows([rows], steps))
    arguments = (state, inputs, setup.resources)
    chunk = make_train_chunk(setup.task, setup.optimizer, settings.batches, "map", sharding=sharding)
    return setup, chunk.lower(*arguments).compile(), arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {
            "encoder": STOSAConfig(width=8, dropout=0.2, attention=WassersteinAttentionConfig()),
            "objective": BPRPositiveVersusNegativeConfig(n_negatives=2),
        },
        {"objective": BinaryCrossEntropyConfig(n_negatives=3, exclude_seen=True, sampler="popularity")},
        {"objective": SampledSoftmaxConfig(n_negatives=9, shared=True, exclude_seen=True)},
    ],
    ids=["stosa", "bce", "shared draw"],
)
def test_other_encoders_and_objectives(sections):
    settings = dataclasses.replace(config(), **sections)
    found = []
    for shape in ((1, 1), (2, 2)):
        _, chunk, arguments = chunk_of(dataclasses.replace(settings, mesh=MeshConfig(*shape)), DATASET)
        state, metrics = chunk(*arguments)
        tables = [x for x in jax.tree.leaves(state.params) if x.ndim == 3 and x.shape[1] > V]
        found.append((np.asarray(metrics.loss), [np.asarray(x)[:, : V + 1] for x in tables]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1]
    for one, split in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, split, atol=1e-5)


@pytest.mark.slow
def test_initial_parameters_are_the_same_bits_on_every_mesh():
    expected = None
    for shape in ((1, 1), (8, 1), (2, 4), (1, 8)):
        setup = prepare(config(*shape, batches={"batch_size": 8}), DATASET)
        state = jax.jit(
            jax.vmap(lambda seed, setup=setup: initial_state(setup.task, setup.optimizer, seed)),
            out_shardings=setup.sharding.shardings(),
        )(np.zeros(1, np.uint32))
        params = whole(state.params)
        expected = params if expected is None else expected
        chex.assert_trees_all_equal(params, expected)


def buffers(text):
    """Numbers of elements of every array in a compiled program, by its type."""
    found = re.findall(r"\b(?:pred|bf16|[sufc]\d+)\[([\d,]+)\]", text)
    return {dims: int(np.prod([int(d) for d in dims.split(",")])) for dims in found}


@pytest.mark.slow
def test_memory_of_a_device_falls_with_the_item_axis():
    """By the compiler's own analysis; and nothing in the step is as large as the table or as [N, V] scores."""
    dataset = small_dataset(n_users=80, n_items=4000)
    sizes = {}
    for item in (1, 2, 8):
        settings = config(1, item, encoder={"width": 32})
        _, chunk, (_, *rest) = chunk_of(settings, dataset)
        other = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(rest))
        sizes[item] = chunk.memory_analysis().argument_size_in_bytes - other
        if item == 8:
            n = settings.batches.batch_size * settings.batches.max_length
            largest = max(buffers(chunk.as_text()).values())
            assert largest < 4001 * 32, "of the whole table"
            assert largest < n * 4001, "of the scores"
            assert "all-gather" not in chunk.as_text()
    table_and_moments = 3 * 4001 * 32 * 4
    for item in (2, 8):
        saved = table_and_moments * (1 - 1 / item)
        assert abs((sizes[1] - sizes[item]) - saved) < 0.01 * table_and_moments


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)], ids=str)
def test_evaluation_is_exact_on_whole_numbers(shape):
    """Scores without rounding: ranks, ties and all, are the same on every mesh."""
    rng = np.random.default_rng(1)
    vectors = rng.integers(-2, 3, (V + 1, 4)).astype(np.float32)
    setup = prepare(config(), DATASET)
    cases, items = setup.split.test, DATASET.items

    def ranked(table):
        def states(params, batch, at):
            newest = jax.numpy.take_along_axis(batch.items, at, axis=1)
            return table._replace(vectors=params).take(newest).vectors

        options = EncodingOptions(16, tokens_per_batch=64)
        ranker = EncoderRanker(states, table.vectors, candidate_table(table), options)
        return evaluate_cases(ranker, cases, items, EvaluationConfig(ks=(5, 10)))

    mesh = build_mesh(MeshConfig(*shape), 8, V)
    shards = ItemShards(mesh, V)
    padded = np.pad(vectors, ((0, shards.rows - V - 1), (0, 0)))
    one = ranked(ItemTable(jax.numpy.asarray(vectors)))
    many = ranked(ItemTable(place(padded, mesh, jax.sharding.PartitionSpec("item")), None, shards))
    np.testing.assert_array_equal(one.ranks, many.ranks)
    assert one.metrics == many.metrics
    assert len(set(one.ranks.tolist())) > 5


@pytest.mark.parametrize(
    ("mesh", "batch", "items", "message"),
    [
        (
            (3, 1),
            6,
            40,
            r"must divide the number of devices, got 3 x 1 = 3 for 8 devices; choose a product from \[1, 2",
        ),
        (
            (0, 3),
            6,
            40,
            r"mesh\.item must divide the number of devices, got 3 for 8 devices; choose from \[1, 2, 4, 8\]",
        ),
        ((8, 2), 16, 40, r"got 8 x 2 = 16 for 8 devices"),
        (
            (4, 1),
            6,
            40,
            r"--batches\.batch-size / --training\.accumulate-steps must be a multiple of --mesh\.data, got 6 rows for 4",
        ),
        ((1, 8), 6, 7, r"mesh\.item must be at most the number of items, got 8 for 7"),
    ],
)
def test_refused_meshes(mesh, batch, items, message):
    with pytest.raises(ConfigError, match=message):
        build_mesh(MeshConfig(*mesh), batch, items)


def test_groups_of_rows_are_refused_on_a_data_axis():
    with pytest.raises(
        ConfigError,
        match=r"--encoder\.attention\.rows-per-group must be 0 where --mesh\.data is above 1.*got 2",
    ):
        prepare(config(2, 1, attention={"rows_per_group": 2}), DATASET)


def test_meshes_that_work():
    assert build_mesh(MeshConfig(), 7, 3) is None
    assert build_mesh(MeshConfig(0, 2), 8, 40).shape == {"data": 4, "item": 2}
    assert build_mesh(MeshConfig(1, 3 - 1), 7, 40).devices.size == 2, "a divisor leaves devices idle"
    with pytest.raises(ConfigError, match=r"--mesh\.item must be an integer at least 1; got 0"):
        MeshConfig(1, 0)
    with pytest.raises(ConfigError, match=r"--mesh\.data must be an integer at least 0; got -1"):
        MeshConfig(-1)
