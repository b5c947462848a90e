import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError
from jaxrec.training import checkpoint
from jaxrec.training.checkpoint import CheckpointReader, CheckpointStore, abstract, json_safe
from jaxrec.training.digests import content_digests
from jaxrec.training.setup import prepare
from jaxrec.training.trees import flatten
from tests.helpers import small_config, small_dataset

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
RECORD = {"step": 7, "dataset": "abc", "host_state": {"best": [None, 0.25], "positions": [[0, 3]]}}


def scaled(factor):
    """A tree whose content tells which save it came from."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), TREE)


def assert_same(a, b):
    for name, value in flatten(a).items():
        other = flatten(b)[name]
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other, err_msg=name)


def restored(store, step=None):
    return store.restore({"state": abstract(TREE)}, step)[0]["state"]


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints of steps 1 and 2."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        store.save(step, {"state": scaled(step)}, RECORD, score=float(step))
    store.close()
    return tmp_path / "checkpoints"


@pytest.fixture
def open_store():
    opened = []

    def open_one(directory, **options):
        opened.append(CheckpointStore(directory, **options))
        return opened[-1]

    gc.freeze()  # what earlier tests compiled is many objects to look through
    yield open_one
    for store in opened:
        store._orbax.close()
    gc.collect()
    gc.unfreeze()


def test_round_trip(saved, open_store):
    store = open_store(saved)
    assert store.steps() == [1, 2]
    for step in (1, 2):
        parts, record = store.restore({"state": abstract(TREE)}, step)
        tree = parts["state"]
        assert_same(tree, scaled(step))
        assert record.items() >= {"format": checkpoint.FORMAT, **RECORD}.items()
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    assert_same(restored(store), scaled(2))
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
    tree = open_store(saved).restore({"state": target})[0]["state"]
    assert len(tree["params"]["table"].sharding.device_set) == 4
    assert_same(tree, scaled(2))


def test_keeps_the_newest_and_the_best(tmp_path, open_store):
    store = open_store(tmp_path / "checkpoints", keep=2)
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, 0.4)):
        store.save(step, {"state": scaled(step)}, RECORD, score)
    store.wait()
    assert store.steps() == [2, 4, 5]
    assert_same(restored(store, 2), scaled(2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_saves_leave_no_thread_and_no_descriptor_behind(tmp_path, open_store):
    """A run of hours saves hundreds of times; 1,024 descriptors are the usual limit."""
    store = open_store(tmp_path / "checkpoints")

    def held_after(steps):
        for step in steps:
            store.save(step, {"state": TREE}, RECORD, 0.0)
        store.wait()
        gc.collect()
        return threading.active_count(), len(os.listdir("/dev/fd"))

    before = held_after(range(1, 4))
    after = held_after(range(4, 10))
    assert after[0] <= before[0]
    assert after[1] <= before[1]


def test_what_does_not_fit_is_named(saved, open_store):
    store = open_store(saved)

    def target(**changes):
        flat = {**TREE, **changes}
        return abstract(flat)

    cases = {
        r"state/step: expected float32\[\], the checkpoint has int32\[\]": target(step=jnp.float32(0)),
        r"state/seed: expected uint32\[5\], the checkpoint has uint32\[2\]": target(
            seed=jnp.zeros(5, jnp.uint32)
        ),
        r"state/extra: expected by this configuration, absent in the checkpoint": target(extra=jnp.zeros(1)),
        r"state/params/table: in the checkpoint, unknown to this configuration": target(params={}),
    }
    for message, wanted in cases.items():
        with pytest.raises(
            CheckpointError, match=rf"step 2 .* does not fit this configuration(?s:.*){message}"
        ):
            store.restore({"state": wanted})
    halves = abstract(jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE))
    with pytest.raises(
        CheckpointError, match=r"\(5 arrays differ\)(?s:.*)bfloat16(?s:.*)Use the configuration"
    ):
        store.restore({"state": halves})


def test_other_format_is_refused(tmp_path, open_store, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    monkeypatch.setattr(checkpoint, "_READABLE", (99,))
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"state": TREE}, RECORD, 0.0)
    store.close()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"not written by jaxrec.*expected format 2, got 99; start"):
        open_store(tmp_path / "checkpoints").restore({"state": abstract(TREE)})


def test_foreign_checkpoint_is_refused(tmp_path, open_store):
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as foreign:
        foreign.save(3, {"w": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match=r"step 3 under .* was not written by jaxrec.*got None"):
        open_store(tmp_path / "checkpoints").restore({"state": abstract(TREE)})


def test_foreign_directories_are_refused(tmp_path, open_store):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear Sir")
    for name in ("empty", "letters"):
        with pytest.raises(CheckpointError, match=rf"no complete checkpoint under .*{name}.*start it anew"):
            open_store(tmp_path / name).restore({"state": abstract(TREE)})
    (tmp_path / "numbers" / "12").mkdir(parents=True)
    (tmp_path / "numbers" / "12" / "a.txt").write_text("Dear Sir")
    with pytest.raises(
        CheckpointError, match=r"no complete checkpoint under|is damaged|was not written by jaxrec"
    ):
        open_store(tmp_path / "numbers").restore({"state": abstract(TREE)})
    assert (tmp_path / "letters" / "a.txt").exists()
    assert (tmp_path / "numbers" / "12" / "a.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file: expected the directory of a run's checkpoints"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
@pytest.mark.parametrize("kind", [CheckpointReader, CheckpointStore])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved, tmp_path, capsys, harm, kind):
    """Whichever file is damaged: the right arrays of this checkpoint, or those of the one before and a message."""
    files = [path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file()]
    fallbacks = 0
    for number, file in enumerate(files):
        copy = tmp_path / f"copy{number}" / "checkpoints"
        shutil.copytree(saved, copy)
        victim = copy / file
        if harm == "gone":
            victim.unlink()
        else:
            os.truncate(victim, victim.stat().st_size // 2 if harm == "cut" else 0)
        store = kind(copy)
        tree = restored(store)
        message = capsys.readouterr().err
        step = 1 if np.asarray(tree["step"]) == 7 else 2
        assert_same(tree, scaled(step))
        if step == 1:
            fallbacks += 1
            assert "step 2" in message
            assert "damaged" in message
        if kind is CheckpointStore:
            assert store.steps() == ([1] if step == 1 else [1, 2]), (
                "the next save of step 2 is not in the way"
            )
            assert (copy.parent / "damaged-checkpoints" / "2").is_dir() == (step == 1)
            store._orbax.close()
    assert fallbacks >= 3, "the files of the arrays and of their metadata, at least"
    gc.collect()


def test_the_only_checkpoint_damaged_is_an_error(saved):
    shutil.rmtree(saved / "1")
    files = [path for path in (saved / "2").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"step 2 under .* is damaged: .*; start the run anew"):
        CheckpointReader(saved).restore({"state": abstract(TREE)})


def test_a_damaged_checkpoint_prints_one_line(saved):
    """In a process of its own: what Orbax abandons ends in its threads and when Python collects it."""
    arrays = [path for path in (saved / "2").rglob("d/*") if path.is_file()]
    for path in arrays:
        path.write_bytes(b"x" * path.stat().st_size)
    script = (
        "import gc, sys; from pathlib import Path; from tests.training.test_checkpoint import TREE, abstract; "
        "from jaxrec.training.checkpoint import CheckpointReader; "
        f"r = CheckpointReader(Path({str(saved)!r})).restore({{'state': abstract(TREE)}}); gc.collect(); print(r[1]['step'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("jaxrec: the checkpoint of step 2")


def test_other_errors_that_nothing_catches_are_reported(monkeypatch):
    reported = []
    hook = checkpoint._WithoutAbandonedReads(reported.append)

    class Info:
        exc_value: BaseException = ValueError("x")
        object = None

    hook(Info)
    assert reported == [Info]


def test_single_flipped_bits_are_found_or_harmless(saved, capsys):
    """Random bits of every file of the newest checkpoint, of its arrays most of all."""
    random = np.random.default_rng(0)
    files = sorted(path for path in (saved / "2").rglob("*") if path.is_file())
    trials = [(file, 3) for file in files]
    trials += [(file, 25) for file in files if file.parent.name == "d"]
    found = 0
    for file, count in trials:
        content = file.read_bytes()
        for _ in range(count):
            changed = bytearray(content)
            changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
            file.write_bytes(changed)
            tree = restored(CheckpointReader(saved))
            step = 1 if np.asarray(tree["step"]) == 7 else 2
            assert_same(tree, scaled(step))
            found += step == 1
        file.write_bytes(content)
    assert found > 10
    assert "is not what was saved" in capsys.readouterr().err or found > 40
    assert_same(restored(CheckpointReader(saved)), scaled(2))


def test_a_digest_sees_every_element_and_no_padding():
    rng = np.random.default_rng(0)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_):
        x = jnp.asarray(rng.integers(0, 2, (3, 5, 4))).astype(dtype)
        padded = jnp.pad(x, ((0, 0), (0, 6), (0, 0)))
        names = content_digests({"x": x, "padded": padded})
        assert names["x"] == names["padded"]
        digests = set()
        for place in np.ndindex(x.shape):
            other = np.array(x)
            other[place] = not other[place] if dtype == jnp.bool_ else 1 - other[place]
            digests.add(content_digests({"x": jnp.asarray(other)})["x"])
        assert len(digests) == x.size
        assert names["x"] not in digests
    swapped = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert content_digests({"a": swapped})["a"] != content_digests({"a": swapped[::-1]})["a"]


def test_a_table_may_have_rows_of_zeros_behind_its_items(tmp_path):
    """As many as another mesh asked for. Which axes count items is asked where shapes differ, and only there."""
    table = jnp.arange(12, dtype=jnp.float32).reshape(1, 6, 2)
    longer = jnp.pad(table, ((0, 0), (0, 2), (0, 0)))
    store = CheckpointStore(tmp_path / "longer")
    store.save(1, {"best": {"table": longer}}, RECORD, 1.0)
    store.close()
    asked = []

    def tables():
        asked.append(len(asked))
        return {"best/table": 1}

    def read(target, rows=6):
        reader = CheckpointReader(tmp_path / "longer")
        return reader.restore({"best": abstract({"table": target})}, tables=tables, table_rows=rows)[0][
            "best"
        ]["table"]

    np.testing.assert_array_equal(read(longer), longer)
    assert not asked
    np.testing.assert_array_equal(read(table), table)
    assert asked == [0]
    with pytest.raises(
        CheckpointError, match=r"expected float32\[1, 6, 2\], the checkpoint has float32\[1, 8, 2\]"
    ):
        read(table, rows=9)


def test_tables_of_a_training_state_are_found_by_their_shapes():
    tables = prepare(small_config(), small_dataset()).sharding.tables()
    assert set(tables.values()) == {1}
    assert {name.split("/")[0] for name in tables} == {"state", "best"}
    assert {name.split("/", 1)[1] for name in tables} >= {"items/table", "params/items/table"}
    assert all(name.endswith("items/table") for name in tables)


def test_parts_are_restored_alone(saved, tmp_path):
    """The best parameters without the state beside them, whose files may even be gone."""
    store = CheckpointStore(tmp_path / "parts")
    store.save(4, {"state": TREE, "best": scaled(3)}, RECORD, 1.0)
    store.close()
    shutil.rmtree(tmp_path / "parts" / "4" / "state" / "d")
    parts, _ = CheckpointReader(tmp_path / "parts").restore({"best": abstract(TREE)})
    assert list(parts) == ["best"]
    assert_same(parts["best"], scaled(3))


def test_reading_leaves_a_running_save_alone(saved):
    """The temporary directory of a run that is saving now."""
    busy = saved / "3.orbax-checkpoint-tmp-1234"
    shutil.copytree(saved / "2", busy)
    before = sorted(saved.rglob("*"))
    assert_same(restored(CheckpointReader(saved)), scaled(2))
    assert sorted(saved.rglob("*")) == before


def test_unfinished_saves_are_ignored_and_cleared(saved, open_store):
    """What a killed process leaves: a temporary directory beside the complete checkpoints."""
    shutil.copytree(saved / "2", saved / "3.orbax-checkpoint-tmp-1234")
    (saved / "3.orbax-checkpoint-tmp-1234" / "commit_success.txt").unlink(missing_ok=True)
    store = open_store(saved)
    assert store.steps() == [1, 2]
    assert_same(restored(store), scaled(2))
    store.save(3, {"state": scaled(3)}, RECORD, 0.0)
    store.wait()
    assert_same(restored(store), scaled(3))


FULL_DISK = """
import json, resource, sys
import jax, jax.numpy as jnp
from jaxrec.errors import CheckpointError
from jaxrec.training.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
tree = {"table": jnp.asarray(jax.random.normal(jax.random.key(0), (500, 64)))}
told = []
if sys.argv[2] == "after":
    store.save(1, {"state": tree}, {"step": 1}, 0.5)
    store.wait()
# No file may grow beyond this: writing fails as on a full disk, without the privilege to fill one.
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
for step in (2, 3):
    try:
        store.save(step, {"state": tree}, {"step": step}, 0.6)
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
        parts, record = store.restore({"state": abstract({"table": jnp.zeros((500, 64))})})
        assert record["step"] == 1
        np.testing.assert_array_equal(
            parts["state"]["table"], jax.random.normal(jax.random.key(0), (500, 64))
        )


def test_json_safe():
    assert json_safe({"a": (1, np.int64(2)), "b": np.float32(0.5), "c": Path("x")}) == {
        "a": [1, 2],
        "b": 0.5,
        "c": "x",
    }
