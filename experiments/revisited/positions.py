"""E1: positions relative to the prediction point: what order, recency and nearness to the end of training contribute.

    python -m experiments.revisited.positions
    python -m experiments.revisited.positions --split temporal --out runs/positions-temporal

Adds to `experiments.studies.attention_controls` the rows that it lacks: batches of prefixes, where the position of an
interaction is its distance to the target; offsets that hide how far the end of a training sequence is; attention
without positions, and with the Toeplitz kernel alone; attention that sees positions and no content; and targets
weighted by how well the model predicts them. Rows of prefixes have as many steps as the others (the same compute),
and one four times as many; the record counts the targets that each has seen. In a temporal split all training ends at
one date.

Without training it counts the positions that each item received as input, and the share of (input, target) pairs
whose position is the distance to the target. Of the first row's models it measures how far lists move if padding
counts as interactions, with a vector of zeros or not, by the share of padding.

Writes ``experiments/results/positions_<dataset>.{md,json,png}`` (``positions-temporal_...``) after each row; until
all are done, it says which are missing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.variants import SharedSettings, Variant, answers, apply, steps_ratio
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.attention import KernelAttentionConfig, SoftmaxAttentionConfig, UniformAttentionConfig
from jaxrec.data.batches import Batch, BatchConfig, gather_batch
from jaxrec.data.sampler import RowStream
from jaxrec.data.splits import Split, split_dataset
from jaxrec.models import Encoder
from jaxrec.presets import sasrec
from jaxrec.runs import Run
from jaxrec.tasks import NextItemConfig

SPLITS: Mapping[str, Mapping[str, Any]] = {
    "leave-one-out": {},
    "temporal": {"strategy": "temporal"},
}
PREFIX = {"mode": "prefix", "position_origin": "end"}
#: The row of prefixes with more steps, and how many times as many.
LONGER, TIMES = "prefixes, longer", 4
#: Interactions of the histories of the padding audit, and positions of padding before them.
HISTORY, PADDING = 5, (0, 5, 15, 45)


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare positions.

    Attributes:
      split: leave-one-out, or temporal with the last item of each test user as target.
      audited: histories of the padding audit.
    """

    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    learning_rate: float = 2e-3
    audited: int = 500
    out: str = "runs/positions"


def variants(epochs: float, split: Split, dropout: float = 0.1) -> list[Variant]:
    """Return the rows; the others are compared with the first."""
    softmax = SoftmaxAttentionConfig(dropout=dropout)

    def row(
        name: str, attention: Any = softmax, origin: str = "end", task: Any = None, **encoder: Any
    ) -> Variant:
        changes = {
            "encoder.attention": attention,
            "encoder": encoder,
            "batches": {"position_origin": origin},
            "task": task or NextItemConfig(),
        }
        return Variant(name, changes)

    def prefixes(name: str, times: int) -> Variant:
        factor = times * steps_ratio(PREFIX, {}, split)
        training = {"epochs": epochs * factor, "evaluate_every": 2 * factor}
        return Variant(name, {"encoder.attention": softmax, "batches": PREFIX, "training": training})

    offsets = NextItemConfig(random_offsets=True)
    kernel = KernelAttentionConfig(dropout=dropout, lower="toeplitz")
    return [
        row("from the end"),
        row("from the start", origin="start"),
        prefixes("prefixes", 1),
        row("from the end, random offsets", task=offsets),
        row("from the start, random offsets", origin="start", task=offsets),
        row("no positions", positions="none"),
        row("uniform weights, from the end", UniformAttentionConfig()),
        row("uniform weights, no positions", UniformAttentionConfig(), positions="none"),
        row("toeplitz kernel, no positions", kernel, positions="none"),
        row("accuracy weights", task=NextItemConfig(accuracy_power=0.5)),
        row("inaccuracy weights", task=NextItemConfig(accuracy_power=-0.25)),
        prefixes(LONGER, TIMES),
    ]


#: Pairs of rows that answer a question each, besides every row against the first.
PAIRS = (
    ("from the start", "prefixes"),
    ("from the end, random offsets", "from the end"),
    ("no positions", "from the start"),
    ("uniform weights, no positions", "uniform weights, from the end"),
    ("uniform weights, no positions", "no positions"),
    ("no positions", "toeplitz kernel, no positions"),
)


