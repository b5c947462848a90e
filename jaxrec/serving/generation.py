"""Sequences of next items: the model's own answer is appended to the history, and asked for again.

What the encoder reads at step s is the history with the s - 1 items generated before it. ``window`` says which part:

- "sliding": its last L interactions, as if ``recommend`` were called again. Histories that grow beyond L lose their oldest
  interaction at each step, which changes every state, so they are read again.
- "planned": the whole sequence of history and steps is laid out ahead. The history is cut to L - steps + 1 interactions, and
  positions that count from the end count from the end of the plan. That is another question than the model answers in its
  evaluation, but the one that its inner positions answered in packed training.

States of earlier positions are kept and not computed again where this is exact: if the encoder allows it
(`jaxrec.models.base.Encoder.cache_obstacle`), if the history has room to grow, and if no positions move, as those do that
count from a sliding end (``--batches.position-origin end``). Everything else is read again at every step, in one compiled
program too, and with the same results up to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.packing import Sequences, pack
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation import parallel
from jaxrec.evaluation.encode import EncodingOptions, Forward, rounded_up
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.seen import SeenItems, as_seen
from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.options import Range, validate
from jaxrec.serving.rollout import Places, Program, Prompts, Scoring, Steps, roll_out

#: Histories of one batch at most, and scores that it holds at most.
ROWS = 128
SCORES = 1 << 22
#: Histories whose states are kept are grouped by length: up to the longest one's, a quarter of it, a sixteenth, and so on,
#: but no less than so many. Each group has a program of its own, and stores as many columns for each history.
LEAST_WIDTH = 24
#: Histories of one packed row at most.
MOST_PLACES = 8
#: Batches that one call of a program answers at most. A call costs as much as reading several histories.
BATCHES = 8


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Choice of each next item.

    Attributes:
      method: greedy (the best item), sample (a draw from the softmax of the scores) or beam (the sequences with the greatest
        product of probabilities that a beam search finds).
      temperature: sample: scores are divided by it before the softmax, beside the temperature of the objective that the
        model was trained with; near 0 is greedy.
      top_k: sample: draw among so many best items; 0 = among all.
      beams: beam: sequences under way, all of which are returned.
      window: sliding (the last L interactions at each step, as if recommend were called again) or planned (the sequence of
        history and steps is laid out ahead, so that no position moves and nothing is computed twice).
      cache: auto (keep states of earlier positions where that is exact) or off (read the whole history at each step).
      seed: sample: of the draws.
    """

    method: Literal["greedy", "sample", "beam"] = "greedy"
    temperature: Annotated[float, Range("(0, inf)")] = 1.0
    top_k: Annotated[int, Range("[0, inf)")] = 0
    beams: Annotated[int, Range("[1, inf)")] = 5
    window: Literal["sliding", "planned"] = "sliding"
    cache: Literal["auto", "off"] = "auto"
    seed: Annotated[int, Range("[0, 4294967296)")] = 0

    def __post_init__(self) -> None:
        """Check every option, and that none is without effect."""
        validate(self, "generation")
        owners = {"temperature": "sample", "top_k": "sample", "seed": "sample", "beams": "beam"}
        for field in dataclasses.fields(self):
            owner = owners.get(field.name, self.method)
            value = getattr(self, field.name)
            if owner != self.method and value != field.default:
                option = field.name.replace("_", "-")
                raise ConfigError(
                    f"--generation.{option} {value} belongs to --generation.method {owner}, got {self.method}; choose "
                    f"that method, or leave {option} out"
                )


#: The best item at each step.
GREEDY = GenerationConfig()


class Generated(NamedTuple):
    """Sequences of G items after each of E histories, W of them each, best first (W = 1 but for beams).

    Attributes:
      items: int32[E, W, G], 0 once no candidate is left.
      scores: float32[E, W, G], score of each item at its step, as ``recommend`` would give it; for the first item after an
        empty history ``log(1 + training interactions)``.
      log_probabilities: float32[E, W, G], of each item in the softmax of the candidates' scores; 0 where there is none.
      entropies: float32[E, W, G], nats, of that softmax.
      ranks: int32[E, G], rank of each step's target among the candidates, or None.
    """

    items: np.ndarray
    scores: np.ndarray
    log_probabilities: np.ndarray
    entropies: np.ndarray
    ranks: np.ndarray | None = None


