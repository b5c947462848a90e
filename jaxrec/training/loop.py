"""The training run, read from top to bottom: prepare, restore, train in chunks, validate, save, evaluate."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import stages

from jaxrec.config import RunConfig, check_importable, from_dict, save_config
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.usage import data_usage
from jaxrec.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteError,
)
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.files import as_word
from jaxrec.sharding import in_turn
from jaxrec.training import divergence
from jaxrec.training.checkpoint import CheckpointStore, abstract
from jaxrec.training.distributed import decided, highest, is_first
from jaxrec.training.feed import Chunk, ChunkFeed
from jaxrec.training.host_state import HostState
from jaxrec.training.initialize import Initialization, initialize_from
from jaxrec.training.item_codes import with_codes
from jaxrec.training.item_content import with_content
from jaxrec.training.logging import MetricsLog, ProgressBar, StopRequest
from jaxrec.training.run_directory import (
    check_directory_together,
    check_record,
    claim_directory_together,
    first_parameters,
    new_record,
    run_lock,
)
from jaxrec.training.setup import Schedule, TrainingSetup, prepare
from jaxrec.training.state import Params, TrainState
from jaxrec.training.step import StepMetrics, make_train_chunk

#: Share of the epochs asked for beyond which a run says that it has others.
NOTICEABLE = 0.1


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A trained model with its held-out ranks.

    Attributes:
      setup: data, encoder and configuration.
      params: best parameters by the validation metric, every array with a leading axis of seeds.
      valid: one `Evaluation` per seed; none where the run was not ranked.
      test: one `Evaluation` per seed; none where the run was not ranked.
      host_state: best steps and timing.
      workdir: the run directory, or None.
      steps: training steps done.
    """

    setup: TrainingSetup
    params: Params
    valid: list[Evaluation]
    test: list[Evaluation]
    host_state: HostState
    workdir: Path | None
    steps: int

    def seed_params(self, index: int = 0) -> Params:
        """The parameters of one seed."""
        return self.setup.sharding.seed_params(self.params, index)


class Validation(NamedTuple):
    """A validation of a run, for whoever follows it.

    Attributes:
      number: 1, 2, ...
      step: training steps done.
      scores: validation metric of each seed.
      finished: whether it is the last of the run.
    """

    number: int
    step: int
    scores: list[float]
    finished: bool


