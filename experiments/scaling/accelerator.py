"""Checks and measurements on an accelerator: parity with a CPU, speed, and the costliest operations of a step.

    python -m experiments.scaling.accelerator --json

In order: (1) loss and gradients of every attention mechanism against a CPU process; (2) one compilation for a run; (3)
the default preset trained on the bundled data; (4) steps of ML-1M's shape in both precisions, packed and padded; (5) the
five costliest operations of a step; (6) attention mechanisms; (7) exact cross-entropy; (8) the lists of 10,000 users over
a million items. A section that fails is reported and the others run (exit status 1); one that would begin after
``--seconds`` is left out, and reported. On a CPU everything runs, too; ``--quick`` takes tiny shapes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import cross_entropy, evaluation
from experiments.record import command_line, write_record
from experiments.scaling.costs import Shape, measure_limits, seconds, spread, step_cost
from experiments.scaling.profiles import costliest
from experiments.scaling.steps import Program, random_histories
from experiments.variants import apply
from jaxrec.analysis.tables import to_markdown
from jaxrec.api import fit
from jaxrec.attention import ATTENTION
from jaxrec.config import RunConfig
from jaxrec.data.batches import gather_batch
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.packing import Sequences, pack
from jaxrec.models import DataSpec, TransformerConfig
from jaxrec.objectives import CrossEntropyConfig, LossInputs
from jaxrec.presets import PRESETS
from jaxrec.reporting.results import hardware, versions
from jaxrec.training import step as step_module
from jaxrec.training.loop import train

#: Largest error of a loss or gradient against the CPU, over the largest value of that array. float32 is compared with
#: products in full precision; "default" is what runs use, where an accelerator may round operands (TF32).
TOLERANCES = {"float32": 1e-4, "default": 2e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Check and measure this machine's accelerator.

    Attributes:
      seconds: no section begins after so many.
      quick: tiny shapes and two mechanisms: shows that everything runs.
      only: names of sections; empty = all.
      out: directory of the result and the profile; empty = runs/accelerator.
      reference: (used by the command itself) write the values of this process to a file and leave.
      json: print the result as one JSON object on the last line.
    """

    seconds: float = 480.0
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    only: tuple[str, ...] = ()
    out: str = "runs/accelerator"
    reference: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def mechanisms(options: Options) -> list[str]:
    """Names to check and measure, softmax first."""
    names = ["softmax", *(name for name in ATTENTION if name != "softmax")]
    return names[:2] if options.quick else names


def values(name: str, dtype: str, precision: str) -> dict[str, np.ndarray]:
    """Loss and gradients of a small encoder with the mechanism ``name``, dropout off, on this process's device."""
    n_items, length = 50, 16
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, length + 1, 12).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    log = generator.integers(1, n_items + 1, int((lengths + 1).sum())).astype(np.int32)
    times = np.cumsum(generator.integers(0, 1000, len(log))).astype(np.int32)
    plan = pack(Sequences(starts, lengths, np.arange(12, dtype=np.int32)), length)
    batch = gather_batch(plan, log, max_length=length, timestamps=times)
    config = TransformerConfig(
        width=16, layers=2, dropout=0.0, dtype=dtype, init_scale=0.3, attention=ATTENTION[name]()
    )
    encoder = config.build(DataSpec(n_items, length, has_timestamps=True))
    objective = CrossEntropyConfig(dtype=dtype)
    shapes = jax.eval_shape(lambda key: encoder.init(key, batch, False), jax.random.key(0))["params"]
    # Drawn by NumPy: the same on every device.
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * generator.standard_normal(x.shape), jnp.float32), shapes
    )

    def loss(params: Any) -> Any:
        hidden = encoder.apply({"params": params}, batch, False)
        inputs = LossInputs(
            hidden.reshape(-1, hidden.shape[-1]),
            encoder.item_table(params),
            jnp.asarray(batch.targets.reshape(-1)),
            jnp.asarray(batch.weights.reshape(-1)),
            jax.random.key(0),
        )
        total, weight = objective.build()(inputs)
        return total / weight

    with jax.default_matmul_precision(precision):
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    return {"loss": np.asarray(value), **{path: np.asarray(leaf) for path, leaf in flat.items()}}


