"""The part of `experiments.scaling.training_step` that needs several devices, in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.scaling.devices

For each mesh the same steps are run as on one device: how far parameters and losses are apart, the bytes of state that one
device holds, the compiler's temporary memory, and what one device sends in a step, read from the compiled program.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments.scaling.costs import Shape, parameters, step_cost
from experiments.scaling.steps import MIB
from experiments.scaling.training_step import configuration, dataset_of
from jaxrec.compilation import enable_compilation_cache
from jaxrec.data.sampler import Position
from jaxrec.sharding import MeshConfig
from jaxrec.training.feed import device_rows
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 4), (4, 2))
STEPS = 4
#: Traffic of one device in a ring of n, as a multiple of the result's bytes (of the operand's, for a reduce-scatter).
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Equality, memory and traffic on forced host devices.

    Attributes:
      quick: three meshes.
    """

    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def group_size(line: str) -> int:
    """Number of devices in one group of a collective; XLA writes groups in three ways."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        extents = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return int(np.prod([int(extents[axis]) for axis in re.findall(r"'(\w+)'", match.group(2))]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    raise ValueError(f"no replica_groups that this script can read in: {line.strip()[:300]}")


def collective_bytes(program: str) -> float:
    """Bytes that one device sends; what a loop repeats counts once, so the traffic of a chunk's loop is that of a step."""
    total = 0.0
    pattern = r"= (\(?[^()]*\)?) (" + "|".join(SENT) + r")(?:-start)?\(.*"
    for line in program.splitlines():
        match = re.search(pattern, line)
        if not match:
            continue
        size = 0
        for kind, extents in re.findall(r"(pred|[suf]\d+|bf16)\[([\d,]*)\]", match.group(1)):
            width = 1 if kind == "pred" else 2 if kind == "bf16" else int(kind[1:]) // 8
            size += width * int(np.prod([int(n) for n in extents.split(",") if n], dtype=np.int64))
        group = group_size(line)
        total += size * SENT[match.group(2)](group) if group > 1 else 0
    return total


def run(shape: Shape) -> tuple[dict[str, Any], Any, np.ndarray]:
    """(figures of one mesh, parameters for real items, losses of the steps)."""
    config = configuration(shape, STEPS, mesh=MeshConfig(data=shape.data, item=shape.item))
    # Dropout off: its masks are drawn for the batch as a whole, but this study is of what the mesh does to sums.
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dropout=0.0))
    setup = prepare(config, dataset_of(shape))
    sharding = setup.sharding
    rows, _ = setup.streams[0].take(Position(), STEPS * shape.rows)
    plan = sharding.put(shape.rows)(device_rows([rows], STEPS))
    initial = jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed))
    state = jax.jit(initial, out_shardings=sharding.shardings())(np.zeros(1, np.uint32))
    chunk = make_train_chunk(setup.task, setup.optimizer, config.batches, "map", sharding=sharding)
    compiled = chunk.lower(state, plan, setup.resources).compile()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    state, metrics = compiled(state, plan, setup.resources)
    params = jax.tree.map(np.asarray, state.params)
    params["items"]["table"] = params["items"]["table"][:, : shape.items + 1]  # a mesh pads the rows
    own = {
        "data": shape.data,
        "item": shape.item,
        "rows": shape.rows,
        "state_mib": held / MIB,
        "expected_state_mib": 12 * (parameters(shape)[0] / shape.item + parameters(shape)[1]) / MIB,
        "temporary_mib": temporary / MIB,
        "collective_mib": collective_bytes(compiled.as_text()) / MIB,
        "expected_collective_mib": step_cost(shape).collective_bytes / MIB,
    }
    return own, params, np.asarray(metrics.loss)


def main(options: Options) -> list[dict[str, Any]]:
    """All meshes against the first."""
    enable_compilation_cache()
    base = Shape(rows=16, length=16, width=32, items=400) if options.quick else Shape(items=4000)
    meshes = (MESHES[0], MESHES[1], MESHES[4]) if options.quick else MESHES
    results = []
    alone = None
    for data, item in meshes:
        figures, params, losses = run(dataclasses.replace(base, data=data, item=item))
        alone = (params, losses) if alone is None else alone
        apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, alone[0])
        figures["difference"] = max(jax.tree.leaves(apart))
        figures["loss_difference"] = float(np.abs(losses - alone[1]).max())
        results.append(figures)
    return results


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Options))))