@dataclasses.dataclass(frozen=True)
class PositionLog:
    """Positions that the inputs of an epoch received.

    Attributes:
      counts: int64[V+1, L], how often an item was an input at a position.
      exact: share of pairs of an input and a later target of its sequence whose position is the distance between them,
        less one.
      targets: of the epoch.
    """

    counts: np.ndarray
    exact: float
    targets: int

    def summary(self) -> dict[str, float]:
        """Mean over items of how many positions each received, and the share of its inputs at the most frequent one."""
        used = self.counts[self.counts.sum(axis=1) > 0]
        return {
            "positions_per_item": float((used > 0).sum(axis=1).mean()),
            "most_frequent_position": float((used.max(axis=1) / used.sum(axis=1)).mean()),
            "exact": self.exact,
            "targets_per_epoch": self.targets,
        }


def position_log(split: Split, config: BatchConfig) -> PositionLog:
    """Count the positions of one epoch of training."""
    stream = RowStream(split.train_starts, split.train_stops, config, seed=0)
    items = np.asarray(split.dataset.items)
    counts = np.zeros((split.dataset.n_items + 1, config.max_length), np.int64)
    exact = pairs = targets = 0
    rows = stream.epoch_rows(0)
    for start in range(0, len(rows.starts), 256):
        part = type(rows)(*(field[start : start + 256] for field in rows))
        batch = gather_batch(
            part,
            items,
            max_length=config.max_length,
            position_origin=config.position_origin,
            last_only=config.last_only,
        )
        real = batch.segments > 0
        np.add.at(counts, (batch.items[real], batch.positions[real]), 1)
        wanted = batch.weights > 0
        targets += int(wanted.sum())
        column = np.arange(config.max_length)
        distance = column[:, None] - column[None, :]  # of a query from an input
        same = (
            (batch.segments[:, :, None] == batch.segments[:, None, :]) & wanted[:, :, None] & (distance >= 0)
        )
        pairs += int(same.sum())
        exact += int((same & (batch.positions[:, None, :] == distance)).sum())
    return PositionLog(counts, exact / pairs, targets)


def padding_audit(run: Run, number: int) -> list[dict[str, Any]]:
    """Movement of lists if padding before a history counts as interactions; by setting and share of padding.

    Positions are added to padding, whose vector is zero or drawn with the scale of the items' vectors. The library keeps
    padding at zero, so the vector takes the place of an item that no history has and that is left out of the lists. Lists
    are the ten best items, seen items among them.

    Args:
      run: with positions from the end; its models are trained with padding left out.
      number: histories.
    """
    dataset, cases = run.dataset, run.setup.split.test
    long = np.flatnonzero(cases.history_stops - cases.history_starts >= HISTORY)
    chosen = long[np.linspace(0, len(long) - 1, min(number, len(long))).astype(int)]
    newest = np.asarray(dataset.items)[cases.history_stops[chosen][:, None] - np.arange(HISTORY, 0, -1)]
    unused = np.setdiff1d(np.arange(1, dataset.n_items + 1), newest)
    if not len(unused):
        return []
    rows = []
    for vector in ("zero", "random"):
        for padding in PADDING:
            overlaps, moved = [], []
            for seed in run.seeds:
                params = with_padding(run.params(seed), int(unused[-1]), seed if vector == "random" else None)
                clean, other = (probabilities(run, params, newest, n, int(unused[-1])) for n in (0, padding))
                overlaps.append(float(common(clean, other, 10).mean()))
                moved.append(float(np.abs(clean - other).sum(axis=1).mean() / 2))
            share = padding / (padding + HISTORY)
            rows.append({"padding": vector, "share": share, "overlap": overlaps, "total_variation": moved})
    return rows


def with_padding(params: Any, item: int, seed: int | None) -> Any:
    """The parameters with the vector of padding in place of an item's: zero, or drawn with the scale of the others."""
    table = np.array(params["items"]["table"])
    drawn = None if seed is None else np.random.default_rng(seed).normal(0, table.std(), table.shape[1])
    table[item] = 0.0 if drawn is None else drawn
    return {**params, "items": {**params["items"], "table": jnp.asarray(table)}}


