"""Checkpoints: the one file that knows Orbax (its v1 interface).

A checkpoint has named parts, such as the training state and the best parameters, each of which can be restored alone.
A part is a flat dictionary of arrays, named by their path in the tree. Beside them lies a JSON record: position in the
data, configuration, dataset fingerprint, early-stopping state, and a digest of the content of every array. A checkpoint
restores onto any number of devices. What does not match is rejected with an explanatory error before anything is loaded
(Orbax itself would cast a dtype silently), and what does not have its digest is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError
from jaxrec.training.digests import content_digests
from jaxrec.training.distributed import is_first
from jaxrec.training.trees import flatten

#: Format 1 had one part "state" with the arrays of (state, best parameters) and no digests.
FORMAT = 2
_READABLE = (1, FORMAT)
#: Prefix of the arrays of a part inside the one part of format 1.
_FORMAT_1_PREFIX = {"state": "0/", "best": "1/"}

_policies = ocp.training.preservation_policies


class DamagedCheckpointError(CheckpointError):
    """A checkpoint cannot be read, or its content is not what was saved."""


def abstract(tree: Any) -> Any:
    """Shape, dtype and sharding of each array of ``tree``: the target of a restore."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
    )


def _silence() -> None:
    # Orbax logs what it also raises, and asyncio every read that Orbax abandons after a failed one.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not isinstance(sys.unraisablehook, _WithoutAbandonedReads):
        sys.unraisablehook = _WithoutAbandonedReads(sys.unraisablehook)


