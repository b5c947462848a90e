"""SR-GNN (Wu et al., "Session-based Recommendation with Graph Neural Networks", AAAI 2019, arXiv 1811.00855).

A session is a graph: its nodes are its distinct items, and each pair of consecutive items is an edge, however
often it occurs. A node u of width D with state h_u, predecessors P(u) and successors S(u) takes a step by

    a = [mean_{p in P(u)} (h_p W_in + b_in) + c_in ; mean_{s in S(u)} (h_s W_out + b_out) + c_out]
    r = sigmoid(a A_r + h_u B_r),  z = sigmoid(a A_z + h_u B_z),  n = tanh(a A_n + r * (h_u B_n))
    h_u <- (1 - z) * h_u + z * n                                                        (affine maps A, B)

(an empty mean is zero), and the session of items i_1, ..., i_t is read out by an attention without softmax:

    w_k = q . sigmoid(h_{i_t} W_1 + h_{i_k} W_2 + b),   hidden = [sum_k w_k h_{i_k} ; h_{i_t}] W_3 + b_3

**A graph for each prefix, in one pass.** The state after t items must be that of the graph of these t items
alone. With one propagation step, the paper's setting, a node's state changes only when an edge of its own
arrives: when its item is visited (an edge comes in), and one item later (an edge goes out). So two states per
position, "newest" and "left", are all states of all prefixes: the prefix of t items reads the "newest" state of
i_t, and for each other item the "left" state of its latest position, times how often it occurred. Propagation
then costs what it costs for one graph, training on all positions equals training on all prefixes, and packed
rows are exact. With more steps (``--encoder.layers``) every prefix is propagated by itself, L times the cost.

**Readings.** ``--encoder.reading``:

  * "prefix": as above; causal, and the same under any padding.
  * "session": the per-position reading of the public port to the code base of Li et al. 2023, with its padding
    mended. One graph of the whole session serves every position, and position t answers
    ``[w_t h_{i_t} ; h_{i_n}] W_3 + b_3`` for the session's last item i_n: while training, states depend on items
    that they are to predict.
  * "session-padding-faults": that reading with what left padding does to it in the port. A history with two or
    more padded positions gets a graph without edges, and its "last item" is taken ``n - 1`` positions from the left
    of the padded row, which is a padded position unless the history fills more than half of the row. (With exactly
    one padded position the port adds an edge from padding to the first item; this is left out.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import Mask
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import ENCODERS, Encoder, EncoderConfig
from jaxrec.models.blocks import zero_padding
from jaxrec.models.output_table import ScoreOptions, input_count, input_vectors, item_scores, output_states
from jaxrec.nn.embedding import ItemEmbedding
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import Dropout, Initializer, take_positions
from jaxrec.nn.precision import DTYPES, einsum, matmul
from jaxrec.nn.segments import first_index, is_last
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Range, Search


class Affine(NamedTuple):
    """Kernel float32[I, O] and bias float32[O], or None for no bias."""

    kernel: Float[Array, "I O"]
    bias: Float[Array, " O"] | None

    def __call__(self, x: Float[Array, "*rows I"], dtype: Any) -> Float[Array, "*rows O"]:
        """Map ``x`` [..., I] to [..., O]."""
        y = matmul(x, self.kernel, dtype)
        return y if self.bias is None else y + self.bias.reshape((1,) * (y.ndim - 1) + (-1,))


class AffineParameters(nn.Module):
    """Owner of the parameters of an `Affine`: ``I * O + O`` of them, or ``I * O`` without a bias."""

    inputs: int
    outputs: int
    use_bias: bool
    init: Initializer

    @nn.compact
    def __call__(self) -> Affine:
        """Return the parameters."""
        kernel = self.param("kernel", self.init, (self.inputs, self.outputs), jnp.float32)
        return Affine(
            kernel, self.param("bias", self.init, (self.outputs,), jnp.float32) if self.use_bias else None
        )


class Weights(NamedTuple):
    """All parameters but the items'; see the equations in the module's docstring."""

    incoming: Affine
    outgoing: Affine
    incoming_bias: Float[Array, " D"]
    outgoing_bias: Float[Array, " D"]
    gates_input: Affine
    gates_state: Affine
    last: Affine
    each: Affine
    query: Float[Array, " D"]
    output: Affine


class Sessions(NamedTuple):
    """Relations between the positions j and k of each row, bool[B, L, L] but for ``first`` int32[B, L].

    Attributes:
      first: column of the first position of each position's session.
      same: j and k belong to one session.
      item: and hold the same item.
      departure: and the edge from k to k + 1 is the first of its kind in the session.
      arrival: and the edge from k - 1 to k is (a kind of edge is a pair of items).
    """

    first: Int[Array, "B L"]
    same: Bool[Array, "B L L"]
    item: Bool[Array, "B L L"]
    departure: Bool[Array, "B L L"]
    arrival: Bool[Array, "B L L"]


def relate(items: Int[Array, "B L"], segments: Int[Array, "B L"]) -> Sessions:
    """Compare the positions of each row of ``items`` and ``segments`` int32[B, L]."""
    length = items.shape[1]
    real = segments > 0
    same = (segments[:, :, None] == segments[:, None, :]) & real[:, None, :]
    item = same & (items[:, :, None] == items[:, None, :])
    has_next = real & ~is_last(segments)
    following = jnp.pad(items[:, 1:], ((0, 0), (0, 1)))
    earlier = jnp.tril(jnp.ones((length, length), bool), -1)[None]
    repeats = item & (following[:, :, None] == following[:, None, :]) & has_next[:, None, :] & earlier
    departs = has_next & ~repeats.any(axis=2)
    arrives = jnp.pad(departs[:, :-1], ((0, 0), (1, 0)))
    return Sessions(first_index(segments), same, item, item & departs[:, None, :], item & arrives[:, None, :])


def neighbours(
    sessions: Sessions, last: Int[Array, "#B #L"]
) -> tuple[Bool[Array, "B L L"], Bool[Array, "B L L"]]:
    """Find the neighbours of the node at each position in the graph of the positions up to ``last``.

    Args:
      sessions: of the batch.
      last: int32, broadcastable to [B, L]: the last position of the graph in which the node of each position is seen.

    Returns:
      Predecessors and successors bool[B, L, L]; each neighbour of a node is marked at one position.
    """
    # An edge k - 1 -> k exists from k on. Arrivals mark k, departures k - 1.
    exists = jnp.arange(sessions.same.shape[2], dtype=jnp.int32)[None, None] <= last[:, :, None]
    predecessors = jnp.pad((sessions.arrival & exists)[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    successors = jnp.pad(sessions.departure[:, :, :-1], ((0, 0), (0, 0), (1, 0))) & exists
    return predecessors, successors


def mean_over(
    marked: Bool[Array, "B L L"], messages: Float[Array, "B L D"], bias: Float[Array, " D"], dtype: Any
) -> Float[Array, "B L D"]:
    """Mean of ``messages`` [B, L, D] over the positions ``marked`` bool[B, L, L], zero over none, plus ``bias`` [D]."""
    weights = marked.astype(jnp.float32)
    weights = weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1.0)
    return einsum("bjk,bkd->bjd", weights, messages, dtype) + bias[None, None]


def propagate(
    weights: Weights,
    states: Float[Array, "B L D"],
    marked: tuple[Bool[Array, "B L L"], Bool[Array, "B L L"]],
    dtype: Any,
) -> Float[Array, "B L D"]:
    """One step of the gated graph network: the nodes' new states [B, L, D] from ``states`` and their neighbours."""
    incoming = mean_over(marked[0], weights.incoming(states, dtype), weights.incoming_bias, dtype)
    outgoing = mean_over(marked[1], weights.outgoing(states, dtype), weights.outgoing_bias, dtype)
    inputs = weights.gates_input(jnp.concatenate([incoming, outgoing], axis=-1), dtype)
    reset_in, update_in, new_in = jnp.split(inputs, 3, axis=-1)
    reset_own, update_own, new_own = jnp.split(weights.gates_state(states, dtype), 3, axis=-1)
    update = jax.nn.sigmoid(update_in + update_own)
    new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_own) * new_own)
    return states + update * (new - states)


