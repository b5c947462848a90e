"""Host-side training state, saved with every checkpoint: stream positions, early stopping, timings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxrec.config import TrainingConfig
from jaxrec.data.sampler import Position
from jaxrec.errors import CheckpointError
from jaxrec.training.checkpoint import json_safe


@dataclasses.dataclass
class HostState:
    """State of a run beside its arrays; lists have one entry per seed.

    Attributes:
      positions: next row of each seed's stream.
      best: best validation metric so far.
      best_step: step at which it was reached.
      waited: validations since then.
      stopped: whether the seed ran out of patience; its best parameters are final.
      training_seconds: accumulated over resumptions, as the other times.
      evaluation_seconds: time of validations and of the final evaluation.
      compile_seconds: time of compiling the training program.
      interactions: real training targets processed, all seeds together: the sum of the weights of the loss, which is the
        number of rows in S3-Rec's pretraining and a sum of fractions with ``task.accuracy_power``.
      waited_seconds: part of ``training_seconds`` in which the device waited for data.
      rate_changes: [step, former rate, new rate] for each resumption with another learning rate.
    """

    positions: list[Position]
    best: list[float]
    best_step: list[int]
    waited: list[int]
    stopped: list[bool]
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    compile_seconds: float = 0.0
    interactions: float = 0.0
    waited_seconds: float = 0.0
    rate_changes: list[list[float]] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, seeds: int) -> HostState:
        """Return the state before the first step."""
        return cls([Position()] * seeds, [-math.inf] * seeds, [0] * seeds, [0] * seeds, [False] * seeds)

    @classmethod
    def load(cls, record: dict[str, Any]) -> HostState:
        """Read the state from a checkpoint's record, of this version or of version 0.1."""
        values = dict(record["host_state"] if "host_state" in record else record["ledger"])
        values["positions"] = [Position(*position) for position in values["positions"]]
        values["best"] = [-math.inf if best is None else best for best in values["best"]]
        return cls(**values)

    def dump(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's record, in which JSON cannot represent infinity."""
        best = [None if best == -math.inf else best for best in self.best]
        return json_safe({**dataclasses.asdict(self), "best": best})

    def extend_patience(self, training: TrainingConfig, step: int, interval: int) -> None:
        """Let seeds that ended go on where a resumed run has more patience than they ended with.

        Args:
          training: of the resumed run.
          step: of the checkpoint.
          interval: steps between validations.

        Raises:
          CheckpointError: such a seed ended before ``step``, so that its state is that of an earlier step.
        """
        for seed, stopped in enumerate(self.stopped):
            if not stopped or 0 < training.patience <= self.waited[seed]:
                continue
            end = self.best_step[seed] + self.waited[seed] * interval
            if end != step:
                raise CheckpointError(
                    f"cannot resume with --training.patience {training.patience}: seed {training.seeds[seed]} ended at step "
                    f"{end}, after {self.waited[seed]} validations without a new best, and the run went on to step {step} "
                    f"without it; give --training.patience {self.waited[seed]} at most, or start a new run"
                )
            self.stopped[seed] = False

    def update(self, scores: list[float], step: int, training: TrainingConfig) -> np.ndarray:
        """Take in the validation at ``step``.

        Args:
          scores: validation metric of each seed.
          step: steps done.
          training: patience, and which parameters are kept.

        Returns:
          bool[S], the seeds whose present parameters are to be kept.
        """
        improved = np.zeros(len(scores), bool)
        for seed, score in enumerate(scores):
            if self.stopped[seed]:
                continue
            if score > self.best[seed] or training.select == "last":
                improved[seed] = True
                self.best[seed], self.best_step[seed], self.waited[seed] = score, step, 0
            else:
                self.waited[seed] += 1
                self.stopped[seed] = bool(training.patience) and self.waited[seed] >= training.patience
        return improved