def _ignore(validation: Validation) -> None:
    """Nothing follows the run."""


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
    on_validation: Callable[[Validation], None] = _ignore,
    rank: bool = True,
) -> FitResult:
    """Train one model per seed and rank the held-out targets with the best parameters of each.

    Args:
      config: of the run; on resume it may differ from the saved one in `jaxrec.training.run_directory.RESUMABLE` alone:
        when to stop, the learning rate, and how and where the run computes.
      dataset: in place of the one that ``config.data`` names.
      workdir: run directory for the configuration, log, and checkpoints; None trains in memory.
      resume: continue the run in ``workdir``, to the same bits as if it had not been interrupted.
      overwrite: delete a run that is already in ``workdir``.
      progress: show a progress bar on standard error.
      on_validation: called after every validation; an error that it raises ends the run, which can be resumed.
      rank: rank the held-out targets at the end. Without it no test target is looked at.

    Raises:
      RunExistsError: ``workdir`` holds a run, and neither ``resume`` nor ``overwrite`` is set.
      CheckpointError: nothing to resume, or it belongs to other data, another configuration or precision.
      NonFiniteError: the loss stopped being finite.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    if workdir is not None:
        check_importable(config)
    with run_lock(None if workdir is None else Path(workdir)):
        return _train(
            config,
            dataset,
            workdir,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            on_validation=on_validation,
            rank=rank,
        )


#: The compiled chunk of steps, and its further arguments: which seeds are active, or nothing.
_Program = tuple[stages.Compiled, tuple[np.ndarray, ...]]


@dataclasses.dataclass
class _Progress:
    """The run so far; arrays have a leading axis of seeds."""

    state: TrainState
    best: Params
    host_state: HostState
    step: int = 0


def _train(
    config: RunConfig,
    dataset: SequenceDataset | None,
    workdir: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
    on_validation: Callable[[Validation], None],
    rank: bool,
) -> FitResult:
    """`train` in a run directory that no other process writes to."""
    # ---- the run directory, rejected before any compute
    directory = None if workdir is None else Path(workdir)
    source = first_parameters(config, directory)
    if directory is not None:
        check_directory_together(directory, config, resume, overwrite)
    elif resume:
        raise ConfigError("resume needs a workdir: expected the directory of a run, got None")

    # ---- data, model, and the state of every seed: fresh, resumed, or started from another run
    setup = prepare(config, dataset)
    store = _store(config, directory) if resume else None
    run, origin = _begin(setup, store, source)
    # Only now: a run that is refused neither deletes nor leaves anything, and a configuration is that of the run.
    if directory is not None and not resume:
        claim_directory_together(directory, config, resume, overwrite)
    _save_config(config, directory)
    store = store or _store(config, directory)
    metrics_log = MetricsLog(
        directory / "log.jsonl" if directory is not None and is_first() else None,
        run.step if resume else None,
    )
    if origin is not None:
        metrics_log.write(step=0, init_from=str(origin.source), copied=origin.copied, fresh=origin.fresh)
        if progress and is_first():
            print(f"initialised: {origin.summary()}", file=sys.stderr)
    _report_rate(metrics_log, run)

    # ---- the compiled program, and the feed that prepares its inputs
    schedule, host_state = setup.schedule, run.host_state
    finished = all(host_state.stopped) or run.step >= schedule.total_steps
    if progress and is_first():
        print(*_remarks(setup, run, finished), sep="", end="", file=sys.stderr)
    bar = ProgressBar(schedule.total_steps, run.step, progress and not finished and is_first())
    program = _train_chunk(setup)
    compiled = None
    shardings = setup.sharding.shardings()
    keep_best = jax.jit(_keep_best, out_shardings=None if shardings is None else shardings.params)
    last_saved = time.monotonic()
    score = float(np.mean(host_state.best)) if run.step else -1.0

    try:
        with StopRequest() as stop, _feed(setup, run, finished) as feed:
            while not finished:
                # ---- one chunk of steps on the device, while the host prepares the next
                chunk = feed.take()
                active = np.logical_not(host_state.stopped)
                # Seeds that have ended cost nothing; a run without such seeds has the program without the question.
                which = (active,) if config.training.ends_seeds else ()
                if compiled is None:
                    started = time.perf_counter()
                    compiled = program.lower(run.state, chunk.inputs, setup.resources, *which).compile()
                    host_state.compile_seconds += time.perf_counter() - started
                started = time.perf_counter()
                run.state, pending = compiled(run.state, chunk.inputs, setup.resources, *which)
                metrics = _of_active(jax.device_get(pending), active)
                seconds = time.perf_counter() - started + chunk.waited_seconds
                _check_finite(metrics, run, setup, store, source, (compiled, which))
                run.step += schedule.chunk_steps
                _account(host_state, chunk, metrics, seconds)
                _report(metrics_log, bar, metrics, run.step, schedule, seconds, chunk.waited_seconds)

                # ---- validation, early stopping, best parameters
                if run.step % schedule.evaluation_steps == 0:
                    started = time.perf_counter()
                    scores = _scores(setup, run, store, active)
                    improved = host_state.update(scores, run.step, config.training)
                    run.best = keep_best(improved, run.state.params, run.best)
                    host_state.evaluation_seconds += time.perf_counter() - started
                    score = float(np.mean(scores))
                    found = [x if on else None for x, on in zip(scores, active, strict=True)]
                    metrics_log.write(step=run.step, valid={config.metric: found}, best=list(host_state.best))
                    bar.advance(0, **{f"valid {config.metric}": f"{score:.4f}"})
                    finished = all(host_state.stopped) or run.step >= schedule.total_steps
                    due = time.monotonic() - last_saved >= config.training.checkpoint_seconds
                    if decided(due or finished):
                        _save(store, run, setup, score)
                        last_saved = time.monotonic()
                    on_validation(
                        Validation(run.step // schedule.evaluation_steps, run.step, scores, finished)
                    )

                # ---- a signal: save the state and say how to continue
                number = highest(stop.signal_number or 0)
                if number and not finished:
                    _save(store, run, setup, score)
                    if store is not None:
                        store.wait()
                    raise Interrupted(_farewell(run.step, schedule.total_steps, directory), number)
    finally:
        bar.close()
        if store is not None:
            store.close()

    # ---- held-out targets, with each seed's best parameters
    started = time.perf_counter()
    valid = _evaluate(setup, run.best, "valid") if rank else []
    test = _evaluate(setup, run.best, "test") if rank else []
    host_state.evaluation_seconds += time.perf_counter() - started
    return FitResult(setup, run.best, valid, test, host_state, directory, run.step)


def _save_config(config: RunConfig, directory: Path | None) -> None:
    """Write the configuration of a run that has a directory."""
    if directory is not None and is_first():
        save_config(config, directory / "config.json")


def _store(config: RunConfig, directory: Path | None) -> CheckpointStore | None:
    """Checkpoints of a run that has a directory."""
    if directory is None:
        return None
    return CheckpointStore(directory / "checkpoints", config.training.keep_checkpoints)


def _begin(
    setup: TrainingSetup, store: CheckpointStore | None, source: Path | None
) -> tuple[_Progress, Initialization | None]:
    """The state before the next step: restored from ``store``, or fresh, or from the parameters of the run ``source``."""
    config, sharding = setup.config, setup.sharding
    seeds = np.asarray(config.training.seeds, np.uint32)
    make_state = jax.jit(sharding.fresh, out_shardings=sharding.shardings())
    state = make_state(seeds)
    state = state._replace(params=with_content(state.params, setup.split, sharding, setup.known_users))
    resumed = store is not None and bool(store.steps())
    if source is None and not resumed:  # the others come with the codes of their parameters
        state = state._replace(params=with_codes(state.params, setup))
    best = jax.tree.map(jnp.copy, state.params)
    if store is not None and store.steps():
        check_record(store.record(), config, setup.dataset)
        _check_length(store.record()["step"], setup)
        targets = abstract({"state": state, "best": best})
        rows = setup.task.spec.n_items + 1
        parts, record = store.restore(targets, tables=sharding.tables, table_rows=rows)
        host_state = HostState.load(record)
        host_state.extend_patience(config.training, record["step"], setup.schedule.evaluation_steps)
        rates = [from_dict(record["config"]).optimizer.learning_rate, config.optimizer.learning_rate]
        if rates[0] != rates[1]:
            host_state.rate_changes.append([record["step"], *rates])
        return _Progress(parts["state"], parts["best"], host_state, record["step"]), None
    origin = None
    if source is not None:
        origin = initialize_from(source, state.params, setup)
        state = state._replace(params=origin.params)
        best = jax.tree.map(jnp.copy, state.params)
    return _Progress(state, best, HostState.start(len(seeds))), origin


def _check_length(step: int, setup: TrainingSetup) -> None:
    """Refuse to resume a run with fewer epochs than it has: its results would name a length that is not theirs."""
    schedule = setup.schedule
    if step > schedule.total_steps:
        raise CheckpointError(
            f"cannot resume with --training.epochs {setup.config.training.epochs:g}, which are {schedule.total_steps:,} "
            f"steps: the run has {step:,} already, {step / schedule.steps_per_epoch:.4g} epochs; leave it out, give a "
            "greater value, or start a new run"
        )


def _remarks(setup: TrainingSetup, run: _Progress, finished: bool) -> list[str]:
    """Lines before training: what it uses of the data, another length than asked for, or that nothing is left to train."""
    config, schedule, lines = setup.config, setup.schedule, []
    training = config.training
    if not run.step:
        lines += data_usage(
            setup.split,
            config.batches,
            remove_seen=config.evaluation.remove_seen,
            whole_sequences=config.task.whole_sequences,
        ).lines()
    epochs = schedule.total_steps / schedule.steps_per_epoch
    if abs(epochs - training.epochs) > NOTICEABLE * training.epochs:
        lines.append(
            f"--training.epochs {training.epochs:g} becomes {epochs:.1f}: a run ends with a validation, and one comes after "
            f"every {epochs / schedule.evaluations:.1f} epochs (--training.evaluate-every {training.evaluate_every:g})"
        )
    if finished:
        reason = (
            f"the run has its {schedule.total_steps:,} steps (--training.epochs {training.epochs:g})"
            if run.step >= schedule.total_steps
            else f"every model ended after {training.patience} validations without a new best (--training.patience)"
        )
        lines.append(f"nothing left to train: {reason}; give a greater value to go on")
    return [f"{line}\n" for line in lines]


def _report_rate(metrics_log: MetricsLog, run: _Progress) -> None:
    """Say, and write to the log, that a resumed run goes on with another learning rate."""
    for step, before, after in run.host_state.rate_changes[-1:]:
        line = {"step": run.step, "learning_rate_before": before, "learning_rate": after}
        if step != run.step:
            return
        if line not in metrics_log:  # a killed resumption may have written it
            metrics_log.write(**line)
        if is_first():
            print(
                f"jaxrec: from step {run.step} on with --optimizer.learning-rate {after:g}, until then {before:g}",
                file=sys.stderr,
            )


def _train_chunk(setup: TrainingSetup) -> stages.Wrapped:
    """The program of a chunk of steps, ready to be lowered."""
    training = setup.config.training
    over_seeds = training.over_seeds
    if over_seeds == "auto":
        over_seeds = "map" if jax.default_backend() == "cpu" else "vmap"
    return make_train_chunk(
        setup.task,
        setup.optimizer,
        setup.config.batches,
        over_seeds,
        training.accumulate_steps,
        setup.sharding,
    )


def _feed(setup: TrainingSetup, run: _Progress, finished: bool) -> ChunkFeed:
    """The inputs of all chunks that are left."""
    batches, steps = setup.config.batches, setup.schedule.chunk_steps
    left = 0 if finished else (setup.schedule.total_steps - run.step) // steps
    put, rows = setup.sharding.put(batches.batch_size), setup.sharding.local_rows(batches.batch_size)
    return ChunkFeed(setup.streams, run.host_state.positions, batches, steps, left, setup.host_log, put, rows)


def _of_active(metrics: Any, active: np.ndarray) -> StepMetrics:
    """Metrics [S, K], of which those of seeds that have ended are NaN."""
    loss, norm = (
        cast(Any, np.where(active[:, None], x, np.nan)) for x in (metrics.loss, metrics.gradient_norm)
    )
    return StepMetrics(loss, metrics.targets, norm)


def _rounded(values: Any) -> list[float | None]:
    """Means [S] of a chunk for the log: six places, None for a seed that has ended."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _account(host_state: HostState, chunk: Chunk, metrics: StepMetrics, seconds: float) -> None:
    """Add a chunk to the totals of the run."""
    host_state.positions = chunk.positions
    host_state.training_seconds += seconds
    host_state.waited_seconds += chunk.waited_seconds
    host_state.interactions += float(metrics.targets.sum())


