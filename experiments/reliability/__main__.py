"""Reliability campaign, with seeds and counts.

    python -m experiments.reliability --minutes 60 --record reliability
    python -m experiments.reliability --parts inputs --trial 63

Parts: ``kills`` ends runs by SIGKILL and resumes them, ``inputs`` gives bad files, options and arguments, ``flips`` damages
the files of a finished run, ``limits`` takes away disk and descriptors, ``elastic`` changes devices and processes at every
resumption, ``clock`` sets the clock back, ``endurance`` trains for an hour and judges memory and speed. Every finished trial
is a line in ``--workdir``; the same command at the same commit continues there, and ``--continues COMMIT`` counts what an
earlier commit has finished, except its failures, which are done again. Without ``--minutes`` every part runs to its count.
The seed and its number determine a trial: ``--trial`` does one again (a kill falls after the same wait, which need not be
the same instant of the run).
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.reliability.base import cache_environment

PARTS = ("kills", "inputs", "flips", "limits", "elastic", "clock", "endurance")
PLANNED = {
    "kills": 1_000,
    "inputs": 10_000,
    "flips": 500,
    "limits": 100,
    "elastic": 50,
    "clock": 50,
    "endurance": 60,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Run parts of the campaign, and write the record of all that is finished.

    Attributes:
      parts: of kills, inputs, flips, limits, elastic, clock, endurance.
      kills: number of SIGKILLs.
      inputs: number of bad inputs.
      flips: number of flips and truncations.
      limits: number of runs under a limit.
      elastic: number of runs that change their devices.
      clock: number of runs whose clock is set back.
      endurance: minutes of training.
      seed: determines every trial together with its number.
      trial: number of one trial to do again, of the one part that is named, instead of the campaign.
      minutes: for each part; 0 = to the end.
      continues: commits whose finished trials count, too, but for their failures.
      workdir: folder of the trials and of the compiled programs.
      record: name of the record to write; empty = print only.
      notes: paragraphs of the record.
    """

    parts: tuple[str, ...] = PARTS
    kills: int = PLANNED["kills"]
    inputs: int = PLANNED["inputs"]
    flips: int = PLANNED["flips"]
    limits: int = PLANNED["limits"]
    elastic: int = PLANNED["elastic"]
    clock: int = PLANNED["clock"]
    endurance: int = PLANNED["endurance"]
    seed: int = 0
    trial: int | None = None
    minutes: float = 0.0
    continues: tuple[str, ...] = ()
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
    if options.trial is not None and len(options.parts) != 1:
        raise SystemExit("--trial needs one part: --parts inputs --trial 63")
    # Before JAX is imported: every process of the campaign shares the compiled programs.
    os.environ.update(cache_environment(options.workdir / "compiled"))
    from experiments.reliability.trials import TrialLog, processor_seconds
    from jaxrec.reporting.results import versions

    commit = versions().get("commit", "none")
    folder = (options.workdir / commit).absolute()
    if options.trial is not None:
        again = TrialLog(folder / "again" / f"{options.parts[0]}-{options.seed}-{options.trial}.jsonl")
        again.path.unlink(missing_ok=True)
        _run(options.parts[0], options, folder / "again", again)
        print("\n".join(f"{t.kind}: {t.outcome}: {t.detail}" for t in again.read()))
        return {}
    logs = {part: TrialLog(folder / f"{part}-{options.seed}.jsonl", commit) for part in PARTS}
    for log in logs.values():
        for earlier in options.continues:
            _take_over(TrialLog(options.workdir / earlier / log.path.name), log)
    for part in options.parts:
        processor_seconds()  # that of the part before
        _run(part, options, folder, logs[part])
    trials = {part: log.read() for part, log in logs.items()}
    result = {part: _counts(trials[part], getattr(options, part)) for part in PARTS if trials[part]}
    if trials["kills"]:
        from experiments.reliability.kills import phases_of

        result["kills"]["phases"] = phases_of(trials["kills"])
    if trials["endurance"] and trials["endurance"][0].detail.startswith("{"):
        result["endurance"]["figures"] = json.loads(trials["endurance"][0].detail)
    report(result, options)
    return result


def _take_over(earlier: Any, log: Any) -> None:
    """Add the trials of an earlier commit that held, unless they are there."""
    from experiments.reliability.trials import HELD

    already = {trial.number for trial in log.read()}
    for trial in earlier.read():
        if trial.outcome in HELD and trial.number not in already:
            log.append(trial)