#: Numbers [B, queries, L, D] that are held at once: a CPU's cache, or a part of an accelerator's memory.
PAIR_NUMBERS = {"cpu": 1 << 19}
PAIR_NUMBERS_ELSEWHERE = 1 << 26


def pairwise_scores(
    last: Float[Array, "B S D"], each: Float[Array, "B L D"], query: Float[Array, " D"]
) -> Float[Array, "B S L"]:
    """``query . sigmoid(last_t + each_p)`` for all pairs: [B, S, D] and [B, L, D] give [B, S, L].

    In groups of queries, recomputed in the backward pass, so that no [B, S, L, D] array is kept.
    """
    n_queries = last.shape[1]
    most = PAIR_NUMBERS.get(jax.default_backend(), PAIR_NUMBERS_ELSEWHERE)
    group = min(n_queries, max(1, most // max(1, each.size)))

    def one(last: Array) -> Array:
        inner = jax.nn.sigmoid(last[:, :, None, :] + each[:, None, :, :])
        return (inner * query[None, None, None, :]).sum(axis=-1)

    groups = -(-n_queries // group)
    if groups == 1:
        return jax.checkpoint(one)(last)
    padded = jnp.pad(last, ((0, 0), (0, groups * group - n_queries), (0, 0)))
    padded = padded.reshape(last.shape[0], groups, group, -1).swapaxes(0, 1)
    out = lax.map(jax.checkpoint(one, prevent_cse=False), padded)
    return out.swapaxes(0, 1).reshape(last.shape[0], groups * group, -1)[:, :n_queries]


def scores(
    last: Float[Array, "B S D"], each: Float[Array, "B S D"], query: Float[Array, " D"]
) -> Float[Array, "B S"]:
    """``query . sigmoid(last + each)`` [B, S] for pairs that stand side by side, [B, S, D] both."""
    return (jax.nn.sigmoid(last + each) * query[None, None]).sum(axis=-1)


def read_prefixes(
    weights: Weights,
    states: Float[Array, "B L D"],
    sessions: Sessions,
    queries: Int[Array, "B S"],
    dtype: Any,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """Read out the prefixes that end at ``queries`` int32[B, S] after one propagation step.

    Returns:
      The sessions' sums and the states of their last items, [B, S, D] each.
    """
    length = states.shape[1]
    column = jnp.arange(length, dtype=jnp.int32)[None]
    newest = propagate(weights, states, neighbours(sessions, column), dtype)
    left = propagate(weights, states, neighbours(sessions, column + 1), dtype)
    later = column[:, None, :] > column[:, :, None]
    count = (sessions.item & ~later).sum(axis=2).astype(jnp.float32)
    next_visit = jnp.where(sessions.item & later, column[:, None, :], length).min(axis=2)
    same = jnp.take_along_axis(sessions.same, queries[:, :, None], axis=1)
    latest = same & (column[:, None] < queries[:, :, None]) & (queries[:, :, None] < next_visit[:, None, :])

    own = take_positions(newest, queries)
    last = weights.last(own, dtype)
    pairs = pairwise_scores(last, weights.each(left, dtype), weights.query)
    pairs = jnp.where(latest, pairs * count[:, None, :], 0.0)
    own_score = scores(last, weights.each(own, dtype), weights.query)
    own_score = own_score * jnp.take_along_axis(count, queries, axis=1)
    return einsum("bsl,bld->bsd", pairs, left, dtype) + own_score[..., None] * own, own


def read_prefix_by_prefix(
    weights: Weights,
    states: Float[Array, "B L D"],
    sessions: Sessions,
    queries: Int[Array, "B S"],
    layers: int,
    dtype: Any,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """`read_prefixes` for any number of propagation steps: one graph at a time."""

    @jax.checkpoint
    def one(query: Array) -> tuple[Array, Array]:
        query = query[:, None]
        nodes = states
        for _ in range(layers):
            nodes = propagate(weights, nodes, neighbours(sessions, query), dtype)
        own = take_positions(nodes, query)
        each = pairwise_scores(weights.last(own, dtype), weights.each(nodes, dtype), weights.query)
        column = jnp.arange(states.shape[1], dtype=jnp.int32)[None]
        seen = jnp.take_along_axis(sessions.same, query[:, :, None], axis=1)[:, 0] & (column <= query)
        total = einsum("bsl,bld->bsd", jnp.where(seen[:, None], each, 0.0), nodes, dtype)
        return total[:, 0], own[:, 0]

    totals, own = lax.map(one, queries.T)
    return totals.swapaxes(0, 1), own.swapaxes(0, 1)


def read_sessions(
    weights: Weights,
    states: Float[Array, "B L D"],
    sessions: Sessions,
    queries: Int[Array, "B S"],
    layers: int,
    padding_faults: int,
    dtype: Any,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """The per-position reading of the public port; ``padding_faults`` is the row length that it pads to, 0 = mended."""
    length = states.shape[1]
    count = sessions.same.sum(axis=2, dtype=jnp.int32)
    marked = neighbours(sessions, jnp.full((1, 1), length, jnp.int32))
    last = sessions.first + count - 1
    if padding_faults:
        padded = padding_faults - count
        marked = jax.tree.map(lambda x: x & (padded < 2)[:, :, None], marked)
        last = jnp.where(count > padded, last - padded, length)
    # One more node stands for padding: the zero vector, without neighbours.
    nodes = jnp.pad(states, ((0, 0), (0, 1), (0, 0)))
    marked = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 1))), marked)
    for _ in range(layers):
        nodes = propagate(weights, nodes, marked, dtype)
    last = jnp.clip(jnp.take_along_axis(last, queries, axis=1), 0, length)
    final, own = take_positions(nodes, last), take_positions(nodes, queries)
    score = scores(weights.last(final, dtype), weights.each(own, dtype), weights.query)
    return score[..., None] * own, final


@ENCODERS.register("srgnn")
@dataclasses.dataclass(frozen=True)
class SRGNNConfig(ScoreOptions, EncoderConfig):
    """A graph network over the items of each prefix; it has no positions.

    ``layers`` is the number of propagation steps, which share their parameters; ``dropout`` is the rate on the
    embeddings (the original has none).

    Attributes:
      reading: "prefix" (a graph for each prefix), "session" (the public port's: one graph of the whole session for all its
        positions, which see what they are to predict), or "session-padding-faults" (that with the port's faults under left
        padding); see the module's docstring.
    """

    layers: Annotated[int, Range("[1, inf)"), Search("1:3")] = 1
    dropout: Annotated[float, Range("[0, 1)"), Search("0:0.6")] = 0.0
    reading: Literal["prefix", "session", "session-padding-faults"] = "prefix"

    @property
    def reads_item_vectors(self) -> bool:
        """Always; see `EncoderConfig`."""
        return True

    def build(self, spec: DataSpec) -> SRGNN:
        """Build the encoder for data of these sizes."""
        return SRGNN(self, spec)


class SRGNN(Encoder):
    """``apply({"params": p}, batch, train, rngs) -> hidden float32[B, L, D]``.

    Parameters: ``(V + 1) D`` for the items (other with item vectors, `jaxrec.models.output_table.input_count`),
    ``n_special * D`` for tokens beside them, ``11 D^2 + 10 D`` for the
    propagation and ``4 D^2 + 3 D`` for the readout.
    """

    config: SRGNNConfig

    def _weights(self, init: Initializer) -> Weights:
        """Declare the parameters."""
        width = self.config.width

        def affine(name: str, inputs: int, outputs: int, use_bias: bool = True) -> Affine:
            return AffineParameters(inputs, outputs, use_bias, init, name=name)()

        def vector(name: str) -> Array:
            return self.param(name, init, (width,), jnp.float32)

        return Weights(
            incoming=affine("incoming", width, width),
            outgoing=affine("outgoing", width, width),
            incoming_bias=vector("incoming_bias"),
            outgoing_bias=vector("outgoing_bias"),
            gates_input=affine("gates_input", 2 * width, 3 * width),
            gates_state=affine("gates_state", width, 3 * width),
            last=affine("last", width, width),
            each=affine("each", width, width, use_bias=False),
            query=vector("query"),
            output=affine("output", 2 * width, width),
        )

    @nn.compact
    def __call__(
        self,
        batch: Batch,
        train: bool = False,
        query_positions: Int[Array, "B S"] | None = None,
        mask: Mask = "causal",
    ) -> Float[Array, "B S D"]:
        """Compute hidden states; see `Encoder`."""
        self.check_call(train, query_positions)
        if mask != "causal":
            raise ConfigError(
                f"the encoder 'srgnn' reads prefixes: expected the mask 'causal', got {mask!r}; for masked-item tasks "
                "choose --encoder transformer"
            )
        config, dtype = self.config, DTYPES[self.config.dtype]
        bound = config.width**-0.5

        def init(key: Array, shape: tuple[int, ...], kind: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, kind, -bound, bound)

        x = ItemEmbedding(
            self.spec, config.width, init, self.shards, config.item_delta, config.item_codes, name="items"
        )(batch.items)
        x = Dropout(config.dropout)(x, train)
        weights = self._weights(init)
        sessions = relate(jnp.asarray(batch.items), jnp.asarray(batch.segments))
        queries, segments = query_positions, batch.segments
        if queries is None:
            queries = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])
        else:
            segments = jnp.take_along_axis(batch.segments, queries, axis=1)
        if config.reading != "prefix":
            faults = self.max_length if config.reading == "session-padding-faults" else 0
            total, own = read_sessions(weights, x, sessions, queries, config.layers, faults, dtype)
        elif config.layers == 1:
            total, own = read_prefixes(weights, x, sessions, queries, dtype)
        else:
            total, own = read_prefix_by_prefix(weights, x, sessions, queries, config.layers, dtype)
        hidden = weights.output(jnp.concatenate([total, own], axis=-1), dtype)
        return output_states(self, zero_padding(hidden, segments))

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """Return the candidates' vectors float32[V+1, D]."""
        return item_scores(self, input_vectors(self, params))

    def parameter_count(self) -> int:
        """Count the parameters by the formula in the class docstring."""
        width = self.config.width
        return input_count(self) + 15 * width**2 + 13 * width
