"""Memory and time of a training step before a run, from the compiler and from sizes alone: no data is read.

Memory is what the compiler reports for the very program that training runs (`jax.stages.Compiled.memory_analysis`), plus
the copy of the best parameters that a run holds beside it; the process itself and evaluation come on top. Time is a rough
lower bound: the matrix products of a step, counted in its program, at the rate that one large product reaches on this
device; elementwise work, gathers and evaluation come on top.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.config import RunConfig
from jaxrec.data.batches import Batch, BatchConfig
from jaxrec.data.packing import PackedRows
from jaxrec.errors import ConfigError
from jaxrec.nn.spec import DataSpec
from jaxrec.tasks import Resources
from jaxrec.training.feed import stays_resident
from jaxrec.training.setup import build_optimizer, build_task, schedule_steps
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class DataSizes:
    """Sizes of a dataset that memory depends on.

    Attributes:
      items: V.
      interactions: of the whole log.
      users: U.
      timestamps: whether the log has times.
      attributes: attributes of items, 0 = none.
      attributes_per_item: most attributes of one item.
    """

    items: int
    interactions: int
    users: int = 1
    timestamps: bool = False
    attributes: int = 0
    attributes_per_item: int = 0

    def __post_init__(self) -> None:
        for name in ("items", "interactions", "users"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}: expected a number of at least 1, got {getattr(self, name)}")
        if self.attributes and self.attributes_per_item < 1:
            raise ConfigError(
                f"--attributes-per-item: expected a number of at least 1, got {self.attributes_per_item}"
            )
        if self.attributes < 0:
            raise ConfigError(f"--attributes: expected a number of at least 0, got {self.attributes}")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory and time of training on one device; sizes in bytes.

    Attributes:
      batch_size: B, rows of a step.
      seeds: models of the run.
      parameters: of one model.
      parameter_bytes: parameters of all seeds.
      optimizer_bytes: state of the optimiser of all seeds, with seeds and step counts.
      best_bytes: copy of the best parameters of all seeds.
      input_bytes: plans or batches of two chunks of steps, the present and the next one.
      log_bytes: the log, counts and seen items on the device.
      temporary_bytes: activations, gradients and workspace, by the compiler.
      matmul_flops: floating-point operations of the matrix products of one step, all seeds.
      flops_per_second: rate of one large matrix product on this device.
      steps_per_epoch: about how many steps an epoch has; see `rows_per_epoch`.
      compile_seconds: time of compiling the program.
      device: name of the device.
      process_bytes: most host memory that this process has held, which compiled the program and trained nothing; None where
        the system does not say.
    """

    batch_size: int
    seeds: int
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    best_bytes: int
    input_bytes: int
    log_bytes: int
    temporary_bytes: int
    matmul_flops: float
    flops_per_second: float
    steps_per_epoch: float
    compile_seconds: float
    device: str
    process_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """Memory of the arrays of a run on the device while it trains; see `left_out`."""
        return (
            self.parameter_bytes
            + self.optimizer_bytes
            + self.best_bytes
            + self.input_bytes
            + self.log_bytes
            + self.temporary_bytes
        )

    @property
    def least_step_seconds(self) -> float:
        """Lower bound on the time of a step."""
        return self.matmul_flops / self.flops_per_second

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table."""
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        memory = {
            f"parameters ({self.parameters:,} each, {seeds})": self.parameter_bytes,
            "optimiser state": self.optimizer_bytes,
            "best parameters": self.best_bytes,
            "inputs of two chunks of steps": self.input_bytes,
            "log on the device": self.log_bytes,
            "activations, gradients, workspace": self.temporary_bytes,
            "total of these arrays": self.total_bytes,
        }
        return ["memory", "MiB"], [[name, f"{size / 2**20:,.1f}"] for name, size in memory.items()]

    def left_out(self) -> str:
        """Description of the memory that `total_bytes` leaves out."""
        own = ""
        if self.process_bytes is not None:
            size = f"{self.process_bytes / 2**20:,.0f} MiB"
            own = f" (this one, which compiled the program and trained nothing, took {size} of the host's memory)"
        return (
            f"The total counts the arrays of training on the device alone. On top come the process itself{own}, the log as "
            "the host reads it, and evaluation with its baselines, which scores the whole catalogue for some hundred users "
            "at a time; on a CPU all of these share one memory."
        )

    def sentence(self) -> str:
        """The lower bound on time, and what it leaves out."""
        step, epoch = self.least_step_seconds, self.least_step_seconds * self.steps_per_epoch
        return (
            f"A step has {self.matmul_flops / 1e9:,.2f} billion operations in matrix products: at least "
            f"{_seconds(step)} at the {self.flops_per_second / 1e9:,.0f} billion per second that one large product "
            f"reaches on {self.device}, or {_seconds(epoch)} for an epoch of about {self.steps_per_epoch:,.0f} steps. "
            "This is rough: other operations, input and evaluation come on top."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **dataclasses.asdict(self),
            "total_bytes": self.total_bytes,
            "least_step_seconds": self.least_step_seconds,
        }


#: Compiling for a CPU without these takes a little over half of the time; the memory is the same.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}


def estimate(
    config: RunConfig, sizes: DataSizes, rate: float | None = None, optimised: bool = True
) -> Estimate:
    """Compile the training program for sizes and report its memory and the operations of a step.

    Args:
      config: of the run; ``data`` and ``split`` are not used.
      sizes: of the dataset.
      rate: floating-point operations per second; None = measure one large matrix product.
      optimised: whether ``compile_seconds`` must be those of training; otherwise a CPU compiles faster.

    Raises:
      ConfigError: several devices, or a log that training cannot stream.
      DataError: a log that is too long to stay on the device.
    """
    if config.mesh.data != 1 or config.mesh.item != 1:
        raise ConfigError(
            f"--mesh.data, --mesh.item: estimates are for one device, got {config.mesh.data} and {config.mesh.item}; "
            "memory of item tables and batches divides by the devices of their axis"
        )
    spec = DataSpec(
        n_items=sizes.items,
        max_length=config.batches.max_length,
        position_origin=config.batches.position_origin,
        n_users=sizes.users,
        n_attributes=sizes.attributes,
        n_special=config.task.n_special,
        has_timestamps=sizes.timestamps,
    )
    task = build_task(config, spec)
    plan = schedule_steps(config, rows_per_epoch(config.batches, sizes))
    optimizer = build_optimizer(config, task, plan.total_steps)
    seeds = jax.ShapeDtypeStruct((len(config.training.seeds),), jnp.uint32)
    state = jax.eval_shape(jax.vmap(lambda seed: initial_state(task, optimizer, seed)), seeds)
    resident = stays_resident(config.training, config.objective, sizes.interactions, sizes.timestamps)
    resources = _resources(config, sizes, resident)
    inputs = _inputs(config, plan.chunk_steps, resident, sizes.timestamps)
    over_seeds = config.training.over_seeds
    if over_seeds == "auto":
        over_seeds = "map" if jax.default_backend() == "cpu" else "vmap"
    chunk = make_train_chunk(task, optimizer, config.batches, over_seeds, config.training.accumulate_steps)
    active = jax.ShapeDtypeStruct(seeds.shape, jnp.bool_)
    traced = chunk.trace(state, inputs, resources, *((active,) if config.training.ends_seeds else ()))
    started = time.perf_counter()
    options = None if optimised or jax.default_backend() != "cpu" else _UNOPTIMISED
    memory = traced.lower().compile(compiler_options=options).memory_analysis()
    compile_seconds = time.perf_counter() - started
    n_seeds = len(config.training.seeds)
    parameter_bytes = _bytes(state.params)
    return Estimate(
        batch_size=config.batches.batch_size,
        seeds=n_seeds,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) // n_seeds,
        parameter_bytes=parameter_bytes,
        optimizer_bytes=_bytes(state) - parameter_bytes,
        best_bytes=parameter_bytes,
        input_bytes=2 * _bytes(inputs),  # the next chunk is put on the device while the present one runs
        log_bytes=_bytes(resources),
        temporary_bytes=int(memory.temp_size_in_bytes),
        matmul_flops=matmul_flops(traced.jaxpr.jaxpr) / plan.chunk_steps,
        flops_per_second=matmul_rate() if rate is None else rate,
        steps_per_epoch=plan.steps_per_epoch,
        compile_seconds=round(compile_seconds, 2),
        device=str(jax.devices()[0].device_kind),
        process_bytes=_peak_bytes(),
    )


def largest_batch(
    config: RunConfig, sizes: DataSizes, memory: int, most: int = 1 << 16
) -> tuple[Estimate, int | None]:
    """Search the largest batch whose training fits a memory budget; both answers were compiled.

    Args:
      config: of the run; its batch size is where the search starts.
      sizes: of the dataset.
      memory: budget in bytes.
      most: batches above are not tried.

    Returns:
      Estimate of the largest batch that fits, and the smallest batch known not to fit (None = none was found).

    Raises:
      ConfigError: not even the smallest batch fits.
    """
    unit = math.lcm(config.training.accumulate_steps, config.batches.shares)
    most = max(unit, most // unit * unit)
    rate = matmul_rate()
    fits: Estimate | None = None
    too_large: int | None = None
    size = max(unit, config.batches.batch_size // unit * unit)
    for _ in range(12):
        trial = estimate(config.updated({"batches.batch_size": size}), sizes, rate, optimised=False)
        if trial.total_bytes <= memory:
            fits = trial
        else:
            too_large = size
        if (fits and fits.batch_size >= most) or (too_large is not None and too_large <= unit):
            break
        if fits and too_large and too_large - fits.batch_size <= _tolerance(fits, unit):
            break
        size = _next_size(trial, fits, too_large, memory, unit, most)
    if fits is None:
        raise ConfigError(
            f"--memory: {memory / GIB:.3g} GiB are too few for a batch of {too_large} rows of this model; use a narrower "
            "encoder, shorter histories (--batches.max-length), or a sampled objective"
        )
    return estimate(config.updated({"batches.batch_size": fits.batch_size}), sizes, rate), too_large


def _tolerance(fits: Estimate, unit: int) -> int:
    """Rows between a batch that fits and one that does not, at which the search ends: a sixteenth, in whole units."""
    return max(unit, fits.batch_size // 16 // unit * unit)


def _next_size(
    trial: Estimate, fits: Estimate | None, too_large: int | None, memory: int, unit: int, most: int
) -> int:
    """The next batch size to compile: in proportion to the memory left, strictly inside the known bounds."""
    fixed = trial.total_bytes - trial.temporary_bytes - trial.input_bytes
    per_row = (trial.temporary_bytes + trial.input_bytes) / trial.batch_size
    size = int(0.97 * max(memory - fixed, 0) / max(per_row, 1e-9)) // unit * unit
    low = unit if fits is None else fits.batch_size + unit
    high = most if too_large is None else too_large - unit
    if fits is not None and too_large is not None and not low < size < high:
        size = (low + high) // 2 // unit * unit
    if fits is not None and too_large is None:
        # Close to the budget, one batch that does not fit ends the search.
        size = max(size, fits.batch_size + _tolerance(fits, unit))
    return int(min(max(size, low), high))


def _peak_bytes() -> int | None:
    """Most memory that this process has held, where Linux says so."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def rows_per_epoch(batches: BatchConfig, sizes: DataSizes) -> int:
    """Rows of an epoch, about: all users are taken to have as many interactions, and packed rows to be full.

    Args:
      batches: how sequences are cut.
      sizes: of the dataset; where it names one user only, histories are taken to be as long as a row.
    """
    length = batches.max_length
    users = sizes.users if sizes.users > 1 else sizes.interactions / (length + 1)
    inputs = max(1.0, sizes.interactions / users - 1)
    if batches.mode == "prefix":
        short = min(inputs, length)
        positions = short * (short + 1) / 2 + max(0.0, inputs - length) * length
        positions *= min(1.0, (batches.prefixes_per_sequence or inputs) / inputs)
        return max(1, math.ceil(users * positions / length))
    used = inputs if batches.long_histories == "windows" else min(inputs, length)
    rows = math.ceil(used / length) if batches.mode == "padded" else used / length
    return max(1, math.ceil(users * rows))


