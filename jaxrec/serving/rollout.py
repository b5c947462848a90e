"""The compiled part of generation: a batch of histories is read once and grows by an item at a time, in one program.

Two ways of reading give the same states up to rounding. *Cached*: the encoder stores what new positions need of earlier
ones (`jaxrec.models.base.Encoder.cache_obstacle`). *Re-encoded*: every step reads the whole history again, which any encoder
can do. Whole histories are read in packed rows beside others (`Layout`), so that little work goes into padding; what is
stored then moves to a row for each history. Histories end at the same column of these, to which all new items go. The loop
over the steps carries what is stored of new columns alone: that of the histories stays where it is, for all beams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrec.attention.cache import GROWN, KNOWN, CacheStep, rows_of_sequences, with_room
from jaxrec.data.batches import Batch, PositionOrigin
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.ranking_tiles import best_items
from jaxrec.evaluation.tie_order import tie_keys
from jaxrec.nn.choice import draw_index

_MINUS_INFINITY = -float("inf")


@dataclasses.dataclass(frozen=True)
class Program:
    """Static settings of a compiled rollout.

    Attributes:
      forward: the encoder, and how it is asked for a next item.
      steps: G, items to generate.
      method: "greedy", "sample" or "beam".
      top_k: of "sample": draw among so many best items; 0 = all.
      beams: W, sequences under way of each history; 1 but for "beam".
      cached: whether the encoder keeps what it has computed.
      planned: whether positions that count from the end count from that of the planned sequence.
      longest: interactions of a history that the encoder reads at most.
      position_origin: what positions count from.
      tie_seed: order of items with equal scores.
      forced: feed back the targets in place of the chosen items.
      row_length: L, columns of packed rows.
    """

    forward: Forward
    steps: int
    method: Literal["greedy", "sample", "beam"]
    top_k: int
    beams: int
    cached: bool
    planned: bool
    longest: int
    position_origin: PositionOrigin
    tie_seed: int
    forced: bool
    row_length: int


class Places(NamedTuple):
    """Places of histories in packed rows, one after the other in each, which have room for what a history grows to.

    Attributes:
      lengths: int32[N, S], columns of each place, 0 = none; histories are numbered row by row.
      index: int32[B], place of each history in the flattened [N, S].
    """

    lengths: Any
    index: Any


class Layout(NamedTuple):
    """Columns of packed rows [N, L]; each history ends at the end of its place.

    Attributes:
      history: int32[N, L], number of the history that each column belongs to.
      offset: int32[N, L], columns up to the end of its place, 0 = the end; L where it belongs to none.
      slots: int32[N, L], number of the place inside its row, from 1.
      ends: int32[N, S], last column of each place.
      index: int32[B], place of each history in the flattened [N, S].
    """

    history: Any
    offset: Any
    slots: Any
    ends: Any
    index: Any


class Prompts(NamedTuple):
    """Histories of one batch, each ending at the last column, and what each may be answered with.

    Attributes:
      items: int32[B, P], 0 = before the history.
      timestamps: int32[B, P], or None.
      users: int32[B], index of the user, -1 = a new one.
      lengths: int32[B].
      numbers: int32[B], which history of the request it is: what its random draws follow from.
      excluded: bool[B, V+1], items that are no candidates.
      repeats: bool[B], whether a generated item stays a candidate.
      targets: int32[B, G], items to rank at each step, or None.
      places: in the packed rows in which they are read.
    """

    items: Any
    timestamps: Any
    users: Any
    lengths: Any
    numbers: Any
    excluded: Any
    repeats: Any
    targets: Any
    places: Places


class Scoring(NamedTuple):
    """Tables and constants that turn states into scores.

    Attributes:
      vectors: float32[D, V+1].
      bias: float32[V+1].
      item_counts: float32[V+1], training interactions, whose logarithm answers empty histories; None = by the biases.
      temperature: float32 scalar, that draws divide the model's own softmax by.
      divisor: float32 scalar, that scores are divided by in the model's own softmax.
      key: of the random draws.
      order: int32[V+1], items by `jaxrec.evaluation.tie_order.tie_keys`.
      places: float32[V+1] or, where that does not hold them, int32: place of each item in ``order``.
    """

    vectors: Array
    bias: Array
    item_counts: Array | None
    temperature: Array
    divisor: Array
    key: Array
    order: Array
    places: Array


class Steps(NamedTuple):
    """Record of the steps: [B, W, G] each, but ``ranks`` int32[B, G] or None."""

    items: Array
    scores: Array
    log_probabilities: Array
    entropies: Array
    ranks: Array | None = None


class _Rows(NamedTuple):
    """Rows under way; [R, ...] each, R = B or B W.

    Attributes:
      items: int32[R, columns].
      timestamps: int32[R, columns] or None.
      users: int32[R].
      lengths: int32[R], interactions that the rows hold.
      blocked: bool[R, V+1], items that are no candidates.
      repeats: bool[R].
      grown: what the encoder has stored of new columns, {} if re-encoded.
    """

    items: Array
    timestamps: Array | None
    users: Array
    lengths: Array
    blocked: Array
    repeats: Array
    grown: Any


@partial(jax.jit, static_argnames="program")
def roll_out(program: Program, params: Any, prompts: Prompts, scoring: Scoring) -> Steps:
    """Generate ``program.steps`` items after each history, one batch after the other.

    Args:
      program: static settings.
      params: of the encoder.
      prompts: batches [C, ...]; those without a history are skipped.
      scoring: what states are scored against.
    """
    count, size = prompts.lengths.shape

    def answer(batch: Prompts) -> Steps:
        return _roll_out(program, params, batch, scoring)

    if count == 1:
        return jax.tree.map(lambda x: x[None], answer(jax.tree.map(lambda x: x[0], prompts)))

    def nothing(batch: Prompts) -> Steps:
        numbers = jnp.zeros((size, program.beams, program.steps), jnp.float32)
        ranks = None if batch.targets is None else jnp.zeros((size, program.steps), jnp.int32)
        return Steps(numbers.astype(jnp.int32), numbers, numbers, numbers, ranks)

    def one(batch: Prompts) -> Steps:
        return lax.cond((batch.places.lengths > 0).any(), answer, nothing, batch)

    return lax.map(one, prompts)


def _roll_out(program: Program, params: Any, prompts: Prompts, scoring: Scoring) -> Steps:
    """The answers to one batch."""
    layout = _layout(prompts.places, program.row_length)
    rows, known, hidden = _read(program, params, prompts, layout)
    scores = _masked(rows, _first_scores(hidden, prompts, scoring))
    variables = {"params": params, **known}
    if program.method == "beam":
        extend = partial(_extend, program, variables, layout)
        return _beam_search(program, extend, prompts, rows, scores, scoring)
    return _one_sequence(
        program, partial(_extend, program, variables, layout), prompts, rows, scores, scoring
    )


def _one_sequence(
    program: Program,
    extend: Callable[..., tuple[_Rows, Array]],
    prompts: Prompts,
    rows: _Rows,
    scores: Array,
    scoring: Scoring,
) -> Steps:
    """Greedy choices or draws, one sequence for each history."""
    keys = jax.vmap(partial(jax.random.fold_in, scoring.key))(prompts.numbers)

    def choose(rows: _Rows, scores: Array, step: Array, divisor: Array) -> tuple[_Rows, Array, Steps]:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        chosen = _choose(program, scores, own, scoring, divisor)
        measured, ranks, fed = _measured(scores, chosen, divisor), None, chosen
        if prompts.targets is not None:
            target = lax.dynamic_slice_in_dim(prompts.targets, step, 1, axis=1)[:, 0]
            ranks = _rank(scores, target, program.tie_seed)
            fed = target if program.forced else chosen
        return _block(rows, fed), fed, measured._replace(ranks=ranks)

    def advance(carry: tuple[_Rows, Array], step: Array) -> tuple[tuple[_Rows, Array], Steps]:
        rows, fed = carry
        rows, hidden = extend(rows, fed, step)
        scores = _masked(rows, _scores(hidden, scoring))
        rows, fed, measured = choose(rows, scores, step, _divisor(scores, scoring))
        return (rows, fed), measured

    rows, fed, first = choose(rows, scores, jnp.int32(0), _first_divisor(prompts, scoring))
    whole = jax.tree.map(lambda x: x[None], first)
    if program.steps > 1:
        numbers = jnp.arange(1, program.steps, dtype=jnp.int32)
        _, others = lax.scan(advance, (rows, fed), numbers)
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), whole, others)
    whole = jax.tree.map(lambda x: x.swapaxes(0, 1), whole)
    ranks = whole.ranks
    return jax.tree.map(lambda x: x[:, None], whole._replace(ranks=None))._replace(ranks=ranks)


def _beam_search(
    program: Program,
    extend: Callable[..., tuple[_Rows, Array]],
    prompts: Prompts,
    rows: _Rows,
    scores: Array,
    scoring: Scoring,
) -> Steps:
    """The W sequences with the greatest sums of log-probabilities that a beam of W finds."""
    beams, steps, batch = program.beams, program.steps, scores.shape[0]

    def measured(scores: Array, items: Array, divisor: Array) -> Steps:
        """Of W items [R, W] of each row."""
        columns = [_measured(scores, items[:, w], divisor) for w in range(beams)]
        return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *columns)

    _, items = best_items(scores, beams, program.tie_seed)
    first = measured(scores, items, _first_divisor(prompts, scoring))
    totals = jnp.where(items > 0, first.log_probabilities, _MINUS_INFINITY)
    rows = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), rows)
    rows = _block(rows, items.reshape(-1))
    # [B, W, G] each, filled step by step, so that histories of beams move with them.
    history = jax.tree.map(lambda x: jnp.zeros((*x.shape, steps), x.dtype).at[..., 0].set(x), first)

    def advance(carry: tuple[_Rows, Array, Array, Steps], step: Array) -> tuple[Any, None]:
        rows, last, totals, history = carry
        rows, hidden = extend(rows, last.reshape(-1), step)
        scores = _masked(rows, _scores(hidden, scoring))
        _, items = best_items(scores, beams, program.tie_seed)
        new = measured(scores, items, _divisor(scores, scoring))
        new = jax.tree.map(lambda x: x.reshape(batch, beams, beams), new)
        each = jnp.where(new.items > 0, totals[:, :, None] + new.log_probabilities, _MINUS_INFINITY)
        best, place = lax.top_k(each.reshape(batch, -1), beams)
        # Where no candidate is left for any sequence of a history, all stay as they are.
        over = (best == _MINUS_INFINITY).all(axis=1, keepdims=True)
        own = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None], place.shape)
        parent = jnp.where(over, own, place // beams)
        totals = jnp.where(over, totals, best)

        def of_parents(x: Array) -> Array:
            return jnp.take_along_axis(x, parent.reshape(*parent.shape, *(1,) * (x.ndim - 2)), axis=1)

        def chosen(x: Array) -> Array:
            return jnp.take_along_axis(x.reshape(batch, -1), place, axis=1)

        now = jax.tree.map(chosen, new)
        now = now._replace(items=jnp.where(over | (best == _MINUS_INFINITY), 0, now.items))
        history = jax.tree.map(lambda past, x: of_parents(past).at[..., step].set(x), history, now)
        rows = jax.tree.map(
            lambda x: of_parents(x.reshape(batch, beams, *x.shape[1:])).reshape(x.shape), rows
        )
        return (_block(rows, now.items.reshape(-1)), now.items, totals, history), None

    if steps > 1:
        carry, _ = lax.scan(advance, (rows, items, totals, history), jnp.arange(1, steps, dtype=jnp.int32))
        _, _, totals, history = carry
    # A beam without a sequence of its own, for want of candidates, holds leftovers.
    empty = (totals == _MINUS_INFINITY)[:, :, None]
    return history._replace(items=jnp.where(empty, 0, history.items))


def _choose(program: Program, scores: Array, keys: Array, scoring: Scoring, divisor: Array) -> Array:
    """int32[R], the next item of each row; 0 where no candidate is left."""
    temperature = scoring.temperature * divisor
    if program.method == "sample" and program.top_k == 0:
        return draw_index(scores / temperature, jax.vmap(jax.random.uniform)(keys))
    if program.method == "sample":
        best, items = best_items(scores, program.top_k, program.tie_seed)
        place = draw_index(best / temperature, jax.vmap(jax.random.uniform)(keys))
        return jnp.take_along_axis(items, place[:, None], axis=1)[:, 0]
    # Two plain reductions: a CPU computes them several times as fast as an argmax.
    best = scores.max(axis=1, keepdims=True)
    last = jnp.asarray(scores.shape[1] - 1, scoring.places.dtype)
    place = jnp.where(scores == best, scoring.places[None], last).min(axis=1)
    chosen = scoring.order[place.astype(jnp.int32)]
    return jnp.where(best[:, 0] > _MINUS_INFINITY, chosen, 0)


def _measured(scores: Array, items: Array, divisor: Array) -> Steps:
    """Score and log-probability of the items int32[R], and entropy of the softmax over the candidates, in nats.

    The softmax is that of the scores over ``divisor`` float32[R, 1].
    """
    candidate = scores > _MINUS_INFINITY
    best = scores.max(axis=1, keepdims=True)
    shifted = jnp.where(candidate, (scores - best) / divisor, 0.0)
    weights = jnp.where(candidate, jnp.exp(shifted), 0.0)
    total = jnp.maximum(weights.sum(axis=1), 1.0)  # the best candidate alone has 1
    entropy = jnp.log(total) - (weights * shifted).sum(axis=1) / total
    score = jnp.take_along_axis(scores, items[:, None], axis=1)[:, 0]
    log_probability = jnp.where(items > 0, (score - best[:, 0]) / divisor[:, 0] - jnp.log(total), 0.0)
    return Steps(items, jnp.where(items > 0, score, _MINUS_INFINITY), log_probability, entropy)


def _rank(scores: Array, targets: Array, tie_seed: int) -> Array:
    """int32[R], the rank of each row's target among the candidates; `MISSED` where it is none."""
    score = jnp.take_along_axis(scores, targets[:, None], axis=1)
    items = jnp.arange(scores.shape[1], dtype=jnp.int32)
    lower = tie_keys(items, tie_seed, jnp)[None] < tie_keys(targets, tie_seed, jnp)[:, None]
    ahead = (scores > score) | ((scores == score) & lower)
    rank = 1 + ahead.sum(axis=1, dtype=jnp.int32)
    return jnp.where(score[:, 0] > _MINUS_INFINITY, rank, MISSED)