def reference(options: Options, path: Path) -> None:
    """Write the values of all mechanisms on this CPU, in float32."""
    reference_values = {name: values(name, "float32", "highest") for name in mechanisms(options)}
    np.savez(
        path,
        **{f"{name}|{key}": value for name, own in reference_values.items() for key, value in own.items()},
    )


def parity(options: Options) -> dict[str, Any]:
    """Against a CPU process, mechanism by mechanism: the largest relative error, and whether it is tolerable."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        command = [sys.executable, "-m", "experiments.scaling.accelerator", "--reference", str(path)]
        subprocess.run(
            command + ["--quick"] * options.quick, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True
        )
        with np.load(path) as file:
            expected = dict(file)
    out: dict[str, Any] = {"tolerances": TOLERANCES, "mechanisms": {}}
    for name in mechanisms(options):
        errors = {}
        for kind, dtype, precision in (
            ("float32", "float32", "highest"),
            ("default", "float32", "default"),
            ("bfloat16", "bfloat16", "default"),
        ):
            here = values(name, dtype, precision)
            scale = max(float(np.abs(expected[f"{name}|{key}"]).max()) for key in here if key != "loss")
            errors[kind] = max(
                float(np.abs(value - expected[f"{name}|{key}"]).max())
                / (float(expected[f"{name}|loss"]) if key == "loss" else scale)
                for key, value in here.items()
            )
        fine = all(errors[kind] <= TOLERANCES[kind] for kind in errors)
        out["mechanisms"][name] = {**errors, "within_tolerance": fine}
    out["all_within_tolerance"] = all(row["within_tolerance"] for row in out["mechanisms"].values())
    return out


def one_compilation(options: Options) -> dict[str, Any]:
    """Traces of the step in a run of several chunks and epochs: must be one."""
    traces = []
    original = step_module.train_step

    def counted(*arguments: Any) -> Any:
        traces.append(1)
        return original(*arguments)

    step_module.train_step = counted
    try:
        train(PRESETS["smoke"](), small_histories() if options.quick else None, progress=False)
    finally:
        step_module.train_step = original
    return {"traces": len(traces), "one": len(traces) == 1}


def small_histories() -> SequenceDataset:
    """For quick runs."""
    return random_histories(np.full(150, 12), 60)


def preset(options: Options) -> dict[str, Any]:
    """The default preset on the bundled data, one seed."""
    dataset, name = (small_histories(), "smoke") if options.quick else (None, "sasrec")
    run = fit(dataset, name, progress=False)
    return {
        "HR@10": run.metrics["HR@10"],
        "NDCG@10": run.metrics["NDCG@10"],
        "timing": run.results["timing"],
        "training": run.results["training"],
    }


def ml1m(options: Options) -> tuple[RunConfig, SequenceDataset, int]:
    """The ML-1M preset on random histories of that dataset's size, and the steps of a measurement."""
    if options.quick:
        tiny = {"batches": {"batch_size": 4, "max_length": 16}, "encoder": {"width": 16, "layers": 1}}
        config = apply(PRESETS["sasrec-ml1m"](), tiny)
        return config, small_histories(), 2
    lengths = 20 + np.random.default_rng(0).geometric(1 / 145, 6040)
    return PRESETS["sasrec-ml1m"](), random_histories(lengths, 3416), 20


def measured(config: RunConfig, dataset: SequenceDataset, steps: int) -> dict[str, Any]:
    """The rate of a program over real interactions, and its memory."""
    started = time.perf_counter()
    program = Program(config, dataset, steps)
    compiling = time.perf_counter() - started
    took = spread(program.run, 3, steps)
    rate = program.targets / steps / took["median"]
    return {
        "step_seconds": took,
        "interactions_per_second": rate,
        "epoch_seconds": program.setup.streams[0].targets_per_epoch / rate,
        "build_seconds": compiling,
        **program.memory,
    }


