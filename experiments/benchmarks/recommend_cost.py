"""Peak memory and time of one ``jaxrec recommend``, before and after a change.

    git worktree add ../before d5fcdf3
    python -m experiments.benchmarks.recommend_cost --before ../before --record

Each case is a run directory with untrained parameters (what is read and computed does not depend on their values), written
by the code under test itself, so that every version reads its own format. Then ``python -m jaxrec recommend RUN --history
i1 i2 i3 -k 10`` runs in fresh processes: the least wall time and the greatest resident memory are reported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown

#: Users, items, and interactions per user.
CASES = {"ML-1M-sized": (6040, 3416, 165), "1,000,000 items": (2000, 1_000_000, 500)}

MAKE = """
import dataclasses, sys
from pathlib import Path
import jax, numpy as np
from jaxrec.data.dataset import SequenceDataset
from jaxrec.serving.recommender import save_catalogue
from jaxrec.training.checkpoint import CheckpointStore
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from jaxrec.presets import PRESETS
try:
    from jaxrec.config import save_config, to_dict
except ImportError:
    from jaxrec.training.config import save_config, to_dict

folder, users, items, length = Path(sys.argv[1]), *map(int, sys.argv[2:5])
log = np.resize(np.random.default_rng(0).permutation(items) + 1, users * length).astype(np.int32)
dataset = SequenceDataset(
    log, np.arange(users + 1) * length, user_ids=[f"u{u}" for u in range(users)],
    item_ids=[f"i{i}" for i in range(items)], timestamps=np.tile(np.arange(length), users).astype(np.int64),
    item_titles=[f"Title of item {i}" for i in range(items)],
)
config = PRESETS["sasrec"]()
config = dataclasses.replace(
    config,
    encoder=dataclasses.replace(config.encoder, width=64),
    batches=dataclasses.replace(config.batches, max_length=200),
)
setup = prepare(config, dataset)
whole = getattr(setup, "task", setup.encoder)
state = jax.jit(jax.vmap(lambda seed: initial_state(whole, setup.optimizer, seed)))(np.zeros(1, np.uint32))
folder.mkdir(parents=True)
save_config(config, folder / "config.json")
record = {"step": 1, "config": to_dict(config), "dataset": dataset.fingerprint, "ledger": {}}
store = CheckpointStore(folder / "checkpoints")
if hasattr(setup, "task"):
    store.save(1, {"state": state, "best": state.params}, record, 0.5)
    store.close()
    save_catalogue(dataset, folder, setup.split.item_counts)
else:
    store.save(1, (state, state.params), record, 0.5)
    store.close()
    save_catalogue(dataset, folder)
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    before: Annotated[Path, tyro.conf.arg(help="checkout of the version to compare with")]
    repeats: Annotated[int, tyro.conf.arg(help="processes per case and version")] = 5
    record: Annotated[bool, tyro.conf.arg(help="write experiments/results/recommend_cost.*")] = False


def measure(checkout: Path, run: Path, repeats: int) -> dict[str, Any]:
    """Least wall seconds and greatest resident MiB of ``jaxrec recommend``; the compilation cache is warm."""
    command = [
        sys.executable,
        "-m",
        "jaxrec",
        "recommend",
        str(run),
        "--history",
        "i1",
        "i2",
        "i3",
        "-k",
        "10",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", "HOME": str(run.parent)}
    seconds, peaks = [], []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True)
        out = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or len(json.loads(out.splitlines()[-1])["items"]) != 10:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        seconds.append(time.perf_counter() - begin)
        peaks.append(usage.ru_maxrss / 1024)
    return {"seconds": round(min(seconds[1:]), 2), "peak_mib": round(max(peaks[1:]), 1)}


def main(options: Options) -> None:
    """Measure every case with both versions."""
    here = Path(__file__).parents[2]
    results: dict[str, dict[str, Any]] = {}
    for case, sizes in CASES.items():
        for version, checkout in (("before", options.before.absolute()), ("after", here)):
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                subprocess.run(
                    [sys.executable, "-c", MAKE, str(run), *map(str, sizes)],
                    env={**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
                    cwd=checkout,
                    check=True,
                )
                results.setdefault(case, {})[version] = measure(checkout, run, options.repeats)
                print(case, version, results[case][version], flush=True)
    rows = [
        [case, version, f"{cost['seconds']:.2f}", f"{cost['peak_mib']:,.0f}"]
        for case, versions in results.items()
        for version, cost in versions.items()
    ]
    table = to_markdown(["case", "version", "seconds", "peak MiB"], rows)
    if options.record:
        write_record(
            "recommend_cost",
            {"cases": results},
            title="Cost of one recommendation from a fresh process",
            command=command_line("experiments.benchmarks.recommend_cost"),
            body=[table],
            notes=[
                "Least seconds and greatest memory of several fresh processes. Both versions ran in one session on a "
                "machine that other programs used, so only the memory is exact. Width 64, two layers, Adam; one CPU. "
                "Before (commit d5fcdf3) the whole training state was restored; now the best parameters alone are, and "
                "the digest of every array and of the catalogue is checked."
            ],
        )
    else:
        print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
