"""Same history, same answer (Revisiting SASRec, experiment E6): are users with similar histories answered alike?

Users are paired with those whose histories are most similar to theirs. For each pair three similarities, all Jaccard
indices: of the items of the histories, of the lists that the model gives (seen items stay in, so that lists differ through
the model alone), and of the held-out items. Where lists are alike and futures are not, the model answers the history and
not the user. Models with vectors of users are also asked with the same history for another user, and for a new one.

Whether depth makes all users alike is read off the effective rank (Roy and Vetterli, EUSIPCO 2007) of states by layer and of
the item table: exp of the entropy of the singular values' shares, after the mean was subtracted; D for directions of equal
weight, 1 for a single one.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import Array
from matplotlib.figure import Figure

from jaxrec.analysis.figures import COLOURS, from_zero
from jaxrec.analysis.stability import jaccard
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.evaluation.encode import Forward, encode_histories
from jaxrec.evaluation.histories import Histories, RankingCases, ranking_cases
from jaxrec.evaluation.metrics import metric_values
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.nn.layers import take_positions
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from jaxrec.training.checkpoint import CheckpointReader
from jaxrec.training.setup import prepare

#: Bounds of the groups of pairs by the similarity of their histories.
BOUNDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
#: Users who are paired at most, and rows that are compared at a time.
MOST_USERS, ROWS = 5000, 512


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs of cases.

    Attributes:
      first, second: int64[P], rows of the cases.
      histories: float64[P], Jaccard index of the items of their histories.
      futures: float64[P], the same of their held-out items.
    """

    first: np.ndarray
    second: np.ndarray
    histories: np.ndarray
    futures: np.ndarray


