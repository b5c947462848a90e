"""Checkpoints: the one file that knows Orbax (its v1 interface).

A checkpoint is a flat dictionary of arrays, named by their path in the tree, and a JSON record: position in the data,
configuration, dataset fingerprint, early-stopping state. It restores onto any number of devices. What does not match
is refused in words before anything is loaded; Orbax itself would cast a dtype silently.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxrec.errors import CheckpointError
from jaxrec.training.trees import flatten

FORMAT = 1


_policies = ocp.training.preservation_policies


def abstract(tree: Any) -> Any:
    """Shape, dtype and sharding of each array of ``tree``: the target of a restore."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
    )


class CheckpointStore:
    """The checkpoints of one run, under ``directory``: the newest few, and the best by the validation metric.

    Saving is asynchronous: `save` returns once the arrays are copied. A process killed in the middle of a save leaves
    the previous checkpoint as the latest.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Open ``directory``, or make it.

        Raises:
          CheckpointError: it cannot be made or read, or the record of a checkpoint in it is damaged.
        """
        # Orbax logs what it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(
                f"{self.directory} is a file: expected the directory of a run's checkpoints"
            )
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory.absolute(),
                # `restore` compares the shapes itself; only rows of zeros are cut off or added.
                context=ocp.Context(
                    array_options=ocp.options.ArrayOptions(
                        loading=ocp.options.ArrayOptions.Loading(enable_padding_and_truncation=True)
                    )
                ),
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
                f"cannot open the checkpoints under {self.directory}: {_in_short(error)}. {self._advice()}"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, tree: Any, record: Mapping[str, Any], score: float) -> None:
        """Begin to save ``tree`` and the JSON ``record``; ``score`` is the validation metric (greater is better).

        Raises:
          CheckpointError: this save, or the one before it, failed; complete checkpoints are untouched.
        """
        record = {"format": FORMAT, **record}
        try:
            self._orbax.wait()
            self._orbax.save_async(step, flatten(tree), metrics={"score": score}, custom_metadata=record)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Return once everything is on disk; raises CheckpointError if a save failed."""
        try:
            self._orbax.wait()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        try:
            self._orbax.reload()
            last = self.steps()[-1:]
        except Exception:
            last = []
        kept = f"the checkpoint of step {last[0]} is intact" if last else "no earlier checkpoint exists"
        return CheckpointError(
            f"could not save a checkpoint under {self.directory}: {_in_short(error)}. "
            f"Check the free space and the permissions; {kept}, and the run can be resumed from it."
        )

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record of a checkpoint (the latest by default).

        Raises:
          CheckpointError: there is none, or it was not written by this library.
        """
        return self._metadata(step)[1]

    def _metadata(self, step: int | None) -> tuple[int, dict[str, Any], dict[str, Any]]:
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"no complete checkpoint under {self.directory}: expected the checkpoints of a run; start it anew"
            )
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} under {self.directory}; there are {steps}")
        try:
            metadata = self._orbax.metadata(step)
            record, arrays = metadata.custom_metadata, metadata.metadata
        except Exception as error:
            raise self._damaged(step, error) from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise CheckpointError(
                f"the checkpoint of step {step} under {self.directory} is damaged, or was not written by jaxrec, or by "
                f"another version of it: expected format {FORMAT}, got {record.get('format') if record else None}; "
                f"{self._without(step)}"
            )
        if not isinstance(arrays, dict):
            raise self._damaged(step, ValueError("the list of its arrays cannot be read"))
        return step, record, arrays

    def restore(
        self,
        target: Any,
        step: int | None = None,
        tables: Mapping[str, int] | None = None,
        table_rows: int = 0,
    ) -> tuple[Any, dict[str, Any]]:
        """The tree of a checkpoint, laid out as ``target`` (see `abstract`), and its record.

        Args:
          target: what to restore, onto any devices.
          step: which checkpoint; None = the latest.
          tables: arrays by name, and the axis of each that counts items: there rows of zeros may follow the first
            ``table_rows``, as many as the mesh of the run asked for.
          table_rows: V + 1.

        Raises:
          CheckpointError: an array is missing, unexpected, or of another shape or dtype (each is named); or damaged.
        """
        step, record, saved = self._metadata(step)
        wanted = flatten(target)
        problems = [
            f"{name}: expected by this configuration, absent in the checkpoint"
            for name in wanted
            if name not in saved
        ]
        problems += [
            f"{name}: in the checkpoint, unknown to this configuration"
            for name in saved
            if name not in wanted
        ]
        for name in wanted.keys() & saved.keys():
            want = (tuple(wanted[name].shape), str(wanted[name].dtype))
            have = (tuple(saved[name].shape), str(saved[name].dtype))
            if tables is not None and tables.get(name, -1) >= 0 and len(want[0]) == len(have[0]):
                axis = tables[name]
                if have[0][axis] >= table_rows:
                    have = ((*have[0][:axis], want[0][axis], *have[0][axis + 1 :]), have[1])
            if want != have:
                problems.append(
                    f"{name}: expected {want[1]}{list(want[0])}, the checkpoint has {have[1]}{list(have[0])}"
                )
        if problems:
            shown = "\n  ".join(sorted(problems)[:8])
            raise CheckpointError(
                f"the checkpoint of step {step} under {self.directory} does not fit this configuration "
                f"({len(problems)} arrays differ):\n  {shown}\nUse the configuration that the run was started with."
            )
        try:
            flat = self._orbax.load(step, wanted)
        except Exception as error:
            raise self._damaged(step, error) from error
        structure = jax.tree_util.tree_structure(target)
        return jax.tree_util.tree_unflatten(structure, [flat[name] for name in wanted]), record

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {step} under {self.directory} is damaged: {_in_short(error)}; {self._without(step)}"
        )

    def _without(self, step: int) -> str:
        """How to go on without the checkpoint of ``step``."""
        others = [s for s in self.steps() if s != step]
        return (
            f"delete {self.directory / str(step)} to go on from step {others[-1]}"
            if others
            else "start the run anew"
        )

    def _advice(self) -> str:
        """Which checkpoint cannot be read, where it is one: Orbax opens all or none."""
        for pattern in ("*/_CHECKPOINT_METADATA", "*/metrics/metrics"):
            for record in sorted(self.directory.glob(pattern)):
                try:
                    json.loads(record.read_text())
                except (OSError, ValueError):
                    checkpoint = self.directory / record.relative_to(self.directory).parts[0]
                    return f"The record {record} is damaged: delete {checkpoint} to use the others"
        return "Check the permissions and the free space"

    def close(self) -> None:
        """Wait for saves, then release the directory."""
        self.wait()
        self._orbax.close()


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