def generate(  # noqa: PLR0913 - a model, what it is asked, and two ways to look at it
    ranker: EncoderRanker,
    histories: Histories,
    steps: int,
    config: GenerationConfig = GREEDY,
    *,
    exclude: SeenItems | None = None,
    repeats: Any = False,
    targets: np.ndarray | None = None,
    forced: bool = False,
    divisor: float = 1.0,
) -> Generated:
    """Generate sequences of next items.

    The answer to a history does not depend on the others of the call, up to rounding; draws follow from the seed and the
    number of the history.

    Args:
      ranker: the model.
      histories: E histories.
      steps: G, at least 1.
      config: how items are chosen.
      exclude: items that are no candidates, at any step.
      repeats: whether an item may occur twice in a generated sequence: one bool, or bool[E].
      targets: int[E, G], 1..V: the item whose rank at each step is wanted; not for beams.
      forced: append the target, not the chosen item, after each step (teacher forcing).
      divisor: divides the scores in every softmax, so that it is that of training (``objective.temperature``).

    Raises:
      ConfigError: options that cannot work for this model.
      DataError: targets of another form.
    """
    forward = ranker.forward
    if not isinstance(forward, Forward) or ranker.mesh is not None or ranker.table.vectors is None:
        raise ConfigError(
            "generate needs the ranker of an encoder on one device; open the run without --mesh.data and --mesh.item"
        )
    vectors: Any = ranker.table.turned
    _check(ranker, steps, config)
    targets = _checked_targets(ranker, targets, (len(histories), steps), config, forced)
    seen = as_seen(exclude, len(histories), ranker.n_items)
    allowed = np.broadcast_to(np.asarray(repeats, bool), (len(histories),))
    planned = config.window == "planned"
    longest = ranker.encoding.longest_history
    lengths = np.minimum(histories.lengths, longest - (steps - 1 if planned else 0)).astype(np.int64)
    may_cache = config.cache == "auto" and cache_obstacle(ranker, config) is None
    fits = lengths + steps - 1 <= longest
    beams = config.beams if config.method == "beam" else 1
    scoring = Scoring(
        vectors,
        ranker.table.bias,
        None if ranker.item_counts is None else jnp.asarray(ranker.item_counts, jnp.float32),
        jnp.float32(config.temperature),
        jnp.float32(divisor),
        jax.random.key(config.seed),
        *_tie_order(ranker.n_items, ranker.table.tie_seed),
    )
    out = _empty(len(histories), beams, steps, targets is not None)
    most = max(1, min(ROWS, SCORES // ((ranker.n_items + 1) * beams)))
    batches: list[_Part] = []
    for cached in (True, False):
        program = Program(
            forward, steps, config.method, config.top_k, beams, cached, planned, longest,
            ranker.encoding.position_origin, ranker.table.tie_seed, forced, ranker.encoding.max_length,
        )  # fmt: skip
        chosen = np.flatnonzero((fits & may_cache) == cached)
        groups = _by_width(chosen, lengths, longest - steps + 1) if cached else [(chosen, longest)]
        for rows, width in groups:
            batches += _packed(program, rows, lengths, width, ranker.encoding, most)

    def prompts_of(part: _Part) -> Prompts:
        rows, size = part.rows, part.size
        return _prompts(histories, lengths, part)._replace(
            excluded=_excluded(seen, rows, size, ranker.n_items),
            repeats=_padded(allowed[rows], size),
            targets=None if targets is None else _padded(targets[rows], size, fill=1),
        )

    def run(call: _Call) -> Steps:
        prompts = _stacked([prompts_of(part) for part in call.parts], call.size)
        done: Steps = jax.device_get(roll_out(call.parts[0].program, ranker.params, prompts, scoring))
        return done

    # The widest first: they take longest, and threads that run out of work then wait least.
    calls = _calls(batches[::-1])
    results = parallel.map_programs(run, calls, [call.key() for call in calls], parallel.workers())
    for call, result in zip(calls, results, strict=True):
        for number, part in enumerate(call.parts):
            for whole, values in zip(out, result, strict=True):
                if whole is not None and values is not None:
                    whole[part.rows] = values[number, : len(part.rows)]
    return out


class _Part(NamedTuple):
    """Histories that a program answers together.

    Attributes:
      program: of the call.
      rows: numbers of the histories.
      width: columns of the prompts.
      size: histories that the call has room for.
      places: in the packed rows in which they are read.
    """

    program: Program
    rows: np.ndarray
    width: int
    size: int
    places: Places

    def key(self) -> tuple[Any, ...]:
        """Everything that the compiled program depends on beside the ranker."""
        return self.program, self.width, self.size, self.places.lengths.shape


class _Call(NamedTuple):
    """Parts that one call of a program answers, which has room for ``size`` of them."""

    parts: list[_Part]
    size: int

    def key(self) -> tuple[Any, ...]:
        """Everything that the compiled program depends on beside the ranker."""
        return *self.parts[0].key(), self.size


def _calls(parts: list[_Part]) -> list[_Call]:
    """Adjacent parts of the same program in calls of equal size, enough of them for all threads."""
    calls = []
    for _, same in itertools.groupby(parts, key=_Part.key):
        group = list(same)
        count = min(BATCHES, rounded_up(-(-len(group) // parallel.workers())))
        calls += [_Call(group[first : first + count], count) for first in range(0, len(group), count)]
    return calls


def _stacked(prompts: list[Prompts], count: int) -> Prompts:
    """The prompts of several parts, and empty ones, [count, ...]."""

    def stack(*arrays: np.ndarray) -> np.ndarray:
        return _padded(np.stack(arrays), count)

    return jax.tree.map(stack, *prompts)


def cache_obstacle(ranker: EncoderRanker, config: GenerationConfig = GREEDY) -> str | None:
    """Reason why every step reads the whole history again, or None where that is not needed."""
    forward = ranker.forward
    if not isinstance(forward, Forward) or forward.mask != "causal" or forward.query_token is not None:
        return "the model reads histories in both directions, so that every item changes all states"
    encoder: Any = forward.encoder
    reason: str | None = encoder.cache_obstacle(config.window == "planned")
    return reason


def _check(ranker: EncoderRanker, steps: Any, config: GenerationConfig) -> None:
    longest = ranker.encoding.longest_history
    integer = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not integer or steps < 1:
        raise ConfigError(f"--steps must be an integer of at least 1, got {steps!r}")
    if config.window == "planned" and steps > longest:
        raise ConfigError(
            f"--generation.window planned needs room for all steps beside one interaction: expected at most {longest} "
            f"steps, the longest history of the model, got {steps}; choose fewer, or --generation.window sliding"
        )
    for option, value, belongs in (
        ("beams", config.beams, config.method == "beam"),
        ("top-k", config.top_k, config.method == "sample"),
    ):
        if belongs and value > ranker.n_items:
            raise ConfigError(
                f"--generation.{option} must be at most the catalogue's {ranker.n_items} items, got {value}"
            )


def _checked_targets(
    ranker: EncoderRanker, targets: Any, shape: tuple[int, int], config: GenerationConfig, forced: bool
) -> np.ndarray | None:
    if targets is None:
        if forced:
            raise ConfigError("forced needs targets, the items to append: expected int[E, G], got None")
        return None
    if config.method == "beam":
        raise ConfigError("targets are ranked along one sequence: expected method greedy or sample, got beam")
    targets = np.asarray(targets, np.int32)
    inside = not targets.size or (targets.min() >= 1 and targets.max() <= ranker.n_items)
    if targets.shape != shape or not inside:
        raise DataError(
            f"targets must be items from 1 to {ranker.n_items} of shape {shape}, got shape {targets.shape}"
        )
    return targets


def _empty(count: int, beams: int, steps: int, ranked: bool) -> Generated:
    size = (count, beams, steps)
    scores, log_probabilities, entropies = (np.zeros(size, np.float32) for _ in range(3))
    ranks = np.zeros((count, steps), np.int32) if ranked else None
    return Generated(np.zeros(size, np.int32), scores, log_probabilities, entropies, ranks)


def _by_width(chosen: np.ndarray, lengths: np.ndarray, widest: int) -> list[tuple[np.ndarray, int]]:
    """Groups of histories with the columns that hold each of them: few widths, so that few programs are compiled."""
    widths = [widest]
    while widths[0] >= 4 * LEAST_WIDTH:
        widths.insert(0, -(-widths[0] // 4))
    group = np.searchsorted(widths, lengths[chosen])
    return [(chosen[group == number], width) for number, width in enumerate(widths)]


def _packed(
    program: Program,
    chosen: np.ndarray,
    lengths: np.ndarray,
    width: int,
    encoding: EncodingOptions,
    most: int,
) -> list[_Part]:
    """Parts of histories packed into rows, which have room for all steps where they are read again at each.

    All parts have as many rows, places and histories at most, and nearly as many histories: the program is one.
    """
    if not len(chosen):
        return []
    length, token = encoding.max_length, encoding.query_token is not None
    growth = 0 if program.cached else program.steps - 1
    grown = np.minimum(lengths[chosen] + growth, program.longest)
    places = (np.maximum(grown, 1) + token).astype(np.int32)
    order = np.argsort(-places, kind="stable")
    at_once = parallel.workers() * length * (1 if program.cached else program.beams)
    n_rows = max(1, min(encoding.tokens_per_batch // at_once, most, rounded_up(len(chosen))))
    sequences = Sequences(chosen[order], places[order], chosen[order].astype(np.int32))
    plan = pack(sequences, length, max(1, min(MOST_PLACES, most // n_rows)))
    count = (plan.lengths > 0).sum(axis=1)
    n_rows = min(n_rows, rounded_up(len(count)))
    slots, n_parts = rounded_up(int(count.max())), -(-len(count) // n_rows)
    # Rows are dealt out by what they hold, so that all parts hold much the same.
    dealt = np.argsort(-count, kind="stable")
    lengths_of_places = plan.lengths[:, :slots]
    if slots > lengths_of_places.shape[1]:
        lengths_of_places = _padded(lengths_of_places.T, slots).T
    parts = [dealt[part::n_parts] for part in range(n_parts)]
    # A lone part serves calls of many sizes, and its program the next ones too; of many parts, few places are idle.
    histories = max(int(count[part].sum()) for part in parts)
    size = min(n_rows * slots, rounded_up(histories) if n_parts == 1 else -(-histories // 2) * 2)
    out = []
    for part in parts:
        lengths_of_part = _padded(lengths_of_places[part], n_rows)
        used = np.flatnonzero(lengths_of_part)
        index = _padded(used.astype(np.int32), size)
        members = plan.users[part][plan.lengths[part] > 0]
        out.append(_Part(program, members, width, size, Places(lengths_of_part, index)))
    return out


def _padded(values: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    out = np.full((size, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out


def _prompts(histories: Histories, lengths: np.ndarray, part: _Part) -> Prompts:
    """The last interactions of the histories of a part, each ending at the last of its columns."""
    rows, width, size = part.rows, part.width, part.size
    place = np.asarray(histories.stops)[rows][:, None] - width + np.arange(width)
    real = np.arange(width)[None] >= width - lengths[rows][:, None]
    place = np.where(real, place, 0)
    users = np.full(len(rows), -1) if histories.users is None else np.asarray(histories.users)[rows]

    def taken(log: Any) -> np.ndarray:
        # Times of a log that stays in its file are no array, and are read where asked (`Histories`).
        if not len(histories.items):
            return np.zeros((size, width), np.int32)
        return _padded(np.where(real, np.asarray(log[place]), 0).astype(np.int32), size)

    return Prompts(
        taken(histories.items),
        None if histories.timestamps is None else taken(histories.timestamps),
        _padded(users.astype(np.int32), size),
        _padded(lengths[rows].astype(np.int32), size),
        _padded(rows.astype(np.int32), size),
        *(None,) * 3,
        part.places,
    )


def _excluded(seen: SeenItems, rows: np.ndarray, size: int, n_items: int) -> np.ndarray:
    """bool[size, V+1], items that are no candidates, padding among them."""
    part = seen.select(rows)
    out = np.zeros((size, n_items + 1), bool)
    out[:, 0] = True
    out[part.row_numbers(), part.items] = True
    return out


@functools.lru_cache(maxsize=4)
def _tie_order(n_items: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """`Scoring.order` and `Scoring.places` for items with equal scores."""
    order = np.argsort(tie_keys(np.arange(n_items + 1), seed)).astype(np.int32)
    places = np.empty(n_items + 1, np.float32 if n_items < 1 << 24 else np.int32)
    places[order] = np.arange(n_items + 1)
    return jnp.asarray(order), jnp.asarray(places)