@dataclasses.dataclass(frozen=True)
class Personalisation:
    """Result of `measure_personalisation` for S models of one run.

    Attributes:
      pairs: pairs of cases.
      lists: float64[S, P], Jaccard index of the lists of each pair.
      as_other, as_new: float64[S, N], the same of a list and the list for its history as another user's, and as a new
        user's, of the N cases that pairs are made of; None for models without vectors of users.
      metric: name of ``own`` and ``new``.
      own, new: float64[S, E], the metric of every case, and with every user as a new one; None for ``new`` likewise.
      layers: names of the states, from the first layer to the last state.
      state_ranks: float64[S, layers], effective rank of the states that score the next items.
      table_rank: float64[S], effective rank of the item table.
      k: length of the lists.
    """

    pairs: Pairs
    lists: np.ndarray
    as_other: np.ndarray | None
    as_new: np.ndarray | None
    metric: str
    own: np.ndarray
    new: np.ndarray | None
    layers: list[str]
    state_ranks: np.ndarray
    table_rank: np.ndarray
    k: int

    @property
    def groups(self) -> list[tuple[str, np.ndarray]]:
        """Name and mask bool[P] of each group of pairs by the similarity of their histories, where it has any."""
        groups = []
        for low, high in itertools.pairwise(BOUNDS):
            last = high == BOUNDS[-1]
            mask = (self.pairs.histories >= low) & (
                (self.pairs.histories <= high) if last else (self.pairs.histories < high)
            )
            if mask.any():
                groups.append((f"{low:g} to {high:g}", mask))
        return groups

    def reflection(self) -> np.ndarray:
        """float64[S], by how much more alike lists are where the futures share an item, at histories as similar.

        The mean over groups of histories, weighted by the pairs that share one; NaN where no group has both kinds.
        """
        shared = self.pairs.futures > 0
        differences, weights = [], []
        for _, mask in self.groups:
            with_one, without = mask & shared, mask & ~shared
            if with_one.any() and without.any():
                difference = self.lists[:, with_one].mean(axis=1) - self.lists[:, without].mean(axis=1)
                differences.append(difference)
                weights.append(int(with_one.sum()))
        if not weights:
            return np.full(len(self.lists), np.nan)
        return np.average(differences, axis=0, weights=weights)

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the table of pairs: one row for each group of histories."""
        header = [
            "histories",
            "pairs",
            "history similarity",
            f"list similarity@{self.k}",
            "future similarity",
        ]
        rows: list[list[Any]] = []
        for name, mask in self.groups:
            pairs, lists = self.pairs, self.lists[:, mask].mean()
            row = [name, int(mask.sum()), pairs.histories[mask].mean(), lists, pairs.futures[mask].mean()]
            rows.append(row)
        return header, rows

    def whole_rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and row of the figures of the whole run, means over seeds."""
        header = ["lists with a common future", "same history as another user", "as a new user", self.metric]
        header += [f"{self.metric}, as new users", *(f"rank, {name}" for name in self.layers), "rank, items"]

        def mean(values: np.ndarray | None) -> float | None:
            return None if values is None else float(np.mean(values))

        row = [mean(x) for x in (self.reflection(), self.as_other, self.as_new, self.own, self.new)]
        return header, [[*row, *map(float, self.state_ranks.mean(axis=0)), mean(self.table_rank)]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: means by group and seed, and the figures of the whole run by seed."""

        def by_seed(values: np.ndarray | None) -> list[float] | None:
            return None if values is None else values.mean(axis=1).tolist()

        reflection = self.reflection()
        groups = [
            {
                "histories": name,
                "pairs": int(mask.sum()),
                "history_similarity": float(self.pairs.histories[mask].mean()),
                "future_similarity": float(self.pairs.futures[mask].mean()),
                "list_similarity": self.lists[:, mask].mean(axis=1).tolist(),
            }
            for name, mask in self.groups
        ]
        return {
            "k": self.k,
            "groups": groups,
            "list_similarity": by_seed(self.lists),
            "lists_with_common_future": None if np.isnan(reflection).any() else reflection.tolist(),
            "same_history_as_another_user": by_seed(self.as_other),
            "same_history_as_a_new_user": by_seed(self.as_new),
            self.metric: by_seed(self.own),
            f"{self.metric} as new users": by_seed(self.new),
            "effective_rank_of_states": {
                name: self.state_ranks[:, number].tolist() for number, name in enumerate(self.layers)
            },
            "effective_rank_of_items": self.table_rank.tolist(),
        }


def run_personalisation(
    run: Run, split: str = "test", k: int = 10, metric: str = "NDCG@10"
) -> Personalisation:
    """Measure every seed of a run on "test" or "valid"; see `measure_personalisation`."""
    setup = run.setup
    cases = ranking_cases(
        setup.split.cases(split), setup.dataset.items, setup.timestamps, run.config.evaluation.remove_seen
    )
    rankers = [run.ranker(seed) for seed in run.seeds]
    return measure_personalisation(rankers, cases, k, metric, run.config.encoder.needs_users)


def measure_personalisation(
    rankers: Sequence[EncoderRanker],
    cases: RankingCases,
    k: int = 10,
    metric: str = "NDCG@10",
    with_users: bool = False,
    seed: int = 0,
) -> Personalisation:
    """Compare lists and futures of users with similar histories, and measure effective ranks.

    Args:
      rankers: one model per seed.
      cases: histories and targets. The metric is that of all of them; the rest takes of a user with several (successive
        targets) the last, and of more than `MOST_USERS` users a sample.
      k: length of the lists.
      metric: such as "NDCG@10".
      with_users: the models have vectors of users.
      seed: of the sample, and of the draw of other users.

    Raises:
      ConfigError: fewer than two cases with a history.
    """
    generator = np.random.default_rng(seed)
    sizes = np.diff(cases.target_offsets)
    usable = np.flatnonzero((cases.histories.lengths > 0) & (sizes > 0))
    if cases.histories.users is not None:  # a user's own cases would be the most similar ones
        newest = usable[::-1]
        usable = np.sort(newest[np.unique(np.asarray(cases.histories.users)[newest], return_index=True)[1]])
    if len(usable) < 2:
        raise ConfigError(
            f"pairs of users need two histories with a held-out item each, got {len(usable)}: hold out fewer interactions"
        )
    if len(usable) > MOST_USERS:
        usable = np.sort(generator.choice(usable, MOST_USERS, replace=False))
    part, cases = _select(cases, usable), _select(cases, np.flatnonzero(sizes > 0))
    pairs = similar_pairs(part, rankers[0].n_items, generator)
    histories = part.histories
    lists = [ranker.top_k(histories, k).items for ranker in rankers]

    def others(users: np.ndarray | None) -> list[np.ndarray]:
        changed = dataclasses.replace(histories, users=users)
        return [ranker.top_k(changed, k).items for ranker in rankers]

    def overlap(asked: list[np.ndarray]) -> np.ndarray:
        return np.stack([jaccard(own, other) for own, other in zip(lists, asked, strict=True)])

    def values(cases: RankingCases) -> np.ndarray:
        return np.stack(
            [metric_values(ranker.rank(cases), metric, cases.target_offsets) for ranker in rankers]
        )

    as_other = as_new = new = None
    if with_users and histories.users is not None:
        # A shift by less than the number of cases: nobody gets the own vector.
        shift = generator.integers(1, len(usable), len(usable))
        as_other = overlap(
            others(np.asarray(histories.users)[(np.arange(len(usable)) + shift) % len(usable)])
        )
        as_new = overlap(others(None))
        strangers = dataclasses.replace(cases.histories, users=None)
        new = values(dataclasses.replace(cases, histories=strangers))
    layers, ranks = zip(*(state_ranks(ranker, histories) for ranker in rankers), strict=True)
    return Personalisation(
        pairs,
        np.stack([jaccard(own[pairs.first], own[pairs.second]) for own in lists]),
        as_other,
        as_new,
        metric,
        values(cases),
        new,
        layers[0],
        np.array(ranks),
        np.array([table_rank(ranker) for ranker in rankers]),
        k,
    )


def _select(cases: RankingCases, rows: np.ndarray) -> RankingCases:
    """Some of the cases."""
    sizes = np.diff(cases.target_offsets)[rows]
    taken = np.isin(cases.case_of_target, rows)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    exclude = None if cases.exclude is None else cases.exclude.select(rows)
    return RankingCases(cases.histories.select(rows), cases.targets[taken], offsets, exclude)


def similar_pairs(cases: RankingCases, n_items: int, generator: np.random.Generator) -> Pairs:
    """Pair each case with the one whose history is most like its own, and with a random one.

    Args:
      cases: with a history and a target each.
      n_items: V.
      generator: of the random ones, and of the choice between histories that are equally similar.
    """
    histories, count = cases.histories.compact(int(cases.histories.lengths.max())), len(cases)
    seen = _item_sets(
        np.asarray(histories.items), np.repeat(np.arange(count), histories.lengths), count, n_items
    )
    ahead = _item_sets(cases.targets, cases.case_of_target, count, n_items)
    size = seen.getnnz(axis=1)
    nearest = np.empty(count, np.int64)
    for start in range(0, count, ROWS):
        rows = np.arange(start, min(start + ROWS, count))
        common = np.asarray((seen[rows] @ seen.T).todense())
        closeness = common / (size[rows][:, None] + size[None] - common) + 1e-9 * generator.random(
            common.shape
        )
        closeness[np.arange(len(rows)), rows] = -1.0
        nearest[rows] = closeness.argmax(axis=1)
    random = (np.arange(count) + generator.integers(1, count, count)) % count
    both = np.stack([np.tile(np.arange(count), 2), np.concatenate([nearest, random])], axis=1)
    first, second = np.unique(np.sort(both, axis=1), axis=0).T
    return Pairs(first, second, _set_jaccard(seen, first, second), _set_jaccard(ahead, first, second))


def _item_sets(items: np.ndarray, rows: np.ndarray, count: int, n_items: int) -> scipy.sparse.csr_matrix:
    """The distinct items of each case: ones in a sparse matrix [E, V+1]."""
    ones = np.ones(len(items), np.float64)
    sets = scipy.sparse.csr_matrix((ones, (rows, items)), shape=(count, n_items + 1))
    sets.data[:] = 1.0
    return sets


def _set_jaccard(sets: scipy.sparse.csr_matrix, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    common = np.asarray(sets[first].multiply(sets[second]).sum(axis=1)).reshape(-1)
    size = sets.getnnz(axis=1)
    return np.asarray(common / (size[first] + size[second] - common))


def effective_rank(vectors: np.ndarray) -> float:
    """Exp of the entropy of the singular values' shares of ``vectors`` float[N, D] less their mean; 0 for equal ones.

    >>> round(effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 3)
    2.0
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    if values[0] <= 1e-12 * max(1.0, float(np.abs(vectors).max())):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclasses.dataclass(frozen=True)
class LayerStates:
    """``(params, batch, query_positions) -> [B, S, layers * D]``: the output of every layer and the last states.

    Attributes:
      forward: of the encoder.
    """

    forward: Forward

    def __call__(self, params: Any, batch: Batch, query_positions: Array) -> Array:
        """States of all layers at ``query_positions`` int32[B, S], side by side."""
        _, states = self.all_states(params, batch)
        return jnp.concatenate([take_positions(x, query_positions) for x in states], axis=-1)

    def all_states(self, params: Any, batch: Batch) -> tuple[list[str], list[Array]]:
        """Names and states [B, L, D] of each layer that has the sizes of a state, and of the last states."""

        def is_layer(module: Any, method: str) -> bool:
            return method == "__call__" and re.fullmatch(r"layer_\d+", module.name or "") is not None

        hidden, captured = self.forward.encoder.apply(
            {"params": params},
            batch,
            False,
            None,
            self.forward.mask,
            capture_intermediates=is_layer,
            mutable=["intermediates"],
        )
        layers = captured.get("intermediates", {})
        names, states = [], []
        for number in range(len(layers)):
            # The first call is that for the items; tokens in front pass through the same layer after it.
            output = layers.get(f"layer_{number}", {}).get("__call__", (None,))[0]
            if isinstance(output, jax.Array) and output.shape[:2] == hidden.shape[:2]:
                names.append(f"layer {number + 1}")
                states.append(output)
        return [*names, "last states"], [*states, hidden]


def state_ranks(ranker: EncoderRanker, histories: Histories) -> tuple[list[str], list[float]]:
    """Names and effective ranks of the states that score the next items, layer by layer."""
    assert isinstance(ranker.forward, Forward)
    layers = LayerStates(ranker.forward)
    states = np.asarray(encode_histories(layers, ranker.params, histories, ranker.encoding, ranker.mesh))
    blank = jnp.zeros((1, ranker.encoding.max_length), jnp.int32)
    batch = Batch(blank, blank, blank + 1, blank, blank.astype(jnp.float32), blank, blank)
    names: list[str] = []
    widths: list[int] = []

    def note(params: Any) -> list[Array]:
        layer_names, arrays = layers.all_states(params, batch)
        names.extend(layer_names)
        widths.extend(x.shape[-1] for x in arrays)
        return arrays

    jax.eval_shape(note, ranker.params)
    parts = np.split(states, np.cumsum(widths)[:-1], axis=1)
    return names, [effective_rank(part) for part in parts]


def table_rank(ranker: EncoderRanker) -> float:
    """Effective rank of the vectors of the items."""
    vectors = ranker.table.vectors
    assert vectors is not None
    return effective_rank(np.asarray(vectors)[1 : ranker.n_items + 1])


@dataclasses.dataclass(frozen=True)
class RanksByStep:
    """Effective ranks while a run trained.

    Attributes:
      steps: of the checkpoints.
      names: of the layers, the last states and the items.
      values: float64[S, steps, names].
    """

    steps: list[int]
    names: list[str]
    values: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"steps": self.steps, "names": self.names, "values": self.values.tolist()}


