"""Reliability campaign, with seeds and counts.

    python -m experiments.reliability --parts kills inputs flips limits --minutes 60 --record reliability

Parts: ``kills`` ends runs by SIGKILL and resumes them, ``inputs`` gives bad files, options and arguments, ``flips`` damages
the files of a finished run, ``limits`` takes away disk and descriptors. Every finished trial is a line in ``--workdir``; the
same command at the same commit continues there. Without ``--minutes`` every part runs to its count.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.reliability.base import cache_environment

PARTS = ("kills", "inputs", "flips", "limits")
PLANNED = {"kills": 1_000, "inputs": 10_000, "flips": 500, "limits": 100}


@dataclasses.dataclass(frozen=True)
class Options:
    """Run parts of the campaign, and write the record of all that is finished.

    Attributes:
      parts: of kills, inputs, flips, limits.
      kills: number of SIGKILLs.
      inputs: number of bad inputs.
      flips: number of flips and truncations.
      limits: number of runs under a limit.
      seed: determines every trial together with its number.
      minutes: for each part; 0 = to the end.
      workdir: folder of the trials and of the compiled programs.
      record: name of the record to write; empty = print only.
      notes: paragraphs of the record.
    """

    parts: tuple[str, ...] = PARTS
    kills: int = PLANNED["kills"]
    inputs: int = PLANNED["inputs"]
    flips: int = PLANNED["flips"]
    limits: int = PLANNED["limits"]
    seed: int = 0
    minutes: float = 0.0
    workdir: Annotated[Path, tyro.conf.arg(help="folder of the trials and of the compiled programs")] = Path(
        "runs/reliability"
    )
    record: str = ""
    notes: tuple[str, ...] = ()


def main(options: Options) -> dict[str, Any]:
    """Run the parts; return the counts of everything in the folder."""
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise SystemExit(f"unknown parts {unknown}: expected some of {', '.join(PARTS)}")
    # Before JAX is imported: every process of the campaign shares the compiled programs.
    os.environ.update(cache_environment(options.workdir / "compiled"))
    from experiments.reliability import flips, inputs, kills, limits
    from experiments.reliability.trials import TrialLog, run_trials
    from jaxrec.reporting.results import versions

    commit = versions().get("commit", "none")
    folder, seed = (options.workdir / commit).absolute(), options.seed
    logs = {part: TrialLog(folder / f"{part}-{seed}.jsonl") for part in PARTS}
    seconds = 60 * options.minutes if options.minutes else float("inf")
    if "kills" in options.parts:
        kills.kills(seed, options.kills, seconds, folder / "kills", logs["kills"])
    if "limits" in options.parts:
        limits.limits(seed, options.limits, seconds, folder / "limits", logs["limits"])
    if "inputs" in options.parts:
        target = partial(inputs.trial, seed, folder / "inputs-base", True)
        run_trials(target, logs["inputs"], options.inputs, seconds, folder / "inputs")
    if "flips" in options.parts:
        target = partial(flips.trial, seed, folder / "flips-base")
        run_trials(target, logs["flips"], options.flips, seconds, folder / "flips")
    trials = {part: log.read() for part, log in logs.items()}
    result = {part: _counts(trials[part], getattr(options, part)) for part in PARTS if trials[part]}
    if trials["kills"]:
        result["kills"]["phases"] = kills.phases_of(trials["kills"])
    report(result, options)
    return result


def _counts(trials: list[Any], planned: int) -> dict[str, Any]:
    """Counts of a part by kind and outcome, and the first failures in words."""
    from experiments.reliability.trials import BROKEN

    kinds: dict[str, Counter[str]] = {}
    for trial in trials:
        kinds.setdefault(trial.kind, Counter())[trial.outcome] += 1
    failures = [trial._asdict() for trial in trials if trial.outcome in BROKEN]
    return {
        "planned": planned,
        "done": sum(trial.count for trial in trials),
        "trials": len(trials),
        "outcomes": dict(Counter(trial.outcome for trial in trials)),
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "failures": failures[:50],
        "failed": len(failures),
    }


def report(result: dict[str, Any], options: Options) -> None:
    """Print the counts, and write the record."""
    from experiments.record import command_line, write_record
    from jaxrec.analysis.tables import to_markdown

    body = [
        "Trials that are done, and those of the whole campaign; a failure is a traceback, a hang, another answer, "
    ]
    body[0] += "a file changed, or code executed."
    rows = [[p, f"{r['done']:,}", f"{r['planned']:,}", f"{r['failed']:,}"] for p, r in result.items()]
    body.append(to_markdown(["part", "done", "of the campaign", "failures"], rows))
    for part, counts in result.items():
        names = sorted(counts["outcomes"])
        rows = [
            [kind, *(str(found.get(name, 0)) for name in names)] for kind, found in counts["kinds"].items()
        ]
        rows.append(["all", *(str(counts["outcomes"][name]) for name in names)])
        body += [f"## {part}", to_markdown(["kind", *names], rows)]
        if counts.get("phases"):
            rows = [[name, str(count)] for name, count in counts["phases"].items()]
            body += ["Phase of the run at each kill:", to_markdown(["phase", "kills"], rows)]
        if counts["failures"]:
            lines = [
                f"- {f['kind']} ({f['number']}): {f['outcome']}: {_plain(f['detail'])}"
                for f in counts["failures"]
            ]
            body.append("\n".join(lines))
    print("\n\n".join(body))
    if options.record:
        write_record(
            options.record,
            {"seed": options.seed, "parts": result},
            title="Reliability campaign",
            command=command_line("experiments.reliability"),
            body=body,
            notes=options.notes,
        )


def _plain(text: str) -> str:
    return " ".join(text.split())[:200].replace("|", "/")


if __name__ == "__main__":
    started = time.monotonic()
    main(tyro.cli(Options))
    print(f"{time.monotonic() - started:.0f} s")
