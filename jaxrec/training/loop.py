"""The training run, read from top to bottom: prepare, restore, train in chunks, validate, save, report."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import RunConfig, TrainingConfig, check_importable, save_config, to_dict
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.sampler import Position
from jaxrec.errors import (
    ConfigError,
    Interrupted,
    NonFiniteError,
)
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.training.checkpoint import CheckpointStore, abstract, json_safe
from jaxrec.training.distributed import decided, highest, is_first
from jaxrec.training.feed import ChunkFeed
from jaxrec.training.initialize import Initialization, initialize_from
from jaxrec.training.logging import Journal, Progress, StopRequest
from jaxrec.training.run_directory import _claim_together, check_record, run_lock
from jaxrec.training.setup import TrainingSetup, prepare
from jaxrec.training.state import Params, initial_state
from jaxrec.training.step import StepMetrics, make_train_chunk


@dataclasses.dataclass
class Ledger:
    """What a run knows beside its arrays; saved with every checkpoint.

    Attributes:
      positions: each seed's place in its stream of rows.
      best: each seed's best validation metric so far, and the step it was reached at.
      waited: validations of each seed without a new best.
      stopped: seeds that ran out of patience; their best is final.
      training_seconds, evaluation_seconds, compile_seconds: accumulated over resumptions.
      waited_seconds: the part of ``training_seconds`` in which the device waited for data.
      interactions: real training targets processed, all seeds together.
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

    @classmethod
    def start(cls, seeds: int) -> Ledger:
        """Nothing done yet."""
        return cls([Position()] * seeds, [-math.inf] * seeds, [0] * seeds, [0] * seeds, [False] * seeds)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Ledger:
        """From a checkpoint's record."""
        values = dict(values, positions=[Position(*position) for position in values["positions"]])
        return cls(**dict(values, best=[-math.inf if b is None else b for b in values["best"]]))

    def dump(self) -> dict[str, Any]:
        """For a checkpoint's record (JSON knows no infinity)."""
        values = dataclasses.asdict(self)
        return json_safe(dict(values, best=[None if b == -math.inf else b for b in self.best]))

    def update(self, scores: list[float], step: int, training: TrainingConfig) -> np.ndarray:
        """Take in a validation; bool[S] says which seeds have parameters to keep."""
        improved, patience = np.zeros(len(scores), bool), training.patience
        for s, score in enumerate(scores):
            if self.stopped[s]:
                continue
            if score > self.best[s] or training.select == "last":
                improved[s] = True
                self.best[s], self.best_step[s], self.waited[s] = score, step, 0
            else:
                self.waited[s] += 1
                self.stopped[s] = bool(patience) and self.waited[s] >= patience
        return improved


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A trained model with its held-out ranks.

    Attributes:
      setup: data, encoder and configuration.
      params: best parameters by the validation metric, every array with a leading axis of seeds.
      valid, test: one `Evaluation` a seed.
      ledger: best steps and timing.
      workdir: the run directory, or None.
      steps: training steps done.
    """

    setup: TrainingSetup
    params: Params
    valid: list[Evaluation]
    test: list[Evaluation]
    ledger: Ledger
    workdir: Path | None
    steps: int

    def seed_params(self, index: int = 0) -> Params:
        """The parameters of one seed."""
        return self.setup.layout.seed_params(self.params, index)


def _keep_best(improved: jax.Array, params: Params, best: Params) -> Params:
    """For each seed the present parameters where they improved, else the best so far."""
    return jax.tree.map(
        lambda new, old: jnp.where(improved.reshape((-1,) + (1,) * (new.ndim - 1)), new, old), params, best
    )


def train(
    config: RunConfig,
    dataset: SequenceDataset | None = None,
    workdir: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train one model a seed and rank the held-out targets with the best parameters of each.

    Args:
      config: of the run; on resume it may differ from the saved one only in when to stop.
      dataset: in place of the one that ``config.data`` names.
      workdir: run directory for the configuration, log, and checkpoints; None trains in memory.
      resume: continue the run in ``workdir``, to the same bits as if it had not been interrupted.
      overwrite: delete a run that is already in ``workdir``.
      progress: show a progress bar on standard error.

    Raises:
      RunExistsError: ``workdir`` holds a run, and neither ``resume`` nor ``overwrite`` was asked for.
      CheckpointError: nothing to resume, or it belongs to other data, another configuration or precision.
      NonFiniteError: the loss stopped being finite.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    if workdir is not None:
        check_importable(config)
    with run_lock(None if workdir is None else Path(workdir)):
        return _train(config, dataset, workdir, resume=resume, overwrite=overwrite, progress=progress)


def _train(
    config: RunConfig,
    dataset: SequenceDataset | None,
    workdir: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> FitResult:
    """`train` in a run directory that no other process writes to."""
    # ---- the run directory, refused before any compute
    directory = None if workdir is None else Path(workdir)
    if directory is not None:
        _claim_together(directory, config, resume, overwrite)
    elif resume:
        raise ConfigError("resume needs a workdir: expected the directory of a run, got None")

    # ---- data, model, and the state of every seed
    setup = prepare(config, dataset)
    layout, shardings = setup.layout, setup.layout.shardings()
    seeds = np.asarray(config.training.seeds, np.uint32)
    make_state = jax.jit(
        jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)), out_shardings=shardings
    )
    state = make_state(seeds)
    keep_best = jax.jit(_keep_best, out_shardings=None if shardings is None else shardings.params)
    best = jax.tree.map(jnp.copy, state.params)
    ledger = Ledger.start(len(seeds))
    step = 0

    # ---- resume
    store, restored = None, False
    if directory is not None:
        if is_first():
            save_config(config, directory / "config.json")
        store = CheckpointStore(directory / "checkpoints", config.training.keep_checkpoints)
        if resume and store.steps():
            record = store.record()
            check_record(record, config, setup.dataset)
            parts, record = store.restore(abstract({"state": state, "best": best}), **layout.tables())
            state, best = parts["state"], parts["best"]
            ledger, step, restored = Ledger.load(record["ledger"]), record["step"], True
    # ---- or start from another run's parameters
    origin: Initialization | None = None
    if config.training.init_from and not restored:
        origin = initialize_from(Path(config.training.init_from), state.params, setup)
        state = state._replace(params=origin.params)
        best = jax.tree.map(jnp.copy, state.params)
        if progress and is_first():
            print(f"initialised: {origin.summary()}", file=sys.stderr)

    log = directory / "log.jsonl" if directory is not None and is_first() else None
    journal = Journal(log, step if resume else None)
    if origin is not None:
        journal.write(step=0, init_from=str(origin.source), copied=origin.copied, fresh=origin.fresh)

    # ---- compile
    plan, k = setup.plan, setup.plan.chunk_steps
    over_seeds = config.training.over_seeds
    if over_seeds == "auto":
        over_seeds = "map" if jax.default_backend() == "cpu" else "vmap"
    chunk = make_train_chunk(
        setup.task,
        setup.optimizer,
        config.batches,
        over_seeds,
        config.training.accumulate_steps,
        layout,
    )

    def save(score: float) -> None:
        if store is not None and not decided(step in store.steps()):
            record = {
                "step": step,
                "config": to_dict(config),
                "dataset": setup.dataset.fingerprint,
                "ledger": ledger.dump(),
            }
            store.save(step, {"state": state, "best": best}, record, score)

    last_saved = time.monotonic()
    score = float(np.mean(ledger.best)) if step else -1.0
    finished = all(ledger.stopped) or step >= plan.total_steps
    bar = Progress(plan.total_steps, step, progress and not finished and is_first())
    compiled = None
    left = 0 if finished else (plan.total_steps - step) // k
    size = config.batches.batch_size
    put, own = layout.put(size), layout.own_rows(size)
    feed = ChunkFeed(setup.streams, ledger.positions, config.batches, k, left, setup.host_log, put, own)
    try:
        with StopRequest() as stop, feed:
            while not finished:
                # ---- one chunk of steps on the device, while the host prepares the next
                supply = feed.take()
                if compiled is None:
                    started = time.perf_counter()
                    compiled = chunk.lower(state, supply.inputs, setup.resources).compile()
                    ledger.compile_seconds += time.perf_counter() - started
                started = time.perf_counter()
                state, pending = compiled(state, supply.inputs, setup.resources)
                ledger.positions = supply.positions
                metrics: StepMetrics = jax.device_get(pending)
                seconds = time.perf_counter() - started + supply.waited_seconds
                ledger.training_seconds += seconds
                ledger.waited_seconds += supply.waited_seconds
                ledger.interactions += float(metrics.targets.sum())
                _check_finite(metrics, step, config, store)
                step += k
                journal.write(
                    step=step,
                    epoch=round(step / plan.steps_per_epoch, 3),
                    loss=[round(float(x), 6) for x in metrics.loss.mean(axis=1)],
                    gradient_norm=[round(float(x), 6) for x in metrics.gradient_norm.mean(axis=1)],
                    seconds=round(seconds, 4),
                    waited_seconds=round(supply.waited_seconds, 4),
                    interactions_per_second=round(float(metrics.targets.sum()) / seconds, 1),
                )
                bar.advance(
                    k,
                    loss=f"{metrics.loss.mean():.3f}",
                    rate=f"{metrics.targets.sum() / seconds:,.0f} int/s",
                )

                # ---- validation, early stopping, best parameters
                if step % (k * plan.chunks_per_evaluation) == 0:
                    started = time.perf_counter()
                    evaluations = [
                        setup.evaluate(layout.seed_params(state.params, s), setup.split.valid)
                        for s in range(len(seeds))
                    ]
                    scores = [float(evaluation.metrics[config.metric]) for evaluation in evaluations]
                    improved = ledger.update(scores, step, config.training)
                    best = keep_best(improved, state.params, best)
                    ledger.evaluation_seconds += time.perf_counter() - started
                    score = float(np.mean(scores))
                    journal.write(step=step, valid={config.metric: scores}, best=list(ledger.best))
                    bar.advance(0, **{f"valid {config.metric}": f"{score:.4f}"})
                    finished = all(ledger.stopped) or step >= plan.total_steps
                    due = time.monotonic() - last_saved >= config.training.checkpoint_seconds
                    if decided(due or finished):
                        save(score)
                        last_saved = time.monotonic()

                # ---- a signal: save what is done and say how to go on
                number = highest(stop.signal_number or 0)
                if number and not finished:
                    save(score)
                    if store is not None:
                        store.wait()
                    raise Interrupted(_farewell(step, plan.total_steps, directory), number)
    finally:
        bar.close()
        if store is not None:
            store.close()

    # ---- held-out targets, with each seed's best parameters
    started = time.perf_counter()
    valid = [setup.evaluate(layout.seed_params(best, s), setup.split.valid) for s in range(len(seeds))]
    test = [setup.evaluate(layout.seed_params(best, s), setup.split.test) for s in range(len(seeds))]
    ledger.evaluation_seconds += time.perf_counter() - started
    return FitResult(setup, best, valid, test, ledger, directory, step)


def _check_finite(metrics: StepMetrics, step: int, config: RunConfig, store: CheckpointStore | None) -> None:
    bad = ~np.isfinite(metrics.loss) | ~np.isfinite(metrics.gradient_norm)
    if not bad.any():
        return
    index = int(np.argmax(bad.any(axis=0)))
    seed = config.training.seeds[int(np.argmax(bad[:, index]))]
    if store is not None:
        store.wait()
    steps = store.steps() if store is not None else []
    good = (
        f"the last good checkpoint is that of step {steps[-1]}" if steps else "no checkpoint was written yet"
    )
    raise NonFiniteError(
        f"loss or gradient stopped being finite at step {step + index + 1} (seed {seed}): loss "
        f"{metrics.loss[:, index].tolist()}, gradient norm {metrics.gradient_norm[:, index].tolist()}; {good}. "
        "Lower optimizer.learning_rate or set optimizer.clip_norm"
    )


def _farewell(step: int, total: int, directory: Path | None) -> str:
    if directory is None:
        return f"stopped at step {step} of {total}; nothing was saved, as the run has no workdir"
    return f"stopped at step {step} of {total} and saved; continue with: jaxrec train --workdir {directory} --resume"
