"""From a configuration to everything a run works with: data, model, compiled functions, and the plan of its steps."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrec.config import RunConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.load import load_dataset
from jaxrec.data.sampler import RowStream, share_of
from jaxrec.data.splits import EvaluationCases, Split, split_dataset
from jaxrec.data.transposed import item_user_rows
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.evaluate import Evaluation, evaluate_cases
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.models import ENCODERS, DataSpec, Encoder, EncoderConfig
from jaxrec.optim import trained_mask
from jaxrec.sharding import DATA, build_mesh
from jaxrec.tasks import MEMORY, TASKS, Resources, Task
from jaxrec.training.contract import check_rows, check_shapes
from jaxrec.training.feed import MOST_ADDRESSED, HostLog, RelativeSeconds, device_memory, is_resident
from jaxrec.training.shares import evaluate_shares, group_of_process, on_group
from jaxrec.training.state import Params
from jaxrec.training.state_sharding import StateSharding, on_mesh


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Division of a run into steps, chunks and validations.

    Attributes:
      chunk_steps: K, steps in one call of the compiled program.
      chunks_per_evaluation: calls between validations.
      evaluations: validations in the whole run, if it does not stop early.
      steps_per_epoch: a fraction, since batches straddle epochs.
    """

    chunk_steps: int
    chunks_per_evaluation: int
    evaluations: int
    steps_per_epoch: float

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if it does not stop early."""
        return self.evaluation_steps * self.evaluations

    @property
    def evaluation_steps(self) -> int:
        """Steps from one validation to the next."""
        return self.chunk_steps * self.chunks_per_evaluation


def schedule_steps(config: RunConfig, rows_per_epoch: int) -> Schedule:
    """Cut a run into equal chunks, so that one compilation serves them all; lengths round to the nearest."""
    training = config.training
    steps_per_epoch = rows_per_epoch / config.batches.batch_size
    interval = max(2, round(training.evaluate_every * steps_per_epoch))
    chunks = math.ceil(interval / training.chunk_steps)
    chunk_steps = max(2, math.ceil(interval / chunks))
    evaluations = max(1, round(training.epochs * steps_per_epoch / (chunk_steps * chunks)))
    return Schedule(chunk_steps, chunks, evaluations, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class ModelSetup:
    """Data and encoder of a run: what evaluation needs.

    Attributes:
      config: of the run; its mesh is that of the encoder.
      dataset: items and users.
      split: training part and cases.
      task: with the encoder, on its mesh.
      timestamps: int32[N], seconds since the first event, of the log or the user (or what is indexed like it), or None.
      resident: whether the log is on the device.
    """

    config: RunConfig
    dataset: SequenceDataset
    split: Split
    task: Task
    timestamps: Any
    resident: bool

    @property
    def mesh(self) -> Mesh | None:
        """Devices of the encoder, or None for a single one."""
        return None if self.encoder.shards is None else self.encoder.shards.mesh

    @property
    def encoder(self) -> Encoder:
        """The encoder that the task trains."""
        return self.task.encoder

    def evaluate(self, params: Params, cases: EvaluationCases) -> Evaluation:
        """Exact ranks over the whole catalogue for one seed's parameters.

        With several shares of the log (``batches.shares``) and several processes, each process ranks the cases of its part
        of the log and reads no other; all have all ranks.
        """
        group = group_of_process(self.mesh) if self.config.batches.shares > 1 else None
        known_items = self.split.item_counts > 0
        if group is None:
            ranker = self.ranker(params)
            return evaluate_cases(
                ranker, cases, self.dataset.items, self.config.evaluation,
                timestamps=self.timestamps, known_items=known_items,
            )  # fmt: skip
        places = self.split.train_starts[cases.users]
        rows = share_of(places, int(training_stops(self.config, self.split)[-1]), len(group.owners))
        return evaluate_shares(
            lambda: self.ranker(on_group(params, group.mesh), on_mesh(self.encoder, group.mesh), resident=False),
            cases, group.owners[rows], group.owner, self.dataset.items, self.config.evaluation,
            timestamps=self.timestamps, known_items=known_items,
        )  # fmt: skip

    def ranker(
        self, params: Params, encoder: Encoder | None = None, *, resident: bool | None = None
    ) -> EncoderRanker:
        """The encoder with one seed's parameters.

        Args:
          params: of one seed.
          encoder: in place of that of the task, on the devices of ``params``.
          resident: whether the log goes to the devices, in place of the run's own choice.
        """
        config = self.config
        resident = self.resident if resident is None else resident
        data = RankingData(self.dataset.fingerprint, self.split.item_counts, resident)
        forward = Forward(encoder or self.encoder, self.task.mask, self.task.query_token)
        return EncoderRanker.build(forward, params, config.batches, config.evaluation, data)


@dataclasses.dataclass(frozen=True)
class TrainingSetup(ModelSetup):
    """Everything that a training run is built from.

    Attributes:
      optimizer: of the run.
      streams: rows of the training part, one stream per seed.
      schedule: of the steps.
      resources: arrays that stay on the device.
      host_log: the log of a streamed run, or None where it is resident.
      sharding: placement of the training state.
      known_users: bool[U], users with a training sequence.
    """

    optimizer: optax.GradientTransformation
    streams: list[RowStream]
    schedule: Schedule
    resources: Resources
    host_log: HostLog | None
    sharding: StateSharding
    known_users: np.ndarray


def build_task(config: RunConfig, spec: DataSpec, mesh: Mesh | None = None) -> Task:
    """Build the task of a run with its encoder, whose item tables lie on ``mesh``."""
    if spec.vector_width and not config.encoder.reads_item_vectors:
        raise ConfigError(
            "--data.item-vectors needs an encoder that reads them: expected transformer, gru4rec or srgnn, without "
            f"--encoder.separate-output; got {_chosen(config.encoder)}. Leave the vectors out, or choose another"
        )
    _check_codes(config, spec)
    encoder = config.encoder.build(spec)  # names the option, where one of its own asks for times
    if config.encoder.needs_timestamps and not spec.has_timestamps:
        raise ConfigError(
            f"the encoder {type(config.encoder).__name__} reads the time of each interaction: expected a dataset with "
            "timestamps, got one without; choose another encoder, or load a log with a time column (--data.time-column)"
        )
    rows_per_group = getattr(getattr(config.encoder, "attention", None), "rows_per_group", 0)
    if mesh is not None and mesh.shape[DATA] > 1 and rows_per_group:
        raise ConfigError(
            "--encoder.attention.rows-per-group must be 0 where --mesh.data is above 1, since rows on several devices "
            f"cannot take turns; got {rows_per_group}"
        )
    check_shapes(encoder)
    return config.task.build(on_mesh(encoder, mesh), config.objective)


def build_optimizer(config: RunConfig, task: Task, steps: int) -> optax.GradientTransformation:
    """Build the optimiser of a run of ``steps``; it keeps nothing for parameters that are computed before training."""
    optimizer = config.optimizer.build(steps)
    has_memory = MEMORY in jax.eval_shape(task.init, jax.random.key(0))
    encoder = config.encoder
    untrained = task.spec.vector_width or encoder.item_codes.on or encoder.needs_users or has_memory
    return optax.masked(optimizer, trained_mask) if untrained else optimizer


def _chosen(encoder: EncoderConfig) -> str:
    """Name of an encoder for a message, with the option that makes it score against a table of its own."""
    apart = " with --encoder.separate-output" if getattr(encoder, "separate_output", False) else ""
    return f"{ENCODERS.label_of(type(encoder))}{apart}"


def _check_codes(config: RunConfig, spec: DataSpec) -> None:
    """Refuse item codes where items are something else, or where their sizes do not fit."""
    encoder, codes = config.encoder, config.encoder.item_codes
    if not codes.on:
        return
    if not encoder.reads_item_vectors:
        raise ConfigError(
            f"--encoder.item-codes.method {codes.method} needs an encoder that composes its items: expected transformer, "
            f"gru4rec or srgnn, without --encoder.separate-output; got {_chosen(encoder)}. Choose method none, or "
            "another encoder"
        )
    if spec.vector_width:
        raise ConfigError(
            f"--encoder.item-codes.method {codes.method} and --data.item-vectors exclude each other: an item is composed "
            "of codes or made of its vector; leave one of them out"
        )
    if config.training.init_items == "match" and config.training.init_from:
        raise ConfigError(
            "--training.init-items match cannot match items that are composed of codes: expected "
            f"--encoder.item-codes.method none, got {codes.method!r}; use --training.init-items same with the same dataset"
        )
    codes.check(encoder.width, spec.n_items)


def prepare_model(
    config: RunConfig, dataset: SequenceDataset | None = None, resident: bool | None = None
) -> ModelSetup:
    """Load, split, and build the encoder: nothing that only training needs.

    Args:
      config: of the run, with the mesh to work on.
      dataset: in place of the one that ``config.data`` names.
      resident: whether the log goes to the device; None = where it takes no more than its share of it.

    Raises:
      DataError: the data lack what the configuration asks for.
      ConfigError: the configuration contradicts itself or the devices.
    """
    dataset = load_dataset(config.data) if dataset is None else dataset
    part = config.batches.batch_size // config.training.accumulate_steps
    mesh = build_mesh(config.mesh, part, dataset.n_items)
    if max(config.evaluation.ks) > dataset.n_items:
        raise DataError(
            f"--evaluation.ks asks for lists of {max(config.evaluation.ks)}, but the catalogue has {dataset.n_items} items; "
            "choose shorter lists"
        )
    split = split_dataset(dataset, config.split)
    task = build_task(config, data_spec(config, dataset), mesh)
    if resident is None:
        size = 4 * len(dataset.items) * (1 + (dataset.timestamps is not None))
        share = config.training.resident_share * device_memory()
        few = len(dataset.items) <= MOST_ADDRESSED
        resident = config.training.feed != "streamed" and few and size <= share
    timestamps: Any = None
    if dataset.timestamps is not None:
        timestamps = RelativeSeconds(dataset.timestamps, dataset.offsets)
    if timestamps is not None and resident:
        timestamps = timestamps[:]
    return ModelSetup(config, dataset, split, task, timestamps, resident)


def prepare(config: RunConfig, dataset: SequenceDataset | None = None) -> TrainingSetup:
    """Load, split, build; nothing is trained, compiled or written yet.

    Args:
      config: of the run.
      dataset: in place of the one that ``config.data`` names.

    Raises:
      DataError: the data lack what the configuration asks for.
      ConfigError: the configuration contradicts itself or the devices.
    """
    _check_effect(config)
    for idle in config.idle_options().values():
        warnings.warn(idle.sentence, stacklevel=2)
    dataset = load_dataset(config.data) if dataset is None else dataset
    resident = is_resident(config.training, config.objective, dataset)
    model = prepare_model(config, dataset, resident)
    split, task, timestamps = model.split, model.task, model.timestamps
    split.check_cases()
    stops = training_stops(config, split)

    def stream(seed: int) -> RowStream:
        return RowStream(split.train_starts, stops, config.batches, seed)

    streams = [stream(seed) for seed in config.training.seeds]
    attention = getattr(config.encoder, "attention", None)
    if attention is not None:
        for message in attention.advice(split.train_stops - split.train_starts):
            warnings.warn(message, stacklevel=2)
    if (
        getattr(config.encoder, "similarity", "dot") == "cosine"
        and getattr(config.objective, "temperature", 0) == 1
    ):
        warnings.warn(
            "--encoder.similarity cosine scores items between -1 and 1, of which --objective.temperature 1 makes nearly "
            "equal probabilities: choose a temperature such as 0.05",
            stacklevel=2,
        )
    # An epoch is that of seed 0, whatever the seeds: a seed trains as long alone as beside others.
    first = next((each for each in streams if each.seed == 0), None) or stream(0)
    schedule = schedule_steps(config, first.rows_per_epoch)
    if config.optimizer.warmup_steps >= schedule.total_steps:
        warnings.warn(
            f"--optimizer.warmup-steps {config.optimizer.warmup_steps:,} is not below the {schedule.total_steps:,} steps of "
            "the run, so the learning rate never reaches its peak: choose fewer, or more --training.epochs",
            stacklevel=2,
        )
    optimizer = build_optimizer(config, task, schedule.total_steps)
    # Shapes alone, to reject before any compute what cannot work.
    sharding = StateSharding(task, optimizer)
    stacked = jax.eval_shape(sharding.fresh, jax.ShapeDtypeStruct((len(streams),), jnp.uint32)).params
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    if sharding.mesh is not None:
        check_rows(params, sharding.axes.params, sharding.mesh)
    config.objective.build(jax.eval_shape(task.encoder.item_table, params))
    return TrainingSetup(
        **vars(model),
        optimizer=optimizer,
        streams=streams,
        schedule=schedule,
        resources=sharding.resources(device_resources(config, split, timestamps, resident)),
        host_log=None if resident else HostLog(np.asarray(dataset.items), timestamps),
        sharding=sharding,
        known_users=stops - split.train_starts > 1,
    )


def _check_effect(config: RunConfig) -> None:
    """Refuse options that another section leaves without an effect, or without a meaning."""
    batches, task = config.batches, config.task
    chosen = {
        "--batches.targets last": batches.targets == "last",
        "--batches.prefix-targets all": batches.prefix_targets == "all",
    }
    listed = " and ".join(option for option, given in chosen.items() if given)
    if task.whole_sequences and listed:
        raise ConfigError(
            f"{listed} chooses among the next items of a sequence, and {type(task).__name__} makes targets of its own: "
            "expected a task that predicts next items; leave the option out, or choose --task next-item"
        )
    windows = batches.mode != "prefix" and batches.long_histories == "windows"
    if task.one_sequence_per_user and (windows or batches.mode == "prefix"):
        several = "--batches.long-histories windows" if windows else "--batches.mode prefix"
        raise ConfigError(
            f"--task {TASKS.label_of(type(task))} takes a user's state from the end of the user's training sequence: "
            f"expected one sequence of each user, got {several}, which gives several; use --batches.mode packed or padded "
            "with --batches.long-histories last"
        )
    if config.training.init_items == "match" and not (config.training.init_from or config.pretraining.preset):
        raise ConfigError(
            "--training.init-items match has no run to take items from: expected --init-from RUN too, got none; add it, or "
            "leave the option out to start from fresh parameters"
        )


def training_stops(config: RunConfig, split: Split) -> np.ndarray:
    """int64[U], end of each user's training part for the row stream, whose stretches of inputs end one before it.

    The last target is there; a task that reads whole sequences has an input in its place.
    """
    return split.train_stops + int(config.task.whole_sequences)


def data_spec(config: RunConfig, dataset: SequenceDataset) -> DataSpec:
    """Read off the sizes that a model for ``config`` is built for."""
    return DataSpec(
        n_items=dataset.n_items,
        max_length=config.batches.max_length,
        position_origin=config.batches.position_origin,
        n_users=dataset.n_users,
        n_attributes=0 if dataset.attributes is None else dataset.attributes.n_attributes,
        n_special=config.task.n_special,
        vector_width=dataset.vector_width,
        has_timestamps=dataset.timestamps is not None,
    )


def device_resources(config: RunConfig, split: Split, timestamps: Any, resident: bool) -> Resources:
    """Arrays on the device: those that samplers need, and the log if it is resident."""
    items, newest = split.dataset.items, config.task.users_per_item
    seen: dict[str, Any] = {}
    if config.objective.needs_seen:
        mask = split.training_mask
        users = np.repeat(np.arange(split.dataset.n_users), np.diff(split.dataset.offsets))[mask]
        values = items[mask]
        order = np.lexsort((values, users))
        users, values = users[order], values[order]
        distinct = np.append(True, (np.diff(users) > 0) | (np.diff(values) > 0))[: len(values)]
        users, values = users[distinct], values[distinct]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=split.dataset.n_users))])
        seen = {
            "seen_items": jnp.asarray(values, jnp.int32),
            "seen_offsets": jnp.asarray(offsets, jnp.int32),
        }
    return Resources(
        items=jnp.asarray(np.asarray(items), jnp.int32) if resident else None,
        timestamps=jnp.asarray(timestamps) if resident and timestamps is not None else None,
        item_counts=jnp.asarray(split.item_counts, jnp.float32),
        attributes=attribute_rows(split.dataset) if config.task.needs_attributes else None,
        item_users=jnp.asarray(item_user_rows(split, newest)) if newest else None,
        **seen,
    )


def attribute_rows(dataset: SequenceDataset) -> jax.Array:
    """Lay out the attributes of each item side by side: int32[V+1, M], ids 1..A, 0 = none.

    Raises:
      DataError: the dataset has no attributes, or an attribute id is out of range.
    """
    attributes = dataset.attributes
    if attributes is None:
        raise DataError(
            "the task learns from the attributes of items: expected a dataset with attributes, got one without; load an "
            "item table with --data.attribute-columns, or choose a task that needs none"
        )
    offsets, values = np.asarray(attributes.offsets), np.asarray(attributes.values)
    wrong = np.flatnonzero((values < 1) | (values > attributes.n_attributes))
    if len(wrong):
        item = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        raise DataError(
            f"attribute ids must be 1..{attributes.n_attributes}, got {values[wrong[0]]} for item "
            f"{dataset.item_ids[item - 1]!r} ({len(wrong)} such values)"
        )
    counts = np.diff(offsets)
    table = np.zeros((dataset.n_items + 1, max(1, int(counts.max(initial=0)))), np.int32)
    table[np.arange(table.shape[1])[None] < counts[:, None]] = values
    return jnp.asarray(table)
