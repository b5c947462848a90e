"""Next steps after a run: commands that answer what its results leave open."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.files import as_word

#: Part of the planned epochs in which a best validation comes suspiciously early.
EARLY = 0.1


class Step(NamedTuple):
    """A reason, and the command that follows from it ("" where it is no command)."""

    reason: str
    command: str


def next_steps(results: dict[str, Any], directory: Path, titles: bool) -> list[Step]:
    """List what to do with a finished run, the most urgent first.

    Args:
      results: content of ``results.json``.
      directory: of the run.
      titles: whether its items have titles.
    """
    place = as_word(directory)
    steps = [*_doubts(results, place)]
    steps += [
        Step(
            "See for which users and items the model works, and whether it uses the order of interactions.",
            f"jaxrec evaluate {place} --breakdown --shuffle both",
        ),
        Step("Recommend for a history of your own.", f"jaxrec recommend {place} --history ITEM ITEM -k 10"),
        Step(
            "Compare with another run: a paired test over users and seeds.",
            f"jaxrec compare {place} OTHER_RUN",
        ),
    ]
    codes = results["config"].get("encoder", {}).get("item_codes", {})
    if codes.get("method", "none") == "none":  # new items have no codes
        steps.append(
            Step(
                "Add items that arrived since, without training.",
                f"jaxrec extend {place} --items new.csv --out {place}-grown",
            )
        )
    if not titles:
        steps.append(
            Step("The items have no titles, so lists show ids: load them with --data.item-table FILE.", "")
        )
    return steps


def _doubts(results: dict[str, Any], directory: str) -> list[Step]:
    """Weaknesses of the numbers on the page, and a step against each."""
    metric = _metric(results)
    model = results["metrics"][metric]["mean"]
    steps = []
    better = [name for name, values in results["baselines"].items() if values[metric] >= model]
    if better:
        steps.append(
            Step(
                f"No better than {', '.join(better)} in {metric}: check the data before tuning the model.",
                "jaxrec audit DATA",
            )
        )
    training = results["config"]["training"]
    steps_done, best = results["training"]["steps"], results["training"]["best_steps"]
    if steps_done and training["select"] == "best" and max(best) >= steps_done:
        epochs = f"{2 * training['epochs']:g}"
        steps.append(
            Step(
                "The last validation was the best one, so training ended too early.",
                f"jaxrec train --workdir {directory} --resume --training.epochs {epochs}"
                if results["config"]["optimizer"]["schedule"] == "constant"
                else f"jaxrec train --preset {directory} --training.epochs {epochs} --workdir {directory}-longer",
            )
        )
    steps += _impatience(results, directory)
    if len(results["seeds"]) == 1:
        steps.append(
            Step(
                "One seed: train five to know the spread.",
                f"jaxrec train --preset {directory} --seeds 5 --workdir {directory}-five",
            )
        )
    return steps


def _impatience(results: dict[str, Any], directory: str) -> list[Step]:
    """Seeds that ran out of patience in the first part of training, where validation may fall before it rises."""
    planned, training = results["config"]["training"], results["training"]
    if not planned.get("patience") or planned["select"] != "best" or not training["epochs"]:
        return []
    per_epoch = training["steps"] / training["epochs"]
    waited = planned["patience"] * planned["evaluate_every"]
    best = {
        seed: step / per_epoch for seed, step in zip(results["seeds"], training["best_steps"], strict=True)
    }
    early = {
        seed: epoch
        for seed, epoch in best.items()
        if epoch < EARLY * planned["epochs"] and epoch + waited < planned["epochs"]
    }
    if not early:
        return []
    seeds = ", ".join(f"seed {seed} at epoch {epoch:.0f}" for seed, epoch in early.items())
    return [
        Step(
            f"Training of {seeds} of at most {planned['epochs']:g} ended for want of patience ({waited:g} epochs). Where "
            "validation falls before it rises, as on small data, such a model has learnt little but popularity.",
            f"jaxrec train --preset {directory} --training.patience {5 * planned['patience']} "
            f"--workdir {directory}-patient",
        )
    ]


def _metric(results: dict[str, Any]) -> str:
    names = list(results["metrics"])
    return next((name for name in ("NDCG@10", *names) if name in names), names[0])
