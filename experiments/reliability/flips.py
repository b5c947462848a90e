"""Bit flips and truncations in every kind of file of a finished run: detected, harmless, or the checkpoint before it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from experiments.reliability.base import HISTORY, Base, as_text, opened, recommend
from experiments.reliability.trials import Answer, Trial, command

#: Kinds of files -> pattern inside a run.
KINDS = {
    "checkpoint arrays": "checkpoints/*/*/**/d/*",
    "checkpoint metadata": "checkpoints/*/**/_*",
    "checkpoint manifest": "checkpoints/*/**/manifest.ocdbt",
    "checkpoint, other files": "checkpoints/*/**/*s_*",
    "checkpoint score": "checkpoints/*/metrics/metrics",
    "catalogue": "catalogue/*",
    "counts of items": "item_counts.npy",
    "config.json": "config.json",
    "results.json": "results.json",
    "log.jsonl": "log.jsonl",
    "ranks": "ranks/*.npz",
}
#: Files that `recommend` does not read: `compare` and a resume are asked instead.
ANALYSED = ("results.json", "ranks")


def damage(rng: random.Random, path: Path) -> str:
    """Flip one bit of a file, or cut it off; return how."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.75 and content:
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        how = f"bit of byte {place} of {len(content)}"
    else:
        length = rng.randrange(len(content) + 1) if rng.random() < 0.8 else 0
        how = f"cut from {len(content)} to {length} bytes"
        del content[length:]
    path.write_bytes(bytes(content))
    return how


def _victims(rng: random.Random, run: Path, kind: str) -> list[Path]:
    """Files of a kind; of checkpoints those of the newest in three trials of four, since nothing asks for the others."""
    files = sorted(file for file in run.glob(KINDS[kind]) if file.is_file())
    if not files:
        raise RuntimeError(f"a run has no file of the kind {kind!r}: the pattern {KINDS[kind]!r} is outdated")
    steps = sorted(
        {int(file.relative_to(run).parts[1]) for file in files if file.is_relative_to(run / "checkpoints")}
    )
    if not steps or rng.random() < 0.25:
        return files
    newest = run / "checkpoints" / str(steps[-1])
    return [file for file in files if file.is_relative_to(newest)]


def trial(seed: int, shared: Path, number: int, folder: Path) -> Trial:
    """Damage one file of a copy of the run, and ask for an answer that reads it."""
    base = opened(shared, True)
    rng = random.Random(f"flips/{seed}/{number}")
    run = folder / "run"
    shutil.copytree(base.folder / "run", run)
    kind = list(KINDS)[number % len(KINDS)]
    path = rng.choice(_victims(rng, run, kind))
    how = f"{path.relative_to(run)}: {damage(rng, path)}"
    outcome, detail = judged(ask(kind, run, base), kind, base)
    return Trial(number, kind, outcome, f"{how}: {detail}"[:400])


#: Counts of items order the answer to an empty history.
EMPTY = "counts of items"


def ask(kind: str, run: Path, base: Base) -> Answer:
    """An answer from the damaged run."""
    if kind in ANALYSED:
        return command("compare", run, base.folder / "other", "--json", seconds=60)
    if kind == "log.jsonl":
        return command("train", "--workdir", run, "--resume", "--quiet", "--json", seconds=120)
    return recommend(run, history=() if kind == EMPTY else HISTORY)


def judged(answer: Answer, kind: str, base: Base) -> tuple[str, str]:
    """Refused, the same answer, an older checkpoint with a line that says so, or a failure."""
    if answer.problem:
        return answer.problem, answer.message
    if answer.status != 0:
        return "refused", answer.message
    if kind == "log.jsonl":
        return "same", "resumed"
    right = base.compared if kind in ANALYSED else base.popular if kind == EMPTY else base.recommended
    value = answer.value if kind in ANALYSED else answer.value["items"]
    spoke = "checkpoint" in answer.message and "damaged" in answer.message
    if as_text(value) == as_text(right):
        return ("fell back" if spoke else "same"), answer.message
    return ("fell back" if spoke else "wrong"), answer.message or f"another answer: {as_text(value)}"