def _run(part: str, options: Options, folder: Path, log: Any) -> None:
    """Do the trials of a part that its log lacks, or the one that ``--trial`` names."""
    from experiments.reliability import clock, elastic, endurance, flips, inputs, kills, limits
    from experiments.reliability.trials import run_trials

    seconds = 60 * options.minutes if options.minutes else float("inf")
    seed, only, count = options.seed, options.trial, getattr(options, part)
    if part in ("inputs", "flips"):
        target: Any = (
            partial(inputs.trial, seed, folder / "inputs-base", True)
            if part == "inputs"
            else partial(flips.trial, seed, folder / "flips-base")
        )
        run_trials(target, log, count, seconds, folder / part, only=only)
        return
    functions: dict[str, Any] = {
        "kills": kills.kills,
        "limits": limits.limits,
        "elastic": elastic.elastic,
        "clock": clock.clock,
        "endurance": endurance.endurance,
    }
    functions[part](seed, count, seconds, folder / part, log, only=only)


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
        "processor_seconds": round(sum(trial.seconds for trial in trials), 1),
        "commits": dict(Counter(trial.commit for trial in trials)),
        "outcomes": dict(Counter(trial.outcome for trial in trials)),
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "failures": failures[:50],
        "failed": len(failures),
    }


def report(result: dict[str, Any], options: Options) -> None:
    """Print the counts, and write the record."""
    from experiments.record import write_record
    from jaxrec.analysis.tables import to_markdown

    body = [
        "Trials that are done, and those of the whole campaign; a failure is a traceback, a hang, another answer, a file "
        "changed, or code executed. Cost in seconds of processor time each, with all that the part needs once."
    ]
    rows = [
        [
            f"{part} (minutes)" if part == "endurance" else part,
            f"{counts['done']:,}",
            f"{counts['planned']:,}",
            f"{counts['failed']:,}",
            f"{counts['processor_seconds'] / max(1, counts['done']):.2f}",
        ]
        for part, counts in result.items()
    ]
    body.append(to_markdown(["part", "done", "of the campaign", "failures", "cost"], rows))
    for part, counts in result.items():
        body += [f"## {part}", *_part_body(part, counts)]
    print("\n\n".join(body))
    if options.record:
        write_record(
            options.record,
            {"seed": options.seed, "parts": result},
            title="Reliability campaign",
            # Whatever part of it was done by which call: one command does the whole campaign.
            command=f"python -m experiments.reliability --seed {options.seed}",
            body=body,
            notes=options.notes,
        )


def _part_body(part: str, counts: dict[str, Any]) -> list[str]:
    """Tables and failures of a part."""
    from jaxrec.analysis.tables import to_markdown

    names = sorted(counts["outcomes"])
    rows = [[kind, *(str(found.get(name, 0)) for name in names)] for kind, found in counts["kinds"].items()]
    rows.append(["all", *(str(counts["outcomes"][name]) for name in names)])
    body = [to_markdown(["runs" if part == "kills" else "kind", *names], rows)]
    if part == "kills":
        drawn, seen = counts["phases"]["drawn"], counts["phases"]["phases"]
        phases = dict.fromkeys([*drawn, *seen])
        rows = [[name, str(drawn.get(name, 0)), str(seen.get(name, 0))] for name in phases]
        body += ["Phase of the run at each kill:", to_markdown(["phase", "drawn", "as the files show"], rows)]
        rows = [[name, str(count)] for name, count in counts["phases"]["configurations"].items()]
        body.append(to_markdown(["configuration", "kills"], rows))
    if part == "endurance" and "figures" in counts:
        body.append(_endurance_line(counts["figures"]))
        if counts["failures"]:
            lines = [
                f"- {f['kind']} ({f['number']}): {f['outcome']}: {_plain(f['detail'])}"
                for f in counts["failures"]
            ]
            body.append("\n".join(lines))
    return body


def _endurance_line(found: dict[str, Any]) -> str:
    """Memory and speed of the long run, in words."""
    memory, speed = found["memory_mebibytes"], found["steps_per_processor_second"]
    changes = [
        f"{change['share']:+.2%} per hour (95 % interval {change['low']:+.2%} to {change['high']:+.2%})"
        for change in (found["memory_per_hour"], found["speed_per_hour"])
    ]
    return (
        f"{found['minutes']:g} minutes, {found['steps']:,} steps, {found['log_lines']:,} lines of the log. Resident memory "
        f"without pages of files {memory[0]:g} MiB after the warm-up, {memory[-1]:g} MiB at the end: {changes[0]}. Steps "
        f"per second of processor time {speed[0]:g} and {speed[-1]:g}: {changes[1]}. Verdict: {found['verdict']}."
    )


def _plain(text: str) -> str:
    return " ".join(text.split())[:200].replace("|", "/")


if __name__ == "__main__":
    started = time.monotonic()
    main(tyro.cli(Options))
    print(f"{time.monotonic() - started:.0f} s")
