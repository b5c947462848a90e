import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError
from jaxrec.training import checkpoint
from jaxrec.training.checkpoint import CheckpointStore, abstract, json_safe
from jaxrec.training.trees import flatten

# Orbax abandons the other reads when one fails, and Python complains about each when it collects them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TREE = {
    "params": {
        "table": jnp.arange(4000, dtype=jnp.float32).reshape(100, 40),
        "layers": [jnp.ones(3), jnp.zeros(2)],
    },
    "step": jnp.int32(7),
    "seed": jnp.asarray([0, 1], jnp.uint32),
}
RECORD = {"step": 7, "dataset": "abc", "ledger": {"best": [None, 0.25], "positions": [[0, 3]]}}


def scaled(factor):
    """A tree whose content tells which save it came from."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), TREE)


def assert_same(a, b):
    for name, value in flatten(a).items():
        other = flatten(b)[name]
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other, err_msg=name)


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints of steps 1 and 2."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        store.save(step, scaled(step), RECORD, score=float(step))
    store.close()
    return tmp_path / "checkpoints"


@pytest.fixture
def open_store():
    opened = []

    def open_one(directory, **options):
        opened.append(CheckpointStore(directory, **options))
        return opened[-1]

    yield open_one
    for store in opened:
        store._orbax.close()
    gc.collect()


def test_round_trip(saved, open_store):
    store = open_store(saved)
    assert store.steps() == [1, 2]
    for step in (1, 2):
        tree, record = store.restore(abstract(TREE), step)
        assert_same(tree, scaled(step))
        assert record == {"format": checkpoint.FORMAT, **RECORD}
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    assert_same(store.restore(abstract(TREE))[0], scaled(2))
    assert store.record(1) == record
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 under .*; there are \[1, 2\]"):
        store.record(5)


def test_names_are_paths():
    assert sorted(flatten(TREE)) == ["params/layers/0", "params/layers/1", "params/table", "seed", "step"]


def test_restores_onto_more_devices(saved, open_store):
    mesh = jax.make_mesh((4,), ("item",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    target = abstract(TREE)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("item"))
    target["params"]["table"] = jax.ShapeDtypeStruct((100, 40), jnp.float32, sharding=sharding)
    tree, _ = open_store(saved).restore(target)
    assert len(tree["params"]["table"].sharding.device_set) == 4
    assert_same(tree, scaled(2))


def test_keeps_the_newest_and_the_best(tmp_path, open_store):
    store = open_store(tmp_path / "checkpoints", keep=2)
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, 0.4)):
        store.save(step, scaled(step), RECORD, score)
    store.wait()
    assert store.steps() == [2, 4, 5]
    assert_same(store.restore(abstract(TREE), 2)[0], scaled(2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_what_does_not_fit_is_named(saved, open_store):
    store = open_store(saved)

    def target(**changes):
        flat = {**TREE, **changes}
        return abstract(flat)

    cases = {
        r"step: expected float32\[\], the checkpoint has int32\[\]": target(step=jnp.float32(0)),
        r"seed: expected uint32\[5\], the checkpoint has uint32\[2\]": target(seed=jnp.zeros(5, jnp.uint32)),
        r"extra: expected by this configuration, absent in the checkpoint": target(extra=jnp.zeros(1)),
        r"params/table: in the checkpoint, unknown to this configuration": target(params={}),
    }
    for message, wanted in cases.items():
        with pytest.raises(
            CheckpointError, match=rf"step 2 .* does not fit this configuration(?s:.*){message}"
        ):
            store.restore(wanted)
    halves = abstract(jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE))
    with pytest.raises(
        CheckpointError, match=r"\(5 arrays differ\)(?s:.*)bfloat16(?s:.*)Use the configuration"
    ):
        store.restore(halves)


def test_other_format_is_refused(tmp_path, open_store, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, TREE, RECORD, 0.0)
    store.close()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"not written by jaxrec.*expected format 1, got 99; start"):
        open_store(tmp_path / "checkpoints").restore(abstract(TREE))


def test_foreign_checkpoint_is_refused(tmp_path, open_store):
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as foreign:
        foreign.save(3, {"w": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match=r"step 3 under .* was not written by jaxrec.*got None"):
        open_store(tmp_path / "checkpoints").restore(abstract(TREE))


def test_foreign_directories_are_refused(tmp_path, open_store):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear Sir")
    for name in ("empty", "letters"):
        with pytest.raises(CheckpointError, match=rf"no complete checkpoint under .*{name}.*start it anew"):
            open_store(tmp_path / name).restore(abstract(TREE))
    (tmp_path / "numbers" / "12").mkdir(parents=True)
    (tmp_path / "numbers" / "12" / "a.txt").write_text("Dear Sir")
    with pytest.raises(
        CheckpointError, match=r"no complete checkpoint under|is damaged|was not written by jaxrec"
    ):
        open_store(tmp_path / "numbers").restore(abstract(TREE))
    assert (tmp_path / "letters" / "a.txt").exists()
    assert (tmp_path / "numbers" / "12" / "a.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file: expected the directory of a run's checkpoints"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
def test_damage_is_told_or_harmless(saved, open_store, tmp_path, harm):
    """Whichever file of the checkpoint is damaged: an error in words, or the right arrays; never wrong ones."""
    files = [path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file()]
    told = 0
    for number, file in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(saved, copy)
        victim = copy / file
        if harm == "gone":
            victim.unlink()
        else:
            os.truncate(victim, victim.stat().st_size // 2 if harm == "cut" else 0)
        problem = None
        try:
            store = open_store(copy)
            assert_same(store.restore(abstract(TREE))[0], scaled(store.steps()[-1]))
        except CheckpointError as error:
            problem = str(error)
        if problem is not None:
            assert str(copy) in problem
            assert "\n" not in problem
            # The advice works: without the damaged one, the checkpoint before it can be had.
            assert f"delete {copy / '2'} to" in problem
            shutil.rmtree(copy / "2")
            assert_same(open_store(copy).restore(abstract(TREE))[0], scaled(1))
            told += 1
    assert told >= 3, "the files of the arrays and of their metadata, at least"


def test_truncated_arrays_are_told(saved, open_store):
    largest = max(
        (path for path in (saved / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(
        CheckpointError,
        match=r"the checkpoint of step 2 under .* is damaged: .*; delete .*2 to go on from step 1",
    ):
        open_store(saved).restore(abstract(TREE))


def test_unfinished_saves_are_ignored_and_cleared(saved, open_store):
    """What a killed process leaves: a temporary directory beside the complete checkpoints."""
    shutil.copytree(saved / "2", saved / "3.orbax-checkpoint-tmp-1234")
    (saved / "3.orbax-checkpoint-tmp-1234" / "commit_success.txt").unlink(missing_ok=True)
    store = open_store(saved)
    assert store.steps() == [1, 2]
    assert_same(store.restore(abstract(TREE))[0], scaled(2))
    store.save(3, scaled(3), RECORD, 0.0)
    store.wait()
    assert_same(store.restore(abstract(TREE))[0], scaled(3))


FULL_DISK = """
import json, resource, sys
import jax, jax.numpy as jnp
from jaxrec.errors import CheckpointError
from jaxrec.training.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
tree = {"table": jnp.asarray(jax.random.normal(jax.random.key(0), (500, 64)))}
told = []
if sys.argv[2] == "after":
    store.save(1, tree, {"step": 1}, 0.5)
    store.wait()
