"""Negative samplers: draws inside the compiled step, each with the logarithm of its expected count (for logQ).

Two ways of drawing are offered. *Own* draws (``shared=False``) are made for each position, and never hit what they must
avoid: the position's target and, with ``exclude_seen``, the items of its user. Uniform draws skip the avoided items by
rank and draws by weight skip the target in the same way; avoided items of the user are drawn again, up to `MOST_ROUNDS`
times. One draw *shared* by all positions cannot avoid the items of each of them; hits are masked instead.

``valid`` marks the draws that count, in both. It is False for a hit of a shared draw, for the few own draws that are still
hits after all rounds, and where a position has no item left to draw.

A sampler is a function ``Request -> Negatives`` in `SAMPLERS`; ``@SAMPLERS.register("name")`` adds one. `draw_by_weight`
makes one of any weights of items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from jaxrec.objectives.base import LossInputs
from jaxrec.registry import Registry
from jaxrec.sharding import DATA, ItemShards, equally_varying

#: Draws of one negative before a hit of the user's own items is left masked. Of a user whose items carry half of all
#: weight, one draw in 65,536 is.
MOST_ROUNDS = 16
#: Items that "hard" looks at beyond the number of negatives to find some that the user has not seen.
HARD_MARGIN = 128
#: Lists of users that a shared draw is searched in at a time.
RUNS = 32


class Negatives(NamedTuple):
    """Draws for N positions, own or shared (leading axis 1).

    Attributes:
      items: int32[N or 1, n], ids in 1..V.
      log_expected: float32[N or 1, n], logarithm of the expected number of occurrences of the item among the n draws.
      valid: bool[N, n], whether a draw counts.
    """

    items: Int[Array, "M n"]
    log_expected: Float[Array, "M n"]
    valid: Bool[Array, "N n"]


class Request(NamedTuple):
    """Inputs and options of a sampler; see `jaxrec.objectives.sampled.SampledObjectiveConfig` for the options."""

    inputs: LossInputs
    n_negatives: int
    shared: bool = False
    exclude_seen: bool = False
    alpha: float = 0.75
    count_smoothing: float = 1.0
    uniform_share: float = 0.5

    @property
    def n_items(self) -> int:
        """V."""
        return self.inputs.n_items

    @property
    def covers_catalogue(self) -> bool:
        """Whether as many negatives are requested as there are items."""
        return self.n_negatives >= self.n_items

    @property
    def shape(self) -> tuple[int, int]:
        """(N or 1, n)."""
        return (1 if self.shared else self.inputs.targets.shape[0], self.n_negatives)

    @property
    def key(self) -> Array:
        """Random key of the draws."""
        assert self.inputs.key is not None, "a sampler needs LossInputs.key"
        return self.inputs.key

    def seen(self) -> SortedLists:
        """Return the items to avoid besides the target: those of each position's user, or none."""
        n = self.inputs.targets.shape[0]
        if not self.exclude_seen:
            zeros = jnp.zeros((n,), jnp.int32)
            return SortedLists(jnp.zeros((1,), jnp.int32), zeros, zeros)
        return SortedLists.of(self.inputs)

    def avoided(self, items: Int[Array, "M n"]) -> Bool[Array, "N n"]:
        """Return whether each item is its position's target or, with ``exclude_seen``, an item of its user."""
        hit = items == self.inputs.targets[:, None]
        if not self.exclude_seen:
            return hit
        seen = self.seen()
        return hit | (
            seen.share(items[0], self.inputs.table.shards) if items.shape[0] == 1 else seen.contains(items)
        )


SAMPLERS: Registry[Callable[[Request], Negatives]] = Registry("sampler")


@SAMPLERS.register("uniform")
def uniform(request: Request) -> Negatives:
    """Draw each item with the same probability."""
    if request.covers_catalogue:
        return catalogue(request)
    v, n = request.n_items, request.n_negatives
    if request.shared:
        items = jax.random.randint(request.key, request.shape, 1, v + 1, jnp.int32)
        return Negatives(items, jnp.full(items.shape, jnp.log(n / v), jnp.float32), ~request.avoided(items))
    # With k items to avoid, a rank among the other V - k is drawn, and the item of that rank found by binary search.
    targets, seen = request.inputs.targets[:, None], request.seen()
    avoids_target = (targets > 0) & ~seen.contains(targets)
    n_allowed = v - seen.sizes()[:, None] - avoids_target.astype(jnp.int32)
    rank = jax.random.randint(request.key, request.shape, 0, jnp.maximum(n_allowed, 1), jnp.int32)
    target_rank = targets - 1 - seen.count_while(lambda item, _: item < targets, 1)
    rank = rank + (avoids_target & (rank >= target_rank)).astype(jnp.int32)
    items = rank + 1 + seen.count_while(lambda item, index: item - 1 - index <= rank, n)
    log_expected = jnp.log(n / jnp.maximum(n_allowed, 1).astype(jnp.float32))
    valid = jnp.broadcast_to(n_allowed > 0, items.shape)
    return Negatives(jnp.minimum(items, v), jnp.broadcast_to(log_expected, items.shape), valid)


