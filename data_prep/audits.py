"""Table of audits: ties, repeats, leaks and sequential rules of several datasets, as Markdown.

``python -m data_prep.audits movietweetings lastfm=hetrec2011-lastfm-2k.zip ml-1m_sasrec.txt.gz`` prints one row per dataset:
a bundled or public name, a name with its archive, or a file. ``data_prep/README.md`` holds its output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxrec.analysis.tables import to_markdown
from jaxrec.data import SequenceDataset, audit, load_dataset, sequentiality

HEADER = [
    *("dataset", "users", "items", "interactions", "mean length", "repeats", "tied", "test targets tied"),
    *("test targets with later training data", "rules of 2 (shuffled)", "predictability (shuffled)"),
]


def load(source: str) -> SequenceDataset:
    """Load ``name``, ``name=archive`` or a file; archives of another edition are accepted."""
    name, _, archive = source.partition("=")
    if archive:
        return load_dataset(name, archive=archive, other_edition=True)
    return load_dataset(Path(source) if Path(source).is_file() else source)


def row(dataset: SequenceDataset) -> list[str]:
    """Return one row of the table."""
    findings, rules = audit(dataset), sequentiality(dataset, shuffles=3)

    def share(count: int | None, of: int) -> str:
        return "no times" if count is None else f"{count / max(of, 1):.1%}"

    shuffled = sum(rules.shuffled[2]) / rules.shuffles
    mixed = sum(rules.shuffled_predictability[2]) / rules.shuffles
    return [
        dataset.name,
        *(f"{number:,}" for number in (findings.users, findings.items, findings.interactions)),
        f"{findings.mean_length:.1f}",
        share(findings.repeats, findings.interactions),
        share(findings.tied_interactions, findings.interactions),
        share(findings.ambiguous_test_targets, findings.leave_one_out_users),
        share(findings.leaking_targets, findings.leave_one_out_users),
        f"{rules.rules[2]:,} ({shuffled:,.1f})",
        f"{rules.predictability[2]:.3f} ({mixed:.3f})",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", help="name, name=archive, or file")
    print(to_markdown(HEADER, [row(load(source)) for source in parser.parse_args().sources]))


if __name__ == "__main__":
    main()