def _block(rows: _Rows, items: Array) -> _Rows:
    """Take the items int32[R] just fed out of the candidates, where they may not repeat."""
    numbers = jnp.arange(items.shape[0], dtype=jnp.int32)
    now = rows.blocked[numbers, items] | ~rows.repeats
    return rows._replace(blocked=rows.blocked.at[numbers, items].set(now))


def _scores(hidden: Array, scoring: Scoring) -> Array:
    product = lax.dot_general(
        hidden.astype(jnp.float32),
        scoring.vectors,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product + scoring.bias[None]


def _first_scores(hidden: Array, prompts: Prompts, scoring: Scoring) -> Array:
    scores = _scores(hidden, scoring)
    if scoring.item_counts is None:
        return scores
    return jnp.where((prompts.lengths == 0)[:, None], jnp.log1p(scoring.item_counts)[None], scores)


def _divisor(scores: Array, scoring: Scoring) -> Array:
    """float32[R, 1], what the scores of each row are divided by in the softmax."""
    return jnp.broadcast_to(scoring.divisor, (scores.shape[0], 1))


def _first_divisor(prompts: Prompts, scoring: Scoring) -> Array:
    """`_divisor` of the first step: logarithms of interactions are divided by nothing."""
    lengths = prompts.lengths[:, None]
    if scoring.item_counts is None:
        return _divisor(lengths, scoring)
    return jnp.where(lengths == 0, jnp.float32(1), scoring.divisor)


def _masked(rows: _Rows, scores: Array) -> Array:
    return jnp.where(rows.blocked, _MINUS_INFINITY, scores)


def _read(program: Program, params: Any, prompts: Prompts, layout: Layout) -> tuple[_Rows, Any, Array]:
    """Rows that hold the histories, what the encoder stored of them, and the states [B, D] at their ends."""
    width, extra = prompts.items.shape[1], program.steps - 1
    rows = _Rows(
        prompts.items,
        prompts.timestamps,
        prompts.users,
        prompts.lengths,
        prompts.excluded,
        prompts.repeats,
        {},
    )
    if not program.cached:
        # Histories move to the left as they grow, and what moves out of L columns is forgotten.
        return rows, {}, _encode(program, params, rows, layout, 0)
    batch = _packed_batch(program, rows, layout, 0)
    states, stored = _apply(program, {"params": params}, batch, layout.ends, CacheStep())
    hidden = states.reshape(-1, states.shape[-1])[layout.index]
    known, grown = with_room(rows_of_sequences(stored, layout.ends, layout.index, width), extra)
    # New columns on the right; a new interaction has the time of the newest known one.
    padding, edge = ((0, 0), (0, extra)), prompts.timestamps
    rows = rows._replace(
        items=jnp.pad(prompts.items, padding),
        timestamps=None if edge is None else jnp.pad(edge, padding, mode="edge"),
        grown=grown,
    )
    return rows, known, hidden


def _extend(
    program: Program, variables: Any, layout: Layout, rows: _Rows, items: Array, step: Array
) -> tuple[_Rows, Array]:
    """Append an item to every row, and compute the states [R, D] at the new ends."""
    if not program.cached:
        append = partial(jnp.concatenate, axis=1)
        times = rows.timestamps
        rows = rows._replace(
            items=append([rows.items[:, 1:], items[:, None]]),
            timestamps=None if times is None else append([times[:, 1:], times[:, -1:]]),
            lengths=jnp.minimum(rows.lengths + 1, rows.items.shape[1]),
        )
        return rows, _encode(program, variables["params"], rows, layout, step)
    width = rows.items.shape[1] - (program.steps - 1)
    column = width + step - 1
    rows = rows._replace(items=lax.dynamic_update_slice_in_dim(rows.items, items[:, None], column, axis=1))
    batch = _growing_batch(program, rows, width)
    hidden, grown = _apply(program, {**variables, **rows.grown}, batch, None, CacheStep(column))
    return rows._replace(grown=grown), hidden[:, 0]


def _apply(
    program: Program, variables: Any, batch: Batch, query_positions: Array | None, cache: CacheStep
) -> tuple[Array, Any]:
    encoder: Any = program.forward.encoder
    stored = [KNOWN if cache.column is None else GROWN]
    return encoder.apply(variables, batch, False, query_positions, cache=cache, mutable=stored)


def _growing_batch(program: Program, rows: _Rows, width: int) -> Batch:
    """Rows of ``width`` columns for histories, which end there, and columns for what is generated."""
    column = jnp.arange(rows.items.shape[1], dtype=jnp.int32)[None]
    real = column >= width - rows.lengths[:, None]
    from_start = column - (width - rows.lengths[:, None])
    index = from_start if program.position_origin == "start" else rows.items.shape[1] - 1 - column
    return _batch(rows.items, index, real, rows._replace(users=rows.users[:, None]))


def _encode(program: Program, params: Any, rows: _Rows, layout: Layout, step: Array | int) -> Array:
    """States [R, D] of histories that end at the last column, by the encoder's forward pass alone."""
    layout = _repeated(layout, rows.items.shape[0] // layout.index.shape[0])
    states = program.forward(params, _packed_batch(program, rows, layout, step), layout.ends)
    return states.reshape(-1, states.shape[-1])[layout.index]


def _packed_batch(program: Program, rows: _Rows, layout: Layout, step: Array | int) -> Batch:
    """The packed rows [N, L] of histories that end at the last column."""
    items, lengths, times = rows.items, rows.lengths, rows.timestamps
    token = program.forward.query_token
    if token is not None:
        # The token asks for the next item; its time is that of the newest interaction.
        number = jnp.int32(program.forward.encoder.spec.n_items + 1 + token)
        items = jnp.concatenate([items, jnp.full((items.shape[0], 1), number)], axis=1)
        times = None if times is None else jnp.concatenate([times, times[:, -1:]], axis=1)
        lengths = jnp.where(lengths > 0, lengths + 1, 0)
    owner, column = layout.history, jnp.maximum(items.shape[1] - 1 - layout.offset, 0)
    real = layout.offset < lengths[owner]
    if program.position_origin == "start":
        index = lengths[owner] - 1 - layout.offset
    else:
        fixed = program.planned or program.cached
        index = layout.offset + (program.steps - 1 - jnp.int32(step) if fixed else jnp.int32(0))
    packed = rows._replace(
        users=rows.users[owner], timestamps=None if times is None else times[owner, column]
    )
    batch = _batch(items[owner, column], index, real, packed)
    return batch._replace(segments=jnp.where(real, layout.slots, 0))


def _layout(places: Places, row_length: int) -> Layout:
    """The columns of the places; those of rows without any belong to none."""
    lengths, column = places.lengths, jnp.arange(row_length, dtype=jnp.int32)[None]
    used = lengths > 0
    stops = jnp.cumsum(lengths, axis=1, dtype=jnp.int32)
    number = (jnp.cumsum(used.reshape(-1), dtype=jnp.int32) - 1).reshape(used.shape)
    slot = (column[:, :, None] >= stops[:, None, :]).sum(axis=2, dtype=jnp.int32)
    slot = jnp.minimum(slot, lengths.shape[1] - 1)
    inside = column < stops[:, -1:]
    end = jnp.take_along_axis(stops, slot, axis=1)
    return Layout(
        history=jnp.where(inside, jnp.take_along_axis(number, slot, axis=1), 0),
        offset=jnp.where(inside, end - 1 - column, row_length),
        slots=jnp.where(inside, slot + 1, 0),
        ends=jnp.maximum(stops - 1, 0),
        index=places.index,
    )


def _repeated(layout: Layout, beams: int) -> Layout:
    """The layout of ``beams`` adjacent copies of each history."""
    if beams == 1:
        return layout
    number = jnp.arange(beams, dtype=jnp.int32)
    places = layout.ends.shape[0] * layout.ends.shape[1]
    copies = jax.tree.map(lambda x: jnp.tile(x, (beams, 1)), layout._replace(index=layout.ends))
    of_row = jnp.repeat(number, layout.ends.shape[0])[:, None]
    return copies._replace(
        history=copies.history * beams + of_row,
        index=(layout.index[:, None] + number[None] * places).reshape(-1),
    )


def _batch(items: Array, index: Array, real: Array, rows: _Rows) -> Batch:
    index = jnp.broadcast_to(index, items.shape)
    nothing = jnp.zeros(items.shape, jnp.int32)
    return Batch(
        items=jnp.where(real, items, 0),
        positions=jnp.where(real, index, 0),
        segments=real.astype(jnp.int32),
        targets=nothing,
        weights=nothing.astype(jnp.float32),
        timestamps=rows.timestamps,
        users=jnp.where(real, rows.users, -1),
    )