class _WithoutAbandonedReads:
    """Hook of errors that nothing can catch: leaves out those of the reads that Orbax abandons after a failed one.

    They end after Orbax has raised, in threads of TensorStore or when Python collects them, at any later time; each would
    print a page over the one line that says what is damaged.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook

    def __call__(self, error: Any) -> None:
        """Report an error, if it is not one of an abandoned read."""
        closed = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        code = getattr(error.object, "cr_code", None)
        if not closed and "/orbax/" not in getattr(code, "co_filename", ""):
            self.hook(error)


class CheckpointReader:
    """The complete checkpoints under ``directory``, for reading: nothing is changed, created or cleaned up."""

    def __init__(self, directory: Path):
        """Look at ``directory``.

        Raises:
          CheckpointError: it is a file.
        """
        _silence()
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(
                f"{self.directory} is a file: expected the directory of a run's checkpoints"
            )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record of a checkpoint (by default the latest whose record can be read).

        Raises:
          CheckpointError: there is none, or it was not written by this library.
        """
        record: dict[str, Any] = self._newest(step, lambda number: self._metadata(number)[0])[0]
        record.pop("arrays", None)
        return record

    def restore(
        self,
        targets: Mapping[str, Any],
        step: int | None = None,
        tables: Callable[[], Mapping[str, int]] = dict,
        table_rows: int = 0,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parts of a checkpoint, laid out as ``targets`` (see `abstract`), and its record.

        With ``step`` None a damaged checkpoint is left for the one before it, with a line on standard error.

        Args:
          targets: what to restore by name of the part, onto any devices; other parts are not read.
          step: which checkpoint; None = the latest.
          tables: returns arrays by name, and the axis of each that counts items: there rows of zeros may follow the first
            ``table_rows``, as many as the mesh of the run asked for. Called where a shape is not that of its target.
          table_rows: V + 1.

        Raises:
          CheckpointError: an array is missing, unexpected, or of another shape or dtype (each is named); or damaged.
        """

        def restore_one(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
            return self._restore(targets, number, tables, table_rows)

        restored, damaged = self._newest(step, restore_one)
        self._report(damaged)
        return restored

    def _newest(self, step: int | None, read: Any) -> tuple[Any, dict[int, DamagedCheckpointError]]:
        """Result of ``read`` for ``step`` or for the latest step that is not damaged, and the damaged ones."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"no complete checkpoint under {self.directory}: expected the checkpoints of a run; start it anew"
            )
        if step is not None:
            if step not in steps:
                raise CheckpointError(
                    f"no checkpoint of step {step} under {self.directory}; there are {steps}"
                )
            return read(step), {}
        damaged: dict[int, DamagedCheckpointError] = {}
        for candidate in reversed(steps):
            try:
                return read(candidate), damaged
            except DamagedCheckpointError as error:
                damaged[candidate] = error
        raise damaged[steps[-1]]

    def _report(self, damaged: Mapping[int, DamagedCheckpointError]) -> None:
        for error in damaged.values():
            print(f"jaxrec: {error}", file=sys.stderr)

    def _path(self, step: int) -> Path:
        return (self.directory / str(step)).absolute()

    def _metadata(self, step: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The record of a checkpoint, and the metadata of the arrays of each part."""
        try:
            metadata = ocp.checkpointables_metadata(self._path(step))
            record, parts = metadata.custom_metadata, metadata.metadata
        except Exception as error:
            raise self._damaged(step, error) from error
        record = dict(record) if isinstance(record, dict) else {}
        if record.get("format") not in _READABLE:
            kind = CheckpointError if "format" in record else DamagedCheckpointError
            raise kind(
                f"the checkpoint of step {step} under {self.directory} is damaged, or was not written by jaxrec, or by "
                f"another version of it: expected format {FORMAT}, got {record.get('format')}; {self._without(step)}"
            )
        if record["format"] == FORMAT and record.pop("digest", None) != _record_digest(record):
            raise self._damaged(step, ValueError("its record is not what was saved"))
        if record["format"] == 1 and isinstance(parts.get("state"), dict):
            parts = {
                part: {
                    name.removeprefix(prefix): x
                    for name, x in parts["state"].items()
                    if name.startswith(prefix)
                }
                for part, prefix in _FORMAT_1_PREFIX.items()
            }
        return record, parts

    def _arrays(self, step: int, parts: Mapping[str, Any], part: str) -> dict[str, Any]:
        """Metadata of the arrays of a part."""
        arrays = parts.get(part)
        if not isinstance(arrays, dict):
            raise self._damaged(step, ValueError(f"the list of the arrays of its {part} cannot be read"))
        return arrays

    def _restore(
        self,
        targets: Mapping[str, Any],
        step: int,
        tables: Callable[[], Mapping[str, int]],
        table_rows: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        record, parts = self._metadata(step)
        expected = {part: flatten(target) for part, target in targets.items()}

        def mismatches(tables: Mapping[str, int]) -> list[str]:
            return [
                problem
                for part, arrays in expected.items()
                for problem in _mismatches(part, arrays, self._arrays(step, parts, part), tables, table_rows)
            ]

        # Which axes count items is read off the shapes of two models, for which most checkpoints need not wait.
        problems = mismatches({}) and mismatches(tables())
        if problems:
            examples = "\n  ".join(sorted(problems)[:8])
            raise CheckpointError(
                f"the checkpoint of step {step} under {self.directory} does not fit this configuration "
                f"({len(problems)} arrays differ):\n  {examples}\nUse the configuration that the run was started with."
            )
        try:
            loaded = _load(self._path(step), expected, record["format"])
        except Exception as error:
            raise self._damaged(step, error) from error
        if record["format"] == FORMAT:
            named = {f"{part}/{name}": x for part, arrays in loaded.items() for name, x in arrays.items()}
            digests = record.pop("arrays")
            changed = [name for name, digest in content_digests(named).items() if digests[name] != digest]
            if changed:
                raise self._damaged(
                    step, ValueError(f"the content of {sorted(changed)[0]} is not what was saved")
                )
        trees = {
            part: jax.tree_util.tree_unflatten(
                jax.tree_util.tree_structure(targets[part]), [loaded[part][name] for name in expected[part]]
            )
            for part in targets
        }
        return trees, record

    def _damaged(self, step: int, error: Exception) -> DamagedCheckpointError:
        return DamagedCheckpointError(
            f"the checkpoint of step {step} under {self.directory} is damaged: {_in_short(error)}; {self._without(step)}"
        )

    def _without(self, step: int) -> str:
        """Advice on how to continue without the checkpoint of ``step``."""
        others = [s for s in self.steps() if s != step]
        return f"the checkpoint before it is that of step {others[-1]}" if others else "start the run anew"


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run, for writing: the newest few, and the best by the validation metric.

    Saving is asynchronous: `save` returns once the arrays are copied. A process killed in the middle of a save leaves
    the previous checkpoint as the latest. Damaged checkpoints are moved to ``damaged-checkpoints`` beside
    ``directory`` as soon as they are found.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Open ``directory``, or make it.

        Raises:
          CheckpointError: it cannot be made or read.
        """
        super().__init__(directory)
        self._set_aside({step: error for step in self.steps() if (error := self._unreadable(step))})
        self._verified = False
        self._parts: tuple[str, ...] = ()
        self._pending: Any = None
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory.absolute(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_policies.AnyPreservationPolicy(
                    [
                        _policies.LatestN(keep),
                        _policies.BestN(n=1, get_metric_fn=lambda metrics: metrics["score"]),
                    ]
                ),
                cleanup_tmp_directories=True,
            )
        except Exception as error:
            raise CheckpointError(
                f"cannot open the checkpoints under {self.directory}: {_in_short(error)}. "
                "Check the permissions and the free space"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not hasattr(self, "_orbax"):
            return super().steps()
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, parts: Mapping[str, Any], record: Mapping[str, Any], score: float) -> None:
        """Begin to save the trees ``parts`` and the JSON ``record``.

        Args:
          step: of the checkpoint.
          parts: trees of arrays by name.
          record: anything that JSON can represent.
          score: the validation metric (greater is better).

        Raises:
          CheckpointError: this save, or the one before it, failed; complete checkpoints are untouched.
        """
        flat = {part: flatten(tree) for part, tree in parts.items()}
        named = {f"{part}/{name}": x for part, arrays in flat.items() for name, x in arrays.items()}
        full = json_safe({"format": FORMAT, **record, "arrays": content_digests(named)})
        full["digest"] = _record_digest(full)
        self.wait()
        self._parts = tuple(flat)
        try:
            self._pending = self._orbax.save_checkpointables_async(
                step, flat, metrics={"score": score}, custom_metadata=full
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Return once everything is on disk.

        Raises:
          CheckpointError: a save failed, or what it wrote cannot be read back.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()  # ends the thread that Orbax starts for each save, and closes its event loop
            self._orbax.wait()
        except Exception as error:
            raise self._failed(error) from error
        if not self._verified and self.steps():
            # Whatever is wrong with this path or this disk shows in the first checkpoint.
            step = self.steps()[-1]
            parts = self._metadata(step)[1]
            for part in self._parts:
                self._arrays(step, parts, part)
            self._verified = True

    def _failed(self, error: Exception) -> CheckpointError:
        try:
            self._orbax.reload()
            last = self.steps()[-1:]
        except Exception:
            last = []
        intact = f"the checkpoint of step {last[0]} is intact" if last else "no earlier checkpoint exists"
        return CheckpointError(
            f"could not save a checkpoint under {self.directory}: {_in_short(error)}. "
            f"Check the free space and the permissions; {intact}, and the run can be resumed from it."
        )

    def _report(self, damaged: Mapping[int, DamagedCheckpointError]) -> None:
        super()._report(damaged)
        self._set_aside(damaged)

    def _set_aside(self, damaged: Mapping[int, Exception]) -> None:
        """Move damaged checkpoints away, so that the run can save these steps again."""
        if not damaged or not is_first():
            return
        aside = self.directory.parent / "damaged-checkpoints"
        aside.mkdir(exist_ok=True)
        for step in damaged:
            number = sum(1 for path in aside.iterdir() if path.name.split("-")[0] == str(step))
            (self.directory / str(step)).rename(aside / (f"{step}-{number}" if number else str(step)))
            print(f"jaxrec: moved the damaged checkpoint of step {step} to {aside}", file=sys.stderr)
        if hasattr(self, "_orbax"):
            self._orbax.reload()

    def _unreadable(self, step: int) -> Exception | None:
        """Reason why Orbax could not list the checkpoint: it opens all or none."""
        try:
            for name in ("_CHECKPOINT_METADATA", "metrics/metrics"):
                json.loads((self.directory / str(step) / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return error
        return None

    def close(self) -> None:
        """Wait for saves, then release the directory."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):
                self._orbax.close()


def _load(path: Path, expected: Mapping[str, Mapping[str, Any]], version: int) -> dict[str, dict[str, Any]]:
    # `restore` compares the shapes itself; only rows of zeros are cut off or added.
    options = ocp.options
    context = ocp.Context(
        array_options=options.ArrayOptions(
            loading=options.ArrayOptions.Loading(enable_padding_and_truncation=True)
        ),
        pytree_options=options.PyTreeOptions(
            loading=options.PyTreeOptions.Loading(partial_load=version == 1)
        ),
    )
    with context:
        if version == FORMAT:
            return ocp.load_checkpointables(path, {part: dict(arrays) for part, arrays in expected.items()})
        prefixed = {
            _FORMAT_1_PREFIX[part] + name: x
            for part, arrays in expected.items()
            for name, x in arrays.items()
        }
        flat = ocp.load_checkpointables(path, {"state": prefixed})["state"]
    return {
        part: {name: flat[_FORMAT_1_PREFIX[part] + name] for name in arrays}
        for part, arrays in expected.items()
    }


def _mismatches(
    part: str,
    expected: Mapping[str, Any],
    saved: Mapping[str, Any],
    tables: Mapping[str, int],
    table_rows: int,
) -> list[str]:
    """One line for each array of a part that is not as expected."""
    lines = [
        f"{part}/{name}: expected by this configuration, absent in the checkpoint"
        for name in expected
        if name not in saved
    ]
    lines += [
        f"{part}/{name}: in the checkpoint, unknown to this configuration"
        for name in saved
        if name not in expected
    ]
    for name in expected.keys() & saved.keys():
        want = (tuple(expected[name].shape), str(expected[name].dtype))
        have = (tuple(saved[name].shape), str(saved[name].dtype))
        axis = tables.get(f"{part}/{name}", -1)
        if axis >= 0 and len(want[0]) == len(have[0]) and have[0][axis] >= table_rows:
            have = ((*have[0][:axis], want[0][axis], *have[0][axis + 1 :]), have[1])
        if want != have:
            lines.append(
                f"{part}/{name}: expected {want[1]}{list(want[0])}, the checkpoint has {have[1]}{list(have[0])}"
            )
    return lines


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _in_short(error: BaseException) -> str:
    """The first line of what lies at the root of ``error``: TensorStore appends pages of its internal state."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [""])[0]
    text = text.split(" See full TensorStore details")[0][:300].rstrip(" .")
    return text or type(error).__name__


def json_safe(value: Any) -> Any:
    """``value`` as it comes back from JSON (tuples as lists, NumPy scalars as Python's)."""
    return json.loads(json.dumps(value, default=lambda x: x.item() if hasattr(x, "item") else str(x)))