def _report(
    metrics_log: MetricsLog,
    bar: ProgressBar,
    metrics: StepMetrics,
    step: int,
    schedule: Schedule,
    seconds: float,
    waited_seconds: float,
) -> None:
    """Write a chunk's metrics to the log and to the progress bar."""
    rate = float(metrics.targets.sum()) / seconds
    metrics_log.write(
        step=step,
        epoch=round(step / schedule.steps_per_epoch, 3),
        loss=_rounded(metrics.loss.mean(axis=1)),
        gradient_norm=_rounded(metrics.gradient_norm.mean(axis=1)),
        seconds=round(seconds, 4),
        waited_seconds=round(waited_seconds, 4),
        interactions_per_second=round(rate, 1),
    )
    bar.advance(schedule.chunk_steps, loss=f"{np.nanmean(metrics.loss):.3f}", rate=f"{rate:,.0f} int/s")


def _evaluate(
    setup: TrainingSetup,
    params: Params,
    split: Literal["valid", "test"],
    seeds: Iterable[int] | None = None,
) -> list[Evaluation]:
    """Ranks of a split's targets with the parameters of each seed, or of some."""
    cases = setup.split.cases(split)
    seeds = range(len(setup.config.training.seeds)) if seeds is None else seeds
    return [setup.evaluate(setup.sharding.seed_params(params, seed), cases) for seed in seeds]


