"""Keep the results of a finished run in the repository.

    jaxrec train --seeds 5 --workdir runs/movietweetings
    python -m experiments.record runs/movietweetings --name sasrec_movietweetings --command "jaxrec train --seeds 5"

Writes ``experiments/results/NAME.json`` (the run's ``results.json``, the command and notes) and ``NAME.md``. Of the
data file only its name is kept: where it lay means nothing to others.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxrec.analysis.tables import to_markdown


@dataclasses.dataclass(frozen=True)
class Options:
    """Keep the results of a run.

    Attributes:
      run: run directory.
      name: of the record.
      command: what produced the run.
      notes: what a reader must know besides, a sentence each.
    """

    run: Annotated[str, tyro.conf.Positional]
    name: str
    command: str
    notes: tuple[str, ...] = ()


def main(options: Options) -> None:
    """Write both records."""
    results = json.loads((Path(options.run) / "results.json").read_text())
    results["config"]["data"]["source"] = Path(results["config"]["data"]["source"]).name
    notes = [*options.notes]
    if len(results["seeds"]) == 1:
        notes.insert(0, "One seed: what another seed would change is not known.")
    folder = Path("experiments/results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{options.name}.json").write_text(
        json.dumps({"command": options.command, "notes": notes, **results}, indent=1) + "\n"
    )
    names = [name for name in results["metrics"] if not name.startswith("MRR@")]
    rows = [
        [baseline, *(f"{values[name]:.4f}" for name in names)]
        for baseline, values in results["baselines"].items()
    ]
    rows.append(
        [
            f"{results['config']['encoder']['name']}, {len(results['seeds'])} seed(s)",
            *(
                f"{v['mean']:.4f}" + (f" ± {v['sd']:.4f}" if v["sd"] is not None else "")
                for v in map(results["metrics"].get, names)
            ),
        ]
    )
    dataset, timing, training = results["dataset"], results["timing"], results["training"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    (folder / f"{options.name}.md").write_text(
        f"`{options.command}`\n\n"
        f"{dataset['name']}: {dataset['users']:,} users, {dataset['items']:,} items, "
        f"{dataset['interactions']:,} interactions "
        f"(fingerprint `{dataset['fingerprint'][:16]}`). {results['split']['protocol']}; {results['protocol']}.\n\n"
        f"{to_markdown(['', *names], rows)}\n"
        + "".join(f"{note}\n\n" for note in notes)
        + f"{training['parameters']:,} parameters; best at steps {training['best_steps']} of {training['steps']} "
        f"({training['epochs']} epochs); compiling {timing['compile_seconds']} s, training {timing['training_seconds']} s, "
        f"evaluating {timing['evaluation_seconds']} s, {timing['interactions_per_second']:,.0f} real interactions/s.\n\n"
        f"{versions}; {results['hardware']['processor']}, {results['hardware']['cores']} cores, "
        f"{', '.join(results['hardware']['devices'])}.\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