def probabilities(run: Run, params: Any, histories: np.ndarray, padding: int, item: int) -> np.ndarray:
    """Softmax over all items but ``item`` after histories int32[E, n] with so many copies of ``item`` before them."""
    encoder = run.encoder
    items = np.pad(histories, ((0, 0), (padding, 0)), constant_values=item).astype(np.int32)
    positions = np.broadcast_to(np.arange(items.shape[1] - 1, -1, -1, dtype=np.int32), items.shape)
    batch = Batch(items, positions, np.ones_like(items), 0 * items, np.zeros(items.shape, np.float32))
    hidden = np.asarray(_last_states(encoder, params, batch))
    table = np.asarray(encoder.item_table(params).vectors)
    scores = hidden @ table[np.delete(np.arange(1, run.dataset.n_items + 1), item - 1)].T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def _last_states(encoder: Encoder, params: Any, batch: Batch) -> jax.Array:
    """State of the last position of each row, [B, D]."""
    return encoder.apply({"params": params}, batch, False)[:, -1]


def common(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Share of the ``k`` best columns of each row that float64[E, V] ``a`` and ``b`` have in common."""
    first, second = (np.argsort(-x, axis=1, kind="stable")[:, :k] for x in (a, b))
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def tables(options: Options, rows: list[Variant], split: Split, result: dict[str, Any]) -> list[str]:
    """Markdown: questions, positions of the inputs, targets seen, and the padding audit."""
    names = [row["name"] for row in result["variants"]]
    found = answers(options.out, PAIRS, result)
    by_name = {row.name: apply(sasrec(), row.sections).batches for row in rows}
    logs: dict[str, dict[str, float]] = {}
    for name in names:
        known = next((logs[other] for other in logs if by_name[other] == by_name[name]), None)
        logs[name] = known or position_log(split, by_name[name]).summary()
    result["position_log"] = logs
    lines = []
    for row in result["variants"]:
        log = logs[row["name"]]
        seen = log["targets_per_epoch"] * row["training"]["epochs"]
        shifted = "random offsets" in row["name"]
        lines.append(
            [
                row["name"],
                "shifted" if shifted else f"{log['positions_per_item']:.1f}",
                "shifted" if shifted else f"{log['most_frequent_position']:.2f}",
                "shifted" if shifted else f"{log['exact']:.2f}",
                str(row["training"]["steps"]),
                f"{seen:,.0f}",
            ]
        )
    header = [
        "row",
        "positions of an item",
        "share of one position",
        "distance to the target",
        "steps",
        "targets",
    ]
    note = (
        "Positions that an item received as input in an epoch, and the share of its most frequent one, means over items; "
        "share of pairs of an input and a target whose position is the distance between them; steps of the longest seed, "
        "and targets in them. Rows with random offsets shift these positions anew in every step."
    )
    found += [to_markdown(header, lines), note]
    if names[0] == "from the end":
        audit = padding_audit(Run(Path(options.out) / "from-the-end", split.dataset), options.audited)
        result["padding_audit"] = audit
        lines = [
            [
                row["padding"],
                f"{row['share']:.2f}",
                mean_and_deviation(row["overlap"], 3),
                mean_and_deviation(row["total_variation"], 3),
            ]
            for row in audit
        ]
        header = [
            "vector of padding",
            "share of padding",
            "common in lists of 10",
            "total variation of scores",
        ]
        found += [
            f"The newest {HISTORY} items of test histories with padding before them that counts as interactions and has "
            "positions, models of the first row:",
            to_markdown(header, lines),
        ]
    return found


def main(options: Options) -> None:
    """Run the study and write its record."""
    dataset = options.load()
    sections = {
        "split": dict(SPLITS[options.split]),
    }
    split = split_dataset(dataset, apply(sasrec(), sections).split)
    rows = variants(options.epochs, split)
    what = "positions" if options.split == "leave-one-out" else f"positions-{options.split}"
    options.conduct(what, rows, sections, tables=lambda result: tables(options, rows, split, result))


if __name__ == "__main__":
    main(tyro.cli(Options))