def steps(options: Options) -> dict[str, Any]:
    """ML-1M's shape: float32 and bfloat16, packed and padded, against the limits of the device."""
    config, dataset, count = ml1m(options)
    limits = measure_limits(options.quick)
    out: dict[str, Any] = {"limits": limits._asdict()}
    for mode in ("packed", "padded"):
        for dtype in ("float32", "bfloat16"):
            own = apply(
                config,
                {"batches": {"mode": mode}, "encoder": {"dtype": dtype}, "objective": {"dtype": dtype}},
            )
            figures = measured(own, dataset, count)
            batches = own.batches
            shape = Shape(
                rows=batches.batch_size,
                length=batches.max_length,
                items=dataset.n_items,
                dtype=dtype,
                width=own.encoder.width,
                layers=own.encoder.layers,
            )
            cost, median = step_cost(shape), figures["step_seconds"]["median"]
            figures |= {
                "operations_per_second": cost.operations / median,
                "share_of_operations_limit": cost.operations / median / limits.operations_per_second(dtype),
                "bytes_per_second": cost.bytes / median,
                "share_of_bytes_limit": cost.bytes / median / limits.bytes_per_second,
                "expected_seconds": seconds(cost, shape, limits),
            }
            out[f"{mode} {dtype}"] = figures
    out["packed_over_padded"] = (
        out["packed float32"]["interactions_per_second"] / out["padded float32"]["interactions_per_second"]
    )
    out["bfloat16_over_float32"] = (
        out["packed bfloat16"]["interactions_per_second"] / out["packed float32"]["interactions_per_second"]
    )
    return out


def profile(options: Options) -> dict[str, Any]:
    """The five costliest operations of a step of ML-1M's shape."""
    config, dataset, count = ml1m(options)
    return costliest(Program(config, dataset, min(count, 5)), Path(options.out) / "profile")


def attention(options: Options) -> dict[str, Any]:
    """Steps of ML-1M's shape with each mechanism, as multiples of softmax attention's; measured in turns."""
    config, dataset, count = ml1m(options)
    programs = {
        name: Program(config.updated({"encoder.attention": ATTENTION[name]()}), dataset, count)
        for name in mechanisms(options)
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(4):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program.run())
            if number:
                times[name].append((time.perf_counter() - begin) / count)
    return {
        name: {
            "step_seconds": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, times["softmax"], strict=True)),
            **programs[name].memory,
        }
        for name, own in times.items()
    }


def loss(options: Options) -> dict[str, Any]:
    """Time and memory of the exact cross-entropy against the plain one."""
    cases = ((64, 300),) if options.quick else ((25_600, 3_417), (3_200, 1_000_000))
    return {"cases": [cross_entropy.measure(*case, repeats=1 if options.quick else 5) for case in cases]}


def scoring(options: Options) -> dict[str, Any]:
    """Lists of 20 for many users over a large catalogue."""
    return evaluation.top_20(64, 9000) if options.quick else evaluation.top_20()


SECTIONS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "parity": parity,
    "one-compilation": one_compilation,
    "preset": preset,
    "steps": steps,
    "profile": profile,
    "attention": attention,
    "cross-entropy": loss,
    "scoring": scoring,
}


def record(result: dict[str, Any], took: dict[str, str], folder: str) -> None:
    """Write the record as far as it has come."""
    rows = [[name, took[name], result[name].get("error", "complete")] for name in took]
    write_record(
        "accelerator",
        result,
        title="Checks and measurements on an accelerator",
        command=command_line(__spec__.name),
        body=[to_markdown(["section", "seconds", "outcome"], rows), "The figures are in `accelerator.json`."],
        folder=folder,
    )


def main(options: Options) -> dict[str, Any]:
    """Run the sections; what has failed or was left out is in ``failed`` and ``left_out``."""
    began = time.perf_counter()
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"unknown sections {sorted(unknown)}: expected some of {', '.join(SECTIONS)}")
    took: dict[str, str] = {}
    result: dict[str, Any] = {"hardware": hardware(), "versions": versions(), "failed": [], "left_out": []}
    for name in options.only or SECTIONS:
        started = time.perf_counter()
        if started - began > options.seconds:
            result["left_out"].append(name)
            continue
        try:
            result[name] = SECTIONS[name](options)
        except Exception as error:  # the other sections are worth having
            traceback.print_exc()
            result["failed"].append(name)
            result[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        took[name] = f"{time.perf_counter() - started:.0f}"
        record(result, took, options.out)
    result["seconds"] = time.perf_counter() - began
    record(result, took, options.out)
    return result


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    if arguments.reference:
        reference(arguments, Path(arguments.reference))
        sys.exit(0)
    outcome = main(arguments)
    print(json.dumps(outcome) if arguments.json else json.dumps(outcome, indent=1))
    sys.exit(1 if outcome["failed"] else 0)