def _resources(config: RunConfig, sizes: DataSizes, resident: bool) -> Resources:
    def of(length: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((length,), dtype)

    def of_items(width: int) -> Any:
        return jax.ShapeDtypeStruct((sizes.items + 1, width), jnp.int32)

    seen, newest = config.objective.needs_seen, config.task.users_per_item
    return Resources(
        items=of(sizes.interactions) if resident else None,
        timestamps=of(sizes.interactions) if resident and sizes.timestamps else None,
        item_counts=of(sizes.items + 1, jnp.float32),
        seen_items=of(sizes.interactions) if seen else None,
        seen_offsets=of(sizes.users + 1) if seen else None,
        attributes=of_items(max(1, sizes.attributes_per_item)) if config.task.needs_attributes else None,
        item_users=of_items(newest) if newest else None,
    )


def _inputs(config: RunConfig, steps: int, resident: bool, timestamps: bool) -> PackedRows | Batch:
    batches = config.batches
    leading = (len(config.training.seeds), steps, batches.batch_size)
    if resident:
        slots = 1 if batches.mode == "padded" else batches.max_segments
        return PackedRows(*(jax.ShapeDtypeStruct((*leading, slots), jnp.int32) for _ in range(3)))  # type: ignore[arg-type]
    ids = jax.ShapeDtypeStruct((*leading, batches.max_length), jnp.int32)
    weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    return Batch(ids, ids, ids, ids, weights, timestamps=ids if timestamps else None, users=ids)


def matmul_flops(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products of a program; a loop counts every trip that is known.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr`.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            )
            continue
        inner = [matmul_flops(program) for program in _programs(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            trips = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += trips * sum(inner)
    return total


def _programs(params: dict[str, Any]) -> list[Any]:
    """The programs inside the parameters of an equation."""
    programs = []
    for value in params.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(entry, "jaxpr"):
                programs.append(entry.jaxpr)
            elif hasattr(entry, "eqns"):
                programs.append(entry)
    return programs


def matmul_rate(width: int = 1024, seconds: float = 0.2) -> float:
    """Floating-point operations per second of one float32 matrix product of a given width on the default device."""
    square = jnp.ones((width, width), jnp.float32)

    @jax.jit
    def product(x: Array) -> Array:
        return x @ square

    product(square).block_until_ready()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        product(square).block_until_ready()
        count += 1
    return 2.0 * width**3 * count / (time.perf_counter() - started)


def _seconds(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"