def _save(store: CheckpointStore | None, run: _Progress, setup: TrainingSetup, score: float) -> None:
    """Write a checkpoint of the present step, unless there is one, or the run has no directory."""
    if store is None or decided(run.step in store.steps()):
        return
    record = new_record(run.step, setup.config, setup.dataset, run.host_state)
    store.save(run.step, {"state": run.state, "best": run.best}, record, score)


def _scores(
    setup: TrainingSetup, run: _Progress, store: CheckpointStore | None, active: np.ndarray
) -> list[float]:
    """The validation metric of each seed; of one that has ended, its best.

    Raises:
      NonFiniteError: parameters or scores are not finite: the last update before the validation was the one that broke them.
    """
    try:
        evaluations = iter(_evaluate(setup, run.state.params, "valid", np.flatnonzero(active).tolist()))
    except NonFiniteError as error:
        finding = divergence.broken_parameter(run.state.params, run.step)
        good = _good_step(store)
        raise NonFiniteError(
            f"the validation after step {run.step} failed, since {error}; {divergence.explanation(setup, finding)}; "
            f"{divergence.how_to_go_on(setup.config, _directory(store), good)}"
        ) from None
    return [
        float(next(evaluations).metrics[setup.config.metric]) if on else best
        for on, best in zip(active, run.host_state.best, strict=True)
    ]