@SAMPLERS.register("popularity")
def popularity(request: Request) -> Negatives:
    """Draw each item with a probability proportional to (its count + ``count_smoothing``) to the power ``alpha``.

    Without smoothing an item that the training part lacks is never drawn.
    """
    return catalogue(request) if request.covers_catalogue else draw_by_weight(request, _popularity(request))


@SAMPLERS.register("mixed")
def mixed(request: Request) -> Negatives:
    """Draw a share ``uniform_share`` of the negatives from "uniform", the others from "popularity"."""
    if request.covers_catalogue:
        return catalogue(request)
    share, popular = request.uniform_share, _popularity(request)
    flat = jnp.full(popular.shape, share / request.n_items, jnp.float32).at[0].set(0.0)
    return draw_by_weight(request, flat + (1 - share) * popular / jnp.sum(popular))


@SAMPLERS.register("in-batch")
def in_batch(request: Request) -> Negatives:
    """Draw from the targets of the batch's real positions, each occurrence with the same probability.

    Over batches an item is drawn as often as it is a target, so its expected count is that of its share of the training
    interactions (Yi et al., RecSys 2019), whatever this batch holds of it. Items that training lacks are never drawn.
    """
    inputs = request.inputs
    real = (inputs.weights > 0).astype(jnp.float32)
    occurrences = jnp.zeros((request.n_items + 1,), jnp.float32).at[inputs.targets].add(real, mode="drop")
    return draw_by_weight(
        request, occurrences.at[0].set(0.0), training_shares(inputs, "the in-batch sampler")
    )


@SAMPLERS.register("hard")
def hard(request: Request) -> Negatives:
    """Take the items that the present model scores highest: for each position, or for the mean hidden state of all.

    They are no sample: the expected count of each is one, so logQ leaves their scores as they are. With ``exclude_seen``
    the unseen ones among the best n + `HARD_MARGIN` count.
    """
    if request.covers_catalogue:
        return catalogue(request)
    inputs, n = request.inputs, request.n_negatives
    table, hidden, targets = inputs.table, inputs.hidden, inputs.targets
    rows = jnp.arange(table.vectors.shape[0], dtype=jnp.int32)
    candidate = (rows > 0) & (rows <= request.n_items)
    if request.shared:
        share = inputs.weights / jnp.maximum(jnp.sum(inputs.weights), 1e-9)
        hidden = jnp.sum(hidden * share[:, None], axis=0, keepdims=True)
        targets = jnp.zeros((1,), jnp.int32)
    searches = request.exclude_seen and not request.shared
    k = min(n + HARD_MARGIN if searches else n, request.n_items)

    def best(position: tuple[Array, Array]) -> Array:
        state, target = position
        scores = table.vectors @ state + (0.0 if table.bias is None else table.bias)
        scores = jnp.where(candidate & (rows != target), scores, -jnp.inf)
        return lax.top_k(table.replicate(scores), k)[1].astype(jnp.int32)

    # One row at a time would starve the products, all rows at once would hold [N, V] scores.
    items = lax.map(best, (hidden, targets), batch_size=64)
    # Beyond the last candidate come rows that are none: they count as hits.
    items = jnp.where((items > 0) & (items <= request.n_items), items, jnp.maximum(targets, 1)[:, None])
    if searches:
        unseen_first = jnp.argsort(request.avoided(items), axis=1, stable=True)[:, :n]
        items = jnp.take_along_axis(items, unseen_first, axis=1)
    return Negatives(items, jnp.zeros(items.shape, jnp.float32), ~request.avoided(items))


def draw(sampler: str, request: Request) -> Negatives:
    """Return negatives of the sampler registered as ``sampler``, drawn from arrays without gradients."""
    hidden, table = lax.stop_gradient((request.inputs.hidden, request.inputs.table))
    return SAMPLERS[sampler](request._replace(inputs=request.inputs._replace(hidden=hidden, table=table)))


