"""Scaling of the training step: time and memory against users, items, length, width, depth, query positions, devices.

    python -m experiments.scaling.training_step --json
    python -m experiments.scaling.training_step --axes batch catalogue --out runs/scaling

Each measurement is compared with the prediction of the simple model of `experiments.scaling.costs` from the limits of the
machine. Forced host devices share the cores of one processor: for them this study shows that results agree and what memory
and traffic a device has, and no speed. What the model says of larger meshes is marked as a prediction.

Writes ``experiments/results/scaling_<backend>.{json,md,png}``. Compiled programs are kept, so a second run measures at
once: run it a first time to compile, and again on a quiet machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments.record import command_line, write_record
from experiments.scaling.costs import (
    Limits,
    Shape,
    measure_limits,
    parameters,
    resident_bytes,
    seconds,
    spread,
    step_cost,
    temporary_bytes,
)
from experiments.scaling.steps import MIB, Program, random_histories
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import ATTENTION
from jaxrec.compilation import enable_compilation_cache
from jaxrec.config import RunConfig, TrainingConfig
from jaxrec.data.batches import BatchConfig
from jaxrec.data.dataset import SequenceDataset
from jaxrec.models import TransformerConfig
from jaxrec.objectives import CrossEntropyConfig, SampledSoftmaxConfig

BASE = Shape()
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("rows", (8, 16, 32, 64, 128)),
    "length": ("length", (25, 50, 100, 200, 500, 1000, 2000)),
    "width": ("width", (32, 64, 128, 256, 512)),
    "depth": ("layers", (1, 2, 4, 8)),
    "catalogue": ("items", (1000, 4000, 16_000, 64_000, 256_000, 1_000_000)),
    "sampled catalogue": ("items", (10_000, 100_000, 1_000_000, 10_000_000)),
    "users": ("users", (1000, 10_000, 100_000, 1_000_000)),
    "query positions": ("query_positions", (1, 2, 5, 10)),
}
#: What an axis changes of the base beside its own field: ten million items fit a machine in narrow vectors.
BESIDE: dict[str, dict[str, int]] = {"sampled catalogue": {"negatives": 256, "width": 16}}
#: Of the prediction: devices like the one measured, with links of so many bytes per second (an assumption).
LINK_BYTES_PER_SECOND = 50e9
MESHES = ((1, 1), (8, 1), (64, 1), (256, 1), (1, 8), (8, 8), (32, 8))


@dataclasses.dataclass(frozen=True)
class Options:
    """A scaling study.

    Attributes:
      axes: some of batch, length, width, depth, catalogue, "sampled catalogue", users, "query positions", devices;
        empty = all.
      repeats: measurements of each point, of which the median, the least and the most are reported.
      steps: steps of a measurement.
      quick: two points an axis, tiny shapes: shows that everything runs.
      out: where to write, without an ending; empty = ``experiments/results/scaling_<backend>``.
      json: print the result as one JSON object.
    """

    axes: tuple[str, ...] = ()
    repeats: int = 5
    steps: int = 4
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    out: str = ""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def dataset_of(shape: Shape) -> SequenceDataset:
    """Histories that fill every row: each user has L + 3 interactions, of which two are held out."""
    return random_histories(np.full(shape.users or 4 * shape.rows, shape.length + 3), shape.items)


def configuration(shape: Shape, steps: int, **sections: Any) -> RunConfig:
    """The run whose steps have this shape."""
    mechanism, options = "softmax", {"heads": shape.heads}
    if shape.query_positions:
        mechanism, options = "miq", {"heads": shape.heads, "query_window": shape.query_positions}
    return RunConfig(
        batches=BatchConfig(mode="padded", batch_size=shape.rows, max_length=shape.length),
        encoder=TransformerConfig(
            width=shape.width,
            layers=shape.layers,
            ffn_width=shape.ffn_width,
            dtype=shape.dtype,
            attention=ATTENTION[mechanism](**options),
        ),
        objective=SampledSoftmaxConfig(dtype=shape.dtype, n_negatives=shape.negatives, sampler="uniform")
        if shape.negatives
        else CrossEntropyConfig(dtype=shape.dtype),
        training=TrainingConfig(chunk_steps=max(2, steps)),
        **sections,
    )


def measured(shape: Shape, limits: Limits, options: Options) -> dict[str, Any]:
    """One point: measured, and expected."""
    program = Program(configuration(shape, options.steps), dataset_of(shape), options.steps)
    took = spread(program.run, options.repeats, options.steps)
    cost = step_cost(shape)
    expected = seconds(cost, shape, limits)
    tokens = shape.rows * shape.length
    return {
        "shape": dataclasses.asdict(shape),
        "seconds": took,
        "interactions_per_second": tokens / took["median"],
        "memory": program.memory,
        "expected": {
            **cost._asdict(),
            "seconds": expected,
            "state_mib": 12 * sum(parameters(shape)) / MIB,
            "temporary_mib": temporary_bytes(shape) / MIB,
            "resident_mib": resident_bytes(shape, shape.length + 3) / MIB,
        },
        "expected_over_measured": expected / took["median"],
        "operations_per_second": cost.operations / took["median"],
    }


def points(axis: str, quick: bool) -> list[Shape]:
    """The shapes along an axis, through the base."""
    field, values = AXES[axis]
    base = dataclasses.replace(BASE, rows=4, length=12, width=16, items=200) if quick else BASE
    chosen = [max(1, value // 8) for value in values[:2]] if quick else values
    return [dataclasses.replace(base, **{**BESIDE.get(axis, {}), field: value}) for value in chosen]


def predictions(limits: Limits) -> list[dict[str, Any]]:
    """Of larger meshes: strong scaling (the batch of the base grown once) and weak scaling (so much for each device)."""
    rows = []
    shape = dataclasses.replace(BASE, rows=2048, length=200, items=1_000_000)
    for data, item in MESHES:
        devices = data * item
        for kind, batch in (("strong", shape.rows), ("weak", shape.rows // 64 * data)):
            own = dataclasses.replace(shape, rows=batch, data=data, item=item)
            cost = step_cost(own)
            took = seconds(cost, own, limits, LINK_BYTES_PER_SECOND if devices > 1 else 0.0)
            rows.append(
                {
                    "prediction": kind,
                    "data": data,
                    "item": item,
                    "rows": batch,
                    "seconds": took,
                    "interactions_per_second": batch * own.length / took,
                    "collective_bytes": cost.collective_bytes,
                    "state_mib_a_device": 12 * (parameters(own)[0] / item + parameters(own)[1]) / MIB,
                }
            )
    return rows


def forced_devices(quick: bool) -> list[dict[str, Any]]:
    """Run the study of devices in a process with eight forced host devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    command = [sys.executable, "-m", "experiments.scaling.devices", *(["--quick"] if quick else [])]
    finished = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def main(options: Options) -> dict[str, Any]:
    """Measure all axes and write the records."""
    enable_compilation_cache()
    names = [*AXES, "devices"]
    unknown = set(options.axes) - set(names)
    if unknown:
        raise SystemExit(f"unknown axes {sorted(unknown)}: expected some of {', '.join(names)}")
    chosen = options.axes or tuple(names)
    limits = measure_limits(options.quick)
    result: dict[str, Any] = {"limits": limits._asdict(), "axes": {}}
    for axis in chosen:
        if axis != "devices":
            result["axes"][axis] = [measured(s, limits, options) for s in points(axis, options.quick)]
            print(f"{axis}: measured", file=sys.stderr, flush=True)
    if "devices" in chosen:
        result["devices"] = forced_devices(options.quick)
    result |= {
        "predictions": predictions(limits),
        "link_bytes_per_second": LINK_BYTES_PER_SECOND,
        "options": dataclasses.asdict(options),
    }
    out = Path(options.out or f"experiments/results/scaling_{jax.default_backend()}")
    write_record(
        out.name,
        result,
        title="Scaling of the training step",
        command=command_line(__spec__.name),
        body=report(result, out.name),
        folder=out.parent,
    )
    plot(result, out.with_name(f"{out.name}.png"))
    return result


