"""Outputs of a finished run: results.json, ranks per user, catalogue, figures and the report page."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec.analysis.compare import training_facts
from jaxrec.analysis.tables import summary_cell
from jaxrec.config import to_dict
from jaxrec.cores import available_cores
from jaxrec.data.usage import data_usage
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.evaluation.metrics import over_seeds
from jaxrec.files import write_atomically
from jaxrec.reporting.examples import example_users
from jaxrec.reporting.html import model_label, write_figures, write_page
from jaxrec.serving.recommender import save_catalogue
from jaxrec.training.distributed import is_first, meet
from jaxrec.training.loop import FitResult
from jaxrec.training.setup import ModelSetup

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "polars")


def versions() -> dict[str, str]:
    """Versions of jaxrec, Python and the numerical packages, and the commit where there is a checkout."""
    installed = {"jaxrec": importlib.metadata.version("jaxrec"), "python": platform.python_version()}
    for package in PACKAGES:
        installed[package] = importlib.metadata.version(package)
    commit = _commit()
    return {**installed, "commit": commit} if commit else installed


def _commit() -> str | None:
    """The commit, with "-dirty" where Python files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=5, check=True)
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "*.py"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """Devices as JAX sees them, and the processor."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        pass
    return {
        "devices": [str(device.device_kind) for device in jax.devices()],
        "backend": jax.default_backend(),
        "processor": model,
        "cores": available_cores(),
    }


def describe_split(setup: ModelSetup) -> dict[str, Any]:
    """Protocol, options and counts of the split."""
    return {
        "protocol": setup.split.strategy,
        "description": setup.split.description,
        "options": dict(setup.split.options),
        "counts": {name: int(count) for name, count in setup.split.counts.items()},
    }


def describe_dataset(setup: ModelSetup) -> dict[str, Any]:
    """Name, fingerprint and size of the dataset."""
    dataset = setup.dataset
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
    }


def results_of(fit: FitResult, progress: bool = False) -> dict[str, Any]:
    """The content of ``results.json``; with ``progress`` baselines that take long are shown on standard error.

    Of several processes the first alone reads the log for the baselines and the usage of the data; the others have none.
    """
    setup, host_state = fit.setup, fit.host_state
    baselines = {}
    started = time.perf_counter()
    if is_first():
        baselines = evaluate_baselines(setup.split, "test", setup.config.evaluation, progress=progress)
    baseline_seconds = time.perf_counter() - started
    seconds = max(host_state.training_seconds, 1e-9)
    return {
        "dataset": describe_dataset(setup),
        "split": describe_split(setup),
        "data_usage": _usage(setup) if is_first() else {},
        "protocol": fit.test[0].protocol,
        "counts": fit.test[0].counts,
        "seeds": list(setup.config.training.seeds),
        "metrics": over_seeds([evaluation.metrics for evaluation in fit.test]),
        "valid_metrics": over_seeds([evaluation.metrics for evaluation in fit.valid]),
        "baselines": {name: evaluation.metrics for name, evaluation in baselines.items()},
        "training": {
            "steps": fit.steps,
            "epochs": round(fit.steps / setup.schedule.steps_per_epoch, 2),
            "best_steps": host_state.best_step,
            **({"rate_changes": host_state.rate_changes} if host_state.rate_changes else {}),
            "feed": "resident" if setup.host_log is None else "streamed",
            "fill_rate": round(float(np.mean([stream.fill_rate for stream in setup.streams])), 4),
            "parameters": setup.encoder.parameter_count(),
            **{
                name.replace(" ", "_"): value for name, value in training_facts(to_dict(setup.config)).items()
            },
        },
        "timing": {
            "compile_seconds": round(host_state.compile_seconds, 3),
            "training_seconds": round(host_state.training_seconds, 3),
            "evaluation_seconds": round(host_state.evaluation_seconds, 3),
            "baseline_seconds": round(baseline_seconds, 3),
            "waited_fraction": round(host_state.waited_seconds / seconds, 5),
            "interactions_per_second": round(host_state.interactions / seconds, 1),
        },
        "config": to_dict(setup.config),
        "versions": versions(),
        "hardware": hardware(),
    }


def _usage(setup: ModelSetup) -> dict[str, Any]:
    remove_seen = setup.config.evaluation.remove_seen
    config = setup.config
    return data_usage(
        setup.split, config.batches, remove_seen=remove_seen, whole_sequences=config.task.whole_sequences
    ).to_dict()


def save_ranks(fit: FitResult, directory: Path) -> None:
    """Write the ranks of every held-out target, one file per part and seed, with the metadata that comparisons check."""
    directory.mkdir(exist_ok=True)
    for part, evaluations in (("valid", fit.valid), ("test", fit.test)):
        for seed, evaluation in zip(fit.setup.config.training.seeds, evaluations, strict=True):
            meta = {
                "fingerprint": fit.setup.dataset.fingerprint,
                "split": dict(fit.setup.split.options),
                "part": part,
                "seed": seed,
            }
            evaluation.save(directory / f"{part}_seed{seed}.npz", meta)


def write_run(fit: FitResult, progress: bool = False) -> dict[str, Any]:
    """Write the outputs of a finished run to its directory and return the results; ``progress`` as in `results_of`.

    Without a directory (training in memory) the results are only returned. Of several processes the first one writes.
    """
    results = results_of(fit, progress)
    if fit.workdir is not None and is_first():
        save_ranks(fit, fit.workdir / "ranks")
        setup = fit.setup
        with_users = setup.config.encoder.needs_users
        save_catalogue(setup.dataset, fit.workdir, setup.split.item_counts, with_users)
        figures = write_figures(fit, results, fit.workdir)
        titles = fit.setup.dataset.item_titles is not None
        write_page(results, figures, fit.workdir, example_users(fit), titles)
        # Written last and atomically: a results.json implies that all other files are complete.
        write_atomically(fit.workdir / "results.json", json.dumps(results, indent=2) + "\n")
    meet()
    return results


def format_metrics(results: dict[str, Any]) -> str:
    """Format the table of the command line: the model beside the baselines."""
    names = [name for name in results["metrics"] if not name.startswith("MRR@")]
    rows = [("", *names)]
    for baseline, metrics in results["baselines"].items():
        rows.append((baseline, *(f"{metrics[name]:.4f}" for name in names)))
    rows.append((model_label(results["config"]), *(summary_cell(results["metrics"][name]) for name in names)))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if c == 0 else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    dataset, seeds = results["dataset"], results["seeds"]
    # Results of older releases have no description.
    split = results["split"].get("description", results["split"]["protocol"])
    head = (
        f"{dataset['name']}: {dataset['users']:,} users, {dataset['items']:,} items, "
        f"{dataset['interactions']:,} interactions; {split}, {results['protocol']}"
    )
    spread = "mean ± sd over seeds" if len(seeds) > 1 else "one seed: its spread is unknown, use --seeds 5"
    return "\n".join([head, *lines, f"({spread})", *_repeat_note(results)])


def _repeat_note(results: dict[str, Any]) -> list[str]:
    """Say how many targets are in the history of their own case, and what that does to the numbers."""
    counts = results["counts"]
    repeats, targets = counts.get("targets_in_history", 0), counts["targets"]
    if not counts.get("targets_missed_as_seen", 0):
        return []
    return [
        f"{repeats:,} of {targets:,} targets ({repeats / targets:.1%}) are in the history of their own case: seen items "
        "are removed, so they count as missed"
    ]