def catalogue(request: Request) -> Negatives:
    """Return every item once, expected once: no sample but the catalogue."""
    items = jnp.arange(1, request.n_items + 1, dtype=jnp.int32)[None, :]
    return Negatives(items, jnp.zeros(items.shape, jnp.float32), ~request.avoided(items))


def draw_by_weight(
    request: Request, weights: Float[Array, " V1"], expected: Float[Array, " V1"] | None = None
) -> Negatives:
    """Draw items with probabilities proportional to ``weights``.

    Sums of weights are float32, so a probability below about 1e-7 is rounded.

    Args:
      request: shape and options of the draw.
      weights: [V+1], not negative; entry 0 is 0.
      expected: [V+1], probabilities that the expected counts are computed from, where they are not those of ``weights``.
    """
    n = request.n_negatives
    cumulative = jnp.cumsum(weights)
    if expected is None:
        expected = weights / jnp.where(cumulative[-1] > 0, cumulative[-1], 1.0)
    log_expected = jnp.log(jnp.where(expected > 0, expected, 1.0) * n)
    if request.shared:
        items = inverse_transform(cumulative, jax.random.uniform(request.key, request.shape))
        valid = ~request.avoided(items) & (weights[items] > 0)
        return Negatives(jnp.maximum(items, 1), log_expected[items], valid)

    def fresh(round_number: Array) -> Array:
        """Draw again, never the target."""
        key = jax.random.fold_in(request.key, round_number)
        return inverse_transform(cumulative, jax.random.uniform(key, request.shape), request.inputs.targets)

    def hits(items: Array) -> Array:
        return request.avoided(items) | (weights[items] <= 0)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        round_number, items, hit = carry
        items = jnp.where(hit, fresh(round_number), items)
        return round_number + 1, items, hits(items)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        round_number, _, hit = carry
        return (round_number < MOST_ROUNDS) & jnp.any(hit & (request.inputs.weights > 0)[:, None])

    items = fresh(jnp.int32(0))
    hit = hits(items)
    if request.exclude_seen:
        _, items, hit = lax.while_loop(unfinished, body, (jnp.int32(1), items, hit))
    allowed = jnp.maximum(1.0 - avoided_mass(request, expected), 1e-6)
    return Negatives(jnp.maximum(items, 1), log_expected[items] - jnp.log(allowed)[:, None], ~hit)


def avoided_mass(request: Request, probability: Float[Array, " V1"]) -> Float[Array, " N"]:
    """Return the probability of the items that own draws of each position avoid."""
    targets = request.inputs.targets
    of_target = jnp.where(targets > 0, probability[targets], 0.0)
    if not request.exclude_seen:
        return of_target
    sampling = request.inputs.sampling
    users, items, offsets = (
        sampling.require(field, "exclude_seen") for field in ("users", "seen_items", "seen_offsets")
    )
    n_users = offsets.shape[0] - 1
    user = jnp.repeat(jnp.arange(n_users), jnp.diff(offsets), total_repeat_length=items.shape[0])
    of_user = jax.ops.segment_sum(probability[items], user, n_users)[jnp.maximum(users, 0)]
    own = request.seen().contains(targets[:, None])[:, 0]
    return jnp.where(users >= 0, of_user, 0.0) + jnp.where(own, 0.0, of_target)


def inverse_transform(
    cumulative: Float[Array, " K"], uniforms: Float[Array, "N n"], skipped: Int[Array, " N"] | None = None
) -> Int[Array, "N n"]:
    """Return indices drawn with probabilities whose running sum, not normalised, is ``cumulative``.

    Args:
      cumulative: [K], running sum of weights.
      uniforms: [N, n], uniform in [0, 1).
      skipped: [N], an index for each row to leave out, as if its weight were 0; 0 = none.
    """
    total = cumulative[-1]
    # Rounding may reach the total: the last index with a weight is the first at which the sum is complete.
    last = jnp.searchsorted(cumulative, total, side="left")
    if skipped is None:
        place = uniforms * total
    else:
        before = jnp.where(skipped > 0, cumulative[skipped - 1], total)[:, None]
        weight = jnp.where(skipped > 0, cumulative[skipped] - cumulative[skipped - 1], 0.0)[:, None]
        place = uniforms * (total - weight)
        place = place + jnp.where(place >= before, weight, 0.0)
    index = jnp.searchsorted(cumulative, place.reshape(-1), side="right").reshape(place.shape)
    return jnp.minimum(index, last).astype(jnp.int32)


def training_shares(inputs: LossInputs, reason: str) -> Float[Array, " V1"]:
    """Return each item's share of the training interactions, at least that of one interaction."""
    counts = inputs.sampling.require("item_counts", reason).astype(jnp.float32)
    return jnp.maximum(counts, 1.0) / jnp.maximum(jnp.sum(counts[1:]), 1.0)