def _good_step(store: CheckpointStore | None) -> int | None:
    """Step of the last complete checkpoint."""
    if store is None:
        return None
    store.wait()
    return store.steps()[-1] if store.steps() else None


def _directory(store: CheckpointStore | None) -> Path | None:
    return None if store is None else store.directory.parent


def _check_finite(
    metrics: StepMetrics,
    run: _Progress,
    setup: TrainingSetup,
    store: CheckpointStore | None,
    source: Path | None,
    program: _Program,
) -> None:
    """Raise `NonFiniteError` after a chunk whose loss or gradient is not finite: with the tensor, and how to go on."""
    bad = ~np.isfinite(metrics.loss) | ~np.isfinite(metrics.gradient_norm)
    bad &= np.logical_not(run.host_state.stopped)[:, None]
    if not bad.any():
        return
    index = int(np.argmax(bad.any(axis=0)))
    seed = int(np.argmax(bad[:, index]))
    step, seconds = run.step, run.host_state.training_seconds
    good = _good_step(store)
    if store is not None and good is not None:
        seconds -= HostState.load(store.record(good)).training_seconds
    finding = None
    if seconds <= divergence.REPLAY_SECONDS and jax.process_count() == 1:
        # Room for the state of the second run: that of the first is of no use any more.
        del run.state, run.best
        try:
            state, inputs = _replayed(setup, store if good is not None else None, source, program, step)
            finding = divergence.examine(setup, state, inputs, seed, step)
        except Exception as error:
            # The divergence must be told even where its cause cannot be found, as for want of memory.
            print(f"jaxrec: the first non-finite tensor was not found: {error!r:.200}", file=sys.stderr)
    raise NonFiniteError(
        f"loss or gradient stopped being finite at step {step + index + 1} (seed {setup.config.training.seeds[seed]}): loss "
        f"{metrics.loss[:, index].tolist()}, gradient norm {metrics.gradient_norm[:, index].tolist()}; "
        f"{divergence.explanation(setup, finding)}; {divergence.how_to_go_on(setup.config, _directory(store), good)}"
    )


def _replayed(
    setup: TrainingSetup,
    store: CheckpointStore | None,
    source: Path | None,
    program: _Program,
    step: int,
) -> tuple[TrainState, Any]:
    """The state after ``step`` steps, to the bit, from the last checkpoint or the start; and the next chunk's inputs.

    Of a seed that ended in between it is another state, which nobody asks for.
    """
    compiled, which = program
    again, _ = _begin(setup, store, source)
    with _feed(setup, again, False) as feed:
        while again.step < step:
            again.state = in_turn(compiled(again.state, feed.take().inputs, setup.resources, *which)[0])
            again.step += setup.schedule.chunk_steps
        return again.state, feed.take().inputs


def _farewell(step: int, total: int, directory: Path | None) -> str:
    if directory is None:
        return f"stopped at step {step} of {total}; nothing was saved, as the run has no workdir"
    place = as_word(directory)
    return (
        f"stopped at step {step} of {total} and saved; continue with: jaxrec train --workdir {place} --resume"
    )
