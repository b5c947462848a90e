"""Report of a study: a table of its trials, a figure, and the test value of the trial that validation chose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from jaxrec.analysis.figures import COLOURS, save_figure
from jaxrec.analysis.tables import to_markdown
from jaxrec.files import write_atomically
from jaxrec.options import option_name
from jaxrec.training.logging import read_metrics
from jaxrec.tuning.study import Trial

_STATES = ("complete", "pruned", "failed")


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The best test value of a study, which nobody may choose, beside the one that validation chose.

    Attributes:
      tests: {name of the trial: test metric} of every trial that was trained to its end.
      chosen: name of the trial that validation chose.
    """

    tests: dict[str, float]
    chosen: str

    @property
    def best(self) -> str:
        """Name of the trial with the largest test metric."""
        return max(self.tests, key=lambda name: self.tests[name])

    @property
    def gap(self) -> float:
        """The largest test metric minus that of the trial that validation chose."""
        return self.tests[self.best] - self.tests[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = list(self.tests.values())
        return {
            "trial": self.best,
            "maximum": max(values),
            "minimum": min(values),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "gap": self.gap,
            "tests": self.tests,
        }

    def sentence(self, metric: str) -> str:
        """The gap, marked as what it is."""
        values = self.to_dict()
        spread = "" if values["sd"] is None else f", standard deviation {values['sd']:.4f}"
        return (
            f"ORACLE, no result of a method: the largest test {metric} of the {len(self.tests)} complete trials is "
            f"{values['maximum']:.4f} (trial {self.best}), {self.gap:+.4f} against the one that validation chose; "
            f"they spread from {values['minimum']:.4f} to {values['maximum']:.4f}{spread}. It was chosen by the test data "
            "that it is measured on."
        )


@dataclasses.dataclass(frozen=True)
class TuningResult:
    """A study and what came out of it.

    Attributes:
      directory: of the study.
      metric: of validation.
      trials: all of them, by number.
      seconds: {name of the trial: seconds of training}.
      test: test metrics of the best trial, mean over seeds; None while other processes still train trials.
      oracle: test values of all complete trials, where asked for.
    """

    directory: Path
    metric: str
    trials: list[Trial]
    seconds: dict[str, float]
    test: dict[str, float] | None
    oracle: Oracle | None

    @property
    def best(self) -> Trial:
        """The trial with the largest validation metric of those trained to their end; of equal ones the first."""
        return best_trial(self.trials)

    @property
    def workdir(self) -> Path:
        """Run directory of the best trial."""
        return self.directory / "trials" / self.best.name

    def counts(self) -> dict[str, int]:
        """Trials in each state."""
        return {state: sum(trial.state == state for trial in self.trials) for state in _STATES}

    def to_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        best = self.best
        return {
            "metric": self.metric,
            "counts": self.counts(),
            "seconds": round(sum(self.seconds.values()), 3),
            "best": {
                "trial": best.name,
                "options": best.options,
                "valid": best.score,
                "test": self.test,
                "workdir": str(self.workdir),
            },
            "oracle": None if self.oracle is None else self.oracle.to_dict(),
            "trials": [
                {**dataclasses.asdict(trial), "seconds": self.seconds[trial.name]} for trial in self.trials
            ],
        }

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the table, the best validation metric first; tests only of the oracle."""
        paths = list(self.trials[0].options)
        header = ["trial", "state", f"valid {self.metric}"]
        header += [f"test {self.metric} (oracle)"] if self.oracle else []
        header += [path.replace("_", "-") for path in paths] + ["validations", "seconds"]

        def row(trial: Trial) -> list[Any]:
            test = [self.oracle.tests.get(trial.name)] if self.oracle else []
            # Numbers of any size in few letters, as text.
            options = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in trial.options.values()]
            name = f"{trial.name} (defaults)" if trial.default else trial.name
            return [
                *(name, trial.state, trial.score, *test, *options, len(trial.scores)),
                f"{self.seconds[trial.name]:.1f}",
            ]

        order = sorted(self.trials, key=_rank)
        return header, [row(trial) for trial in order]

    def sentences(self) -> str:
        """The outcome in a few lines, test value included."""
        best, counts = self.best, self.counts()
        listed = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        default = next((trial for trial in self.trials if trial.default and trial.score is not None), None)
        options = " ".join(f"{option_name('', path)} {value}" for path, value in best.options.items())
        lines = [
            f"validation chose trial {best.name} of {len(self.trials)} ({listed}): valid {self.metric} {best.score:.4f}"
            + (f"; the defaults have {default.score:.4f}" if default is not None else ""),
            f"its options: {options}",
        ]
        if self.test is not None:
            lines.insert(1, "its test metrics: " + "  ".join(f"{k} {v:.4f}" for k, v in self.test.items()))
        if self.oracle is not None:
            lines.append(self.oracle.sentence(self.metric))
        running = [trial.name for trial in self.trials if trial.state == "running"]
        if running:
            lines.append(
                f"other processes still train trials {', '.join(running)}: the last of them ranks the test targets of the "
                "best trial and writes the report"
            )
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The table, and the outcome in a few lines."""
        return f"{to_markdown(*self.rows())}\n{self.sentences()}\n"

    def figure(self) -> Figure:
        """Draw the validation metric by trial, and by the value of each option."""
        paths = list(self.trials[0].options)
        columns = min(4, 1 + len(paths))
        rows = -(-(1 + len(paths)) // columns)
        figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        shown = [trial for trial in self.trials if trial.score is not None]
        for state, colour in zip(_STATES, (COLOURS[0], COLOURS[6], COLOURS[1]), strict=True):
            chosen = [trial for trial in shown if trial.state == state]
            scores = [trial.score for trial in chosen]
            places: list[list[Any]] = [[trial.number for trial in chosen]]
            places += [[trial.options[path] for trial in chosen] for path in paths]
            for axis, place in zip(axes, places if chosen else [], strict=False):
                place = [
                    x if isinstance(x, (int, float)) and not isinstance(x, bool) else str(x) for x in place
                ]
                axis.plot(place, scores, "o", color=colour, markersize=4, label=state)
        complete = [trial for trial in shown if trial.state == "complete"]
        best = np.maximum.accumulate([trial.score or 0.0 for trial in complete])
        axes[0].step(
            [trial.number for trial in complete], best, where="post", color=COLOURS[0], label="best so far"
        )
        axes[0].set_xlabel("trial")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].legend(fontsize=7)
        for axis, path in zip(axes[1:], paths, strict=False):
            axis.set_xlabel(path.replace("_", "-"), fontsize=8)
            values = [trial.options[path] for trial in shown]
            if all(isinstance(value, float) and value > 0 for value in values) and max(values) > 20 * min(
                values
            ):
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(NullFormatter())
            elif all(isinstance(value, int) for value in values):
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes[1 + len(paths) :]:
            axis.set_axis_off()
        figure.supylabel(f"validation {self.metric}")
        return figure

    def write(self) -> None:
        """Write ``results.json``, ``table.md`` and ``figure.png`` into the directory of the study."""
        write_atomically(self.directory / "table.md", self.to_markdown())
        save_figure(self.figure(), self.directory / "figure.png")
        write_atomically(self.directory / "results.json", json.dumps(self.to_dict(), indent=2) + "\n")


def _rank(trial: Trial) -> tuple[int, float, int]:
    """Order of the table: complete trials before the others, the best first."""
    return trial.state != "complete", -(trial.score or 0.0), trial.number


def best_trial(trials: list[Trial]) -> Trial:
    """Return the trial that validation chooses among those that are complete; of equal ones the first."""
    return max(
        (trial for trial in trials if trial.state == "complete"),
        key=lambda trial: (trial.score or 0.0, -trial.number),
    )


def training_seconds(run: Path) -> float:
    """Seconds that a run has trained, from its log, whether or not it came to its end."""
    log = run / "log.jsonl"
    lines = read_metrics(log) if log.exists() else []
    return round(sum(line.get("seconds", 0.0) for line in lines), 3)