def _popularity(request: Request) -> Array:
    counts = request.inputs.sampling.require("item_counts", "a sampler by popularity").astype(jnp.float32)
    counts = counts + request.count_smoothing
    powers = jnp.where(counts > 0, counts, 1.0) ** request.alpha
    return jnp.where(counts > 0, powers, 0.0).at[0].set(0.0)


class SortedLists(NamedTuple):
    """For each of N positions a sorted list of distinct items: ``items[start:stop]``."""

    items: Int[Array, " S"]
    start: Int[Array, " N"]
    stop: Int[Array, " N"]

    @classmethod
    def of(cls, inputs: LossInputs) -> SortedLists:
        """Return the training items of each position's user; none where the user is -1."""
        sampling = inputs.sampling
        users = sampling.require("users", "exclude_seen")
        items = sampling.require("seen_items", "exclude_seen")
        offsets = sampling.require("seen_offsets", "exclude_seen")
        user, is_user = jnp.maximum(users, 0), users >= 0
        return cls(items, jnp.where(is_user, offsets[user], 0), jnp.where(is_user, offsets[user + 1], 0))

    def sizes(self) -> Int[Array, " N"]:
        """Return the lengths of the lists."""
        return self.stop - self.start

    def count_while(self, holds: Callable[[Array, Array], Array], n: int) -> Int[Array, "N n"]:
        """Return for how many items of each list ``holds(item, index in the list)`` is true, by binary search.

        Args:
          holds: true for the first items of a list and false for all others; [N, n] of [N, n].
          n: searches for each position.
        """
        start = jnp.broadcast_to(self.start[:, None], (self.start.shape[0], n))
        stop = jnp.broadcast_to(self.stop[:, None], start.shape)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = low + (high - low) // 2  # the sum may be above int32
            item = jnp.take(self.items, middle, mode="clip")
            inside = (low < high) & holds(item, middle - start)
            return jnp.where(inside, middle + 1, low), jnp.where(inside, high, jnp.maximum(low, middle))

        steps = 32 - lax.clz(jnp.max(self.sizes(), initial=0))  # bits of the longest list's length
        low, _ = lax.fori_loop(0, steps, halve, (start, stop))
        return low - start

    def share(self, items: Int[Array, " n"], shards: ItemShards | None = None) -> Bool[Array, "N n"]:
        """Return whether each of the same items is in each list.

        Neighbouring positions have one user, so a list is searched once for each run of equal ones: `RUNS` runs at a time.

        Args:
          items: [n].
          shards: of the item tables, on a mesh: each device searches for its own positions.
        """
        if shards is None:
            return self._share(items)
        own = P(DATA) if self.start.shape[0] % shards.mesh.shape[DATA] == 0 else P()
        local = jax.shard_map(
            lambda lists, starts, stops, items: SortedLists(lists, starts, stops)._share(items),
            mesh=shards.mesh,
            in_specs=(P(), own, own, P()),
            out_specs=own,
        )
        return local(self.items, self.start, self.stop, items)

    def _share(self, items: Int[Array, " n"]) -> Bool[Array, "N n"]:
        n = self.start.shape[0]
        changes = (self.start[1:] != self.start[:-1]) | (self.stop[1:] != self.stop[:-1])
        run = jnp.pad(jnp.cumsum(changes, dtype=jnp.int32), (1, 0))
        room = -(-n // RUNS) * RUNS
        starts, stops = (jnp.zeros((room,), jnp.int32).at[run].set(x) for x in (self.start, self.stop))
        found, starts, stops = equally_varying(jnp.zeros((room, items.shape[0]), bool), starts, stops)

        def search(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            first, found = carry
            lists = SortedLists(
                self.items, *(lax.dynamic_slice(x, (first,), (RUNS,)) for x in (starts, stops))
            )
            rows = lists.contains(jnp.broadcast_to(items, (RUNS, items.shape[0])))
            return first + RUNS, lax.dynamic_update_slice(found, rows, (first, 0))

        first, _ = equally_varying(jnp.int32(0), run)
        _, found = lax.while_loop(lambda carry: carry[0] <= run[-1], search, (first, found))
        return found[run]

    def contains(self, items: Int[Array, "N n"]) -> Bool[Array, "N n"]:
        """Return whether ``items`` of each position are in its list."""
        place = self.start[:, None] + self.count_while(lambda item, _: item < items, items.shape[1])
        return (place < self.stop[:, None]) & (jnp.take(self.items, place, mode="clip") == items)