# No file may grow beyond this: writing fails as on a full disk, without the privilege to fill one.
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
for step in (2, 3):
    try:
        store.save(step, tree, {"step": step}, 0.6)
        told.append("begun")
        store.wait() if sys.argv[3] == "wait" else None
    except CheckpointError as error:
        told.append(str(error))
try:
    store.close()
except CheckpointError as error:
    told.append(str(error))
print(json.dumps(told))
"""


@pytest.mark.parametrize(("earlier", "when"), [("after", "wait"), ("after", "next"), ("never", "wait")])
def test_full_disk(tmp_path, open_store, earlier, when):
    """The error of a save in the background comes with the next call, and what was complete stays so."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints"), earlier, when],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    errors = [line for line in told if line != "begun"]
    assert errors
    kept = "the checkpoint of step 1 is intact" if earlier == "after" else "no earlier checkpoint exists"
    for error in errors:
        assert error.startswith("could not save a checkpoint under ")
        assert f"Check the free space and the permissions; {kept}" in error
        assert "\n" not in error
    store = open_store(tmp_path / "checkpoints")
    assert store.steps() == ([1] if earlier == "after" else [])
    if earlier == "after":
        tree, record = store.restore(abstract({"table": jnp.zeros((500, 64))}))
        assert record["step"] == 1
        np.testing.assert_array_equal(tree["table"], jax.random.normal(jax.random.key(0), (500, 64)))


def test_json_safe():
    assert json_safe({"a": (1, np.int64(2)), "b": np.float32(0.5), "c": Path("x")}) == {
        "a": [1, 2],
        "b": 0.5,
        "c": "x",
    }