def ranks_by_step(run: Run, split: str = "test", seeds: int = 0) -> RanksByStep:
    """Measure effective ranks at each checkpoint that the run has kept, with its parameters then.

    Args:
      run: with ``training.keep_checkpoints`` as large as the course is to be fine.
      split: whose histories are encoded.
      seeds: of the first so many seeds; 0 = all.
    """
    setup = prepare(dataclasses.replace(run.config, mesh=MeshConfig()), run.dataset)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(setup.sharding.fresh, jnp.asarray(run.seeds, jnp.uint32))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    cases = setup.split.cases(split)
    rows = np.flatnonzero(np.asarray(cases.history_stops) > np.asarray(cases.history_starts))[:MOST_USERS]
    histories = Histories(
        setup.dataset.items, cases.history_starts, cases.history_stops, setup.timestamps, cases.users
    ).select(rows)
    reader = CheckpointReader(run.path / "checkpoints")
    names: list[str] = []
    ranks = []
    for step in reader.steps():
        # Of a run on a mesh, whose tables have further rows, too.
        parts, _ = reader.restore({"state": target}, step, setup.sharding.tables, setup.dataset.n_items + 1)
        of_seeds = []
        for number in range(seeds or len(run.seeds)):
            ranker = setup.ranker(jax.tree.map(lambda x, number=number: x[number], parts["state"].params))
            names, values = state_ranks(ranker, histories)
            of_seeds.append([*values, table_rank(ranker)])
        ranks.append(of_seeds)
    return RanksByStep(reader.steps(), [*names, "items"], np.array(ranks).swapaxes(0, 1))