def report(result: dict[str, Any], name: str) -> list[str]:
    """Paragraphs and tables of the record."""
    limits = result["limits"]
    lines = [
        "Padded batches without padding, exact cross-entropy, Adam, float32; the base has "
        + ", ".join(f"{field} {value}" for field, value in dataclasses.asdict(BASE).items())
        + ". Expected: operations over the rate of a large product plus bytes over the rate of a copy, as measured here: "
        f"{limits['float32_operations_per_second'] / 1e9:,.0f} GFLOP/s in float32, "
        f"{limits['bfloat16_operations_per_second'] / 1e9:,.0f} in bfloat16, {limits['bytes_per_second'] / 1e9:,.1f} GB/s.",
    ]
    for axis, measurements in result["axes"].items():
        field = AXES[axis][0]
        table = [
            [
                f"{point['shape'][field]:,}",
                f"{1000 * point['seconds']['median']:.1f} ({1000 * point['seconds']['least']:.1f} to "
                f"{1000 * point['seconds']['most']:.1f})",
                f"{1000 * point['expected']['seconds']:.1f}",
                f"{point['interactions_per_second']:,.0f}",
                f"{point['operations_per_second'] / 1e9:,.0f}",
                f"{point['memory']['state_mib']:.1f} ({point['expected']['state_mib']:.1f})",
                f"{point['memory']['temporary_mib']:.1f} ({point['expected']['temporary_mib']:.1f})",
                f"{point['memory']['resident_mib']:.1f} ({point['expected']['resident_mib']:.1f})",
            ]
            for point in measurements
        ]
        head = [
            field,
            "ms per step",
            "expected ms",
            "interactions/s",
            "GFLOP/s",
            "state MiB (expected)",
            "temporary MiB (expected)",
            "log MiB (expected)",
        ]
        beside = ", ".join(f"{name} {value}" for name, value in BESIDE.get(axis, {}).items())
        lines += [
            f"## {axis.capitalize()}",
            *([f"With {beside}."] if beside else []),
            to_markdown(head, table),
        ]
    if "devices" in result:
        lines += [
            "## Devices",
            "Eight forced host devices on one processor: equality, memory and traffic, **no speed**. Difference: "
            "largest of any parameter after the steps, against one device; bytes are for one device, from the compiled "
            "program. (Over data it sends more than expected: it reduces the table's gradients as input and as candidates "
            "apart.)",
            to_markdown(
                [
                    "data x item",
                    "rows",
                    "difference",
                    "loss difference",
                    "state MiB",
                    "temporary MiB",
                    "collectives MiB",
                    "expected",
                ],
                [
                    [
                        f"{row['data']} x {row['item']}",
                        row["rows"],
                        f"{row['difference']:.1e}",
                        f"{row['loss_difference']:.1e}",
                        f"{row['state_mib']:.2f}",
                        f"{row['temporary_mib']:.1f}",
                        f"{row['collective_mib']:.2f}",
                        f"{row['expected_collective_mib']:.2f}",
                    ]
                    for row in result["devices"]
                ],
            ),
        ]
    lines += [
        "## Predictions (not measured)",
        f"The same model for devices with these limits and links of {result['link_bytes_per_second'] / 1e9:.0f} GB/s (an "
        "assumption): 1,000,000 items, L = 200. Strong: 2,048 rows in all; weak: 32 rows for each device along data.",
        to_markdown(
            [
                "scaling",
                "data x item",
                "rows",
                "ms per step",
                "interactions/s",
                "collective MiB",
                "state MiB per device",
            ],
            [
                [
                    row["prediction"],
                    f"{row['data']} x {row['item']}",
                    f"{row['rows']:,}",
                    f"{1000 * row['seconds']:,.0f}",
                    f"{row['interactions_per_second']:,.0f}",
                    f"{row['collective_bytes'] / MIB:,.1f}",
                    f"{row['state_mib_a_device']:,.0f}",
                ]
                for row in result["predictions"]
            ],
        ),
        f"![]({name}.png)",
    ]
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot time above and memory below, one column per axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = result["axes"]
    if not axes:
        return
    figure, panels = plt.subplots(2, len(axes), figsize=(2.6 * len(axes), 5), squeeze=False)
    for column, (axis, measurements) in enumerate(axes.items()):
        x = [point["shape"][AXES[axis][0]] for point in measurements]
        time, memory = panels[0][column], panels[1][column]
        median = [1000 * point["seconds"]["median"] for point in measurements]
        reach = [
            [1000 * abs(point["seconds"][end] - point["seconds"]["median"]) for point in measurements]
            for end in ("least", "most")
        ]
        time.errorbar(x, median, reach, marker="o", label="measured")
        time.plot(x, [1000 * p["expected"]["seconds"] for p in measurements], "--", label="expected")
        for part, colour in (("temporary", "C0"), ("state", "C1"), ("resident", "C2")):
            key, label = f"{part}_mib", "log" if part == "resident" else part
            memory.plot(x, [p["memory"][key] for p in measurements], color=colour, marker="o", label=label)
            memory.plot(x, [p["expected"][key] for p in measurements], "--", color=colour)
        for panel in (time, memory):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
        memory.set_xlabel(axis)
    panels[0][0].set_ylabel("ms per step")
    panels[1][0].set_ylabel("MiB")
    panels[0][0].legend()
    panels[1][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    outcome = main(arguments)
    if arguments.json:
        print(json.dumps(outcome))
