"""Record whether the order of interactions carries information in several logs: sequential rules, no training.

    python -m experiments.studies.sequential_rules movietweetings ml-1m_sasrec.txt.gz s3rec_data.zip:LastFM --record

Rules of two and three items against shuffled sequences, as ``jaxrec audit --sequential`` counts them.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.record import command_line, write_record
from experiments.variants import StudyOptions
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.sequentiality import sequentiality


@dataclasses.dataclass(frozen=True)
class Options:
    """Count sequential rules.

    Attributes:
      data: logs, as for ``jaxrec train``, or datasets of S3-Rec's archive as in s3rec_data.zip:LastFM.
      shuffles: shuffled copies of each.
      record: write ``experiments/results/sequential_rules.{md,json}``.
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional] = ("movietweetings",)
    shuffles: int = 5
    record: bool = False


def measure(dataset: SequenceDataset, shuffles: int) -> dict[str, Any]:
    """Rules of a log and of its shuffled copies, and the processor's seconds that counting took."""
    started = time.process_time()
    found = sequentiality(dataset, shuffles=shuffles)
    seconds = time.process_time() - started
    return {
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "users": dataset.n_users,
            "items": dataset.n_items,
            "interactions": dataset.n_interactions,
        },
        **{name: value for name, value in found.to_dict().items() if name != "strongest"},
        "verdict": found.verdict,
        "seconds": round(seconds, 2),
    }


def table(logs: list[dict[str, Any]]) -> str:
    """A row for each log and length of rules."""
    header = ["log", "items", "rules", "shuffled", "remain", "predictability", "of shuffled", "seconds"]
    rows = []
    for log in logs:
        for length, count in log["rules"].items():
            share = log["remaining"][length]
            rows.append(
                [
                    log["dataset"]["name"],
                    length,
                    count,
                    f"{np.mean(log['shuffled'][length]):.1f}",
                    "-" if share is None else f"{share:.1%}",
                    f"{log['predictability'][length]:.3f}",
                    f"{np.mean(log['shuffled_predictability'][length]):.3f}",
                    f"{log['seconds']:.1f}",
                ]
            )
    return to_markdown(header, rows)


def main(options: Options) -> dict[str, Any]:
    """Count the rules of every log, print the table, and write the record if asked."""
    logs = [measure(StudyOptions(data=source).load(), options.shuffles) for source in options.data]
    print(text := table(logs))
    verdicts = [f"{log['dataset']['name']}: {log['verdict']}." for log in logs]
    notes = [
        f"Rules with a support of at least {logs[0]['min_support']} users and a confidence of at least "
        f"{logs[0]['min_confidence']:g}; shuffled: mean of {options.shuffles} copies with the interactions of each user in "
        "random order; predictability: share of transitions whose right side is the most frequent successor of their left "
        "side. Seconds of the processor for both lengths and all copies."
    ]
    if options.record:
        write_record(
            "sequential_rules",
            {"logs": logs},
            title="Sequential rules against shuffled sequences",
            command=command_line(
                __spec__.name if __spec__ else "experiments.studies.sequential_rules", sys.argv[1:]
            ),
            body=[text, "\n".join(f"- {verdict}" for verdict in verdicts)],
            notes=notes,
        )
    return {"logs": logs}


if __name__ == "__main__":
    main(tyro.cli(Options))