def personalisation_figure(
    results: Mapping[str, Personalisation], courses: Mapping[str, RanksByStep] | None = None
) -> Figure:
    """Draw the similarity of lists and futures against that of histories, and effective ranks by layer, a line per run.

    Args:
      results: {run: its figures}.
      courses: {run: ranks by step}, for a third panel with the last states (lines) and the items (dashes).
    """
    figure = Figure(figsize=(15.5 if courses else 11.0, 4.8), layout="constrained")
    left, right, *third = figure.subplots(1, 3 if courses else 2)
    deepest = max((result.layers for result in results.values()), key=len)
    styles = {
        name: {"color": COLOURS[number % len(COLOURS)], "marker": "os^D"[number // len(COLOURS) % 4]}
        for number, name in enumerate(results)
    }
    for number, (name, result) in enumerate(results.items()):
        groups = [mask for _, mask in result.groups]
        place = [result.pairs.histories[mask].mean() for mask in groups]
        lists = [result.lists[:, mask].mean() for mask in groups]
        left.plot(place, lists, label=name, **styles[name])
        if not number:
            futures = [result.pairs.futures[mask].mean() for mask in groups]
            left.plot(place, futures, "k--", label="futures")
        # The last states, behind the final norm, have one place for encoders of all depths.
        places = [*range(len(result.layers) - 1), len(deepest) - 1]
        right.plot(places, result.state_ranks.mean(axis=0), **styles[name])
    left.set_xlabel("similarity of the histories of a pair (Jaccard)")
    left.set_ylabel("similarity of lists and of futures")
    right.set_ylabel("effective rank of states")
    from_zero(right)
    right.set_xticks(range(len(deepest)), deepest, fontsize=8)
    for name, course in (courses or {}).items():
        means = course.values.mean(axis=0)
        third[0].plot(course.steps, means[:, -2], "-", markersize=3, **styles[name])
        third[0].plot(course.steps, means[:, -1], "--", markersize=3, **styles[name])
    if courses:
        third[0].set_xlabel("training step")
        third[0].set_ylabel("effective rank of\nlast states (line) and items (dashes)")
        from_zero(third[0])
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure
