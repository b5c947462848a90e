"""Pretraining of S3-Rec (Zhou et al., "S3-Rec: Self-Supervised Learning for Sequential Recommendation", CIKM 2020).

Four objectives relate items, attributes, sequences and segments. The encoder reads in both directions; h_t is its state at
position t of a history with masked items, e_i the vector of an item, g_a that of an attribute, and every objective has an
affine map W of its own. Sums go over the positions of all sequences of a batch (in prefix mode, over all their prefixes):

    AAP  items and their attributes:    sum over positions that are not masked, and over all attributes a, of
                                        BCE(g_a . W h_t, [a belongs to item t])
    MAP  masked items and attributes:   the same over masked positions
    MIP  masked items:                  sum over masked positions of -log sigmoid(e_t . W h_t - e_neg . W h_t)
    SP   segments:                      sum over sequences of -log sigmoid(s_pos . W c - s_neg . W c)

A position is masked with probability ``mask_rate``, the last one of a sequence always. The negative item of a position is
uniform among the items that its sequence does not hold. A segment has length r uniform in 1 .. n // 2 and a uniform start
in a sequence of n items; c is the last state of the sequence with the segment masked, s_pos that of the segment alone (all
else masked), s_neg that of other r items in its place. Sequences of one item have no segment. The loss is the weighted sum
of the four sums, not of means, divided by the rows of the batch. Positions of items without attributes are left out of AAP
and MAP. All draws are made inside the compiled step, from the batch alone: no interaction that is held out is read.

``form`` "paper" replaces the comparisons by the bounds on mutual information of the paper, with f(x, y) = sigmoid(x . W y):

    AAP, MAP   sum over the attributes a of the item of log sum_{b not of the item} exp f(x, g_b) - f(x, g_a)
    MIP        log sum_{i other than t} exp f(h_t, e_i) - f(h_t, e_t), over the whole catalogue
    SP         f(c, s_neg) - f(c, s_pos)

where x is h_t for MAP and, unlike in the code, the item's own vector e_t for AAP.

Faults of the published code are options: ``double_sigmoid`` (MIP and SP take -log sigmoid of a difference of sigmoids, so a
perfect model still has a loss of .31 per comparison), ``negative_segments`` "across-histories" (the items of a negative
segment are consecutive in the concatenation of all histories, and may belong to two users; the code reads held-out items,
too, which is not reproduced), ``padding_attribute`` (an attribute 0 that no item has is a class like the others).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import Mask
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder, blank_batch
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import take_positions
from jaxrec.nn.precision import einsum, matmul
from jaxrec.nn.segments import first_index, is_last, last_index, per_segment
from jaxrec.objectives import ObjectiveConfig
from jaxrec.options import Idle, Range
from jaxrec.tasks.base import TASKS, Resources, Task, TaskConfig
from jaxrec.tasks.masked_item import MASK_TOKEN, check_bidirectional

#: Draws of a negative segment before a sequence is left out of SP, where each draw hits its own user.
SEGMENT_DRAWS = 4
#: Positions scored against the whole catalogue at a time (``form`` "paper").
POSITION_CHUNK = 256
INIT_SCALE = 0.02


@TASKS.register("s3rec-pretraining")
@dataclasses.dataclass(frozen=True)
class S3RecConfig(TaskConfig):
    """Pretraining with four self-supervised objectives; the objective of the run is not used. See the module's docstring.

    Attributes:
      aap_weight: of associated attribute prediction.
      mip_weight: of masked item prediction.
      map_weight: of masked attribute prediction.
      sp_weight: of segment prediction.
      mask_rate: probability that a position before the last is masked.
      form: "code" (binary comparisons, as published code has them) or "paper" (bounds on mutual information).
      double_sigmoid: compare sigmoids instead of logits in MIP and SP, as the published code does.
      negative_segments: "one-history" (consecutive items of another user's history in the batch) or "across-histories"
        (consecutive items in the concatenation of the batch's histories, as the published code draws them).
      padding_attribute: treat the padding attribute as one more class, as the published code does.
    """

    aap_weight: Annotated[float, Range("[0, inf)")] = 0.2
    mip_weight: Annotated[float, Range("[0, inf)")] = 1.0
    map_weight: Annotated[float, Range("[0, inf)")] = 1.0
    sp_weight: Annotated[float, Range("[0, inf)")] = 0.5
    mask_rate: Annotated[float, Range("[0, 1]")] = 0.2
    form: Literal["code", "paper"] = "code"
    double_sigmoid: bool = False
    negative_segments: Annotated[Literal["one-history", "across-histories"], Idle("sp_weight", (0.0,))] = (
        "one-history"
    )
    padding_attribute: bool = False

    n_special: ClassVar[int] = 1
    whole_sequences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every option."""
        super().__post_init__()
        if not any((self.aap_weight, self.mip_weight, self.map_weight, self.sp_weight)):
            raise ConfigError(
                "one of --task.aap-weight, --task.mip-weight, --task.map-weight, --task.sp-weight must be above 0; got 0 "
                "for all"
            )
        if self.form == "paper" and self.double_sigmoid:
            raise ConfigError("--task.double-sigmoid belongs to --task.form code; got form 'paper'")

    @property
    def needs_attributes(self) -> bool:
        """Whether an objective reads attributes."""
        return self.aap_weight > 0 or self.map_weight > 0

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> S3RecPretraining:
        """Build the task.

        Raises:
          ConfigError: the encoder reads in one direction, or the data lack what a weighted objective needs.
        """
        spec = encoder.spec
        if self.needs_attributes and not spec.n_attributes:
            raise ConfigError(
                "--task.aap-weight and --task.map-weight need attributes of items: expected a dataset with attributes, got "
                "one without; load them with the items, or set both weights to 0"
            )
        if self.sp_weight and spec.max_length < 2:
            raise ConfigError(
                "--batches.max-length must be at least 2 for segments; "
                f"got {spec.max_length}: choose longer rows, or --task.sp-weight 0"
            )
        if self.mip_weight and spec.n_items <= spec.max_length:
            raise ConfigError(
                f"--batches.max-length must be below the {spec.n_items} items of the catalogue, so that every sequence has "
                f"a negative item; got {spec.max_length}: choose shorter rows, or --task.mip-weight 0"
            )
        check_bidirectional(encoder, "s3rec-pretraining")
        return S3RecPretraining(encoder, objective, self)


class Views(NamedTuple):
    """A batch of histories with the draws of one step.

    Attributes:
      batch: the histories.
      masked: bool[B, L].
      negatives: int32[B, L], an item that is not in the position's sequence.
      segment_views: int32[B, 3, L], items with the segment masked, of the segment alone, and of its negative.
      comparisons: bool[B, L], True at the last position of each sequence that takes part in SP.
    """

    batch: Batch
    masked: Bool[Array, "B L"]
    negatives: Int[Array, "B L"]
    segment_views: Int[Array, "B 3 L"]
    comparisons: Bool[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class S3RecPretraining(Task):
    """The four objectives; their affine maps and the attributes' vectors are the task's parameters.

    ``4 (D^2 + D)`` parameters less ``D^2 + D`` for each weight of 0, and ``A D`` for A attributes where they are read
    (``(A + 1) D`` with ``padding_attribute``).
    """

    config: S3RecConfig

    mask: ClassVar[Mask] = "bidirectional"
    query_token: ClassVar[int | None] = MASK_TOKEN

    def init(self, key: Array) -> dict[str, Any]:
        """Initialise the affine maps and the attributes' vectors."""
        config, width = self.config, self._width()
        params: dict[str, Any] = {}
        for number, name in enumerate(("aap", "mip", "map", "sp")):
            if getattr(config, f"{name}_weight"):
                kernel = INIT_SCALE * jax.random.normal(jax.random.fold_in(key, number), (width, width))
                params[name] = {"kernel": kernel, "bias": jnp.zeros((width,), jnp.float32)}
        if config.needs_attributes:
            rows = self.spec.n_attributes + int(config.padding_attribute)
            table = INIT_SCALE * jax.random.normal(jax.random.fold_in(key, 4), (rows, width))
            params["attributes"] = {"table": table}
        return params

    def _width(self) -> int:
        """Size of the vectors that score items."""
        plain = self.encoder.clone(shards=None)
        batch = blank_batch(self.spec.max_length)
        shape = jax.eval_shape(
            lambda: plain.item_table(plain.init(jax.random.key(0), batch)["params"]).vectors
        )
        return shape.shape[-1]

    def prepare(self, batch: Batch, key: Array, resources: Resources) -> Any:
        """Draw masks, negatives and segments: a `Views`."""
        mask_key, negative_key, segment_key = jax.random.split(key, 3)
        masked = jax.random.uniform(mask_key, batch.items.shape) < self.config.mask_rate
        masked = (batch.segments > 0) & (masked | is_last(batch.segments))
        negatives = negative_items(batch.items, batch.segments, self.spec.n_items, negative_key)
        token = jnp.int32(self.spec.n_items + 1 + MASK_TOKEN)
        views, comparisons = segment_views(batch, token, self.config.negative_segments, segment_key)
        return Views(batch, masked, negatives, views, comparisons)

    def loss(
        self, params: Any, batch: Any, key: Array, resources: Resources
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute the weighted sum of the four sums, and the number of rows.

        Args:
          params: the encoder's, with the task's under "task".
          batch: a `Views`.
          key: for dropout.
          resources: with ``attributes`` where AAP or MAP is weighted.
        """
        terms = self.terms(params, batch, key, resources)
        total = sum(getattr(self.config, f"{name}_weight") * term for name, term in terms.items())
        return total, jnp.float32(batch.masked.shape[0])

    def terms(
        self, params: Any, views: Views, key: Array, resources: Resources
    ) -> dict[str, Float[Array, ""]]:
        """Compute the sums of the weighted objectives, by name."""
        config, batch, maps = self.config, views.batch, params["task"]
        hidden, segment_hidden = self._hidden(params, views, key)
        table = self.encoder.item_table(params)
        terms: dict[str, Array] = {}
        if config.needs_attributes:
            terms |= self._attribute_terms(maps, hidden, table, views, resources.attributes)
        if config.mip_weight:
            context = affine(hidden, maps["mip"])
            positive = scores(context, table.take(batch.items).vectors)
            if config.form == "paper":
                loss = catalogue_bound(context, table, batch.items)
            else:
                loss = self._compare(positive, scores(context, table.take(views.negatives).vectors))
            terms["mip"] = jnp.where(views.masked, loss, 0.0).sum()
        if config.sp_weight:
            context = affine(segment_hidden[:, 0], maps["sp"])
            positive, negative = (scores(context, segment_hidden[:, view]) for view in (1, 2))
            compared = jnp.take_along_axis(views.comparisons, compared_columns(views.comparisons), axis=1)
            terms["sp"] = jnp.where(compared, self._compare(positive, negative), 0.0).sum()
        return terms

    def _hidden(self, params: Any, views: Views, key: Array) -> tuple[Array, Array]:
        """States [B, L, D] of the masked histories, and [B, 3, S, D] of the segment views at `compared_columns`."""
        batch, encoder = views.batch, self.encoder
        token = jnp.int32(self.spec.n_items + 1 + MASK_TOKEN)

        def states(batch: Batch, number: int, columns: Array | None = None) -> Array:
            rngs = {"dropout": jax.random.fold_in(key, number)}
            out: Array = encoder.apply({"params": params}, batch, True, columns, self.mask, rngs=rngs)
            return out

        hidden = states(batch._replace(items=jnp.where(views.masked, token, batch.items)), 0)
        if not self.config.sp_weight:
            return hidden, hidden[:, None, :0]
        n_rows, n_views, length = views.segment_views.shape
        repeated = jax.tree.map(lambda x: jnp.repeat(x, n_views, axis=0), batch)
        repeated = repeated._replace(items=views.segment_views.reshape(n_rows * n_views, length))
        columns = jnp.repeat(compared_columns(views.comparisons), n_views, axis=0)
        if encoder.selects_in_training:
            of_views = states(repeated, 1, columns)
        else:
            of_views = take_positions(states(repeated, 1), columns)
        return hidden, of_views.reshape(n_rows, n_views, columns.shape[1], -1)

    def _compare(self, positive: Array, negative: Array) -> Array:
        """Loss of one comparison of logits, elementwise."""
        if self.config.form == "paper":
            return jax.nn.sigmoid(negative) - jax.nn.sigmoid(positive)
        if self.config.double_sigmoid:
            positive, negative = jax.nn.sigmoid(positive), jax.nn.sigmoid(negative)
        return jax.nn.softplus(negative - positive)

    def _attribute_terms(
        self, maps: Any, hidden: Array, table: ItemTable, views: Views, attributes: Array | None
    ) -> dict[str, Array]:
        """AAP over positions that are not masked, MAP over those that are."""
        config, items = self.config, views.batch.items
        if attributes is None:
            raise ConfigError(
                "the task 's3rec-pretraining' was given no attributes: expected Resources.attributes"
            )
        own = attributes[items]
        own = jnp.where(own > 0, own - (0 if config.padding_attribute else 1), -1)
        described = (views.batch.segments > 0) & (own >= 0).any(axis=-1)
        positions = {"aap": described & ~views.masked, "map": described & views.masked}
        positions = {name: where for name, where in positions.items() if getattr(config, f"{name}_weight")}
        # A position takes part in one of the two, so that one product with all attributes serves both.
        context = jnp.zeros((), jnp.float32)
        for name, where in positions.items():
            from_items = config.form == "paper" and name == "aap"
            states = table.take(items).vectors if from_items else hidden
            context = jnp.where(where[..., None], affine(states, maps[name]), context)
        function = attribute_bound if config.form == "paper" else attribute_loss
        loss = function(context, maps["attributes"]["table"], own)
        return {name: jnp.where(where, loss, 0.0).sum() for name, where in positions.items()}


def compared_columns(comparisons: Bool[Array, "B L"]) -> Int[Array, "B S"]:
    """Columns of each row's comparisons, then others: int32[B, S], S = L // 2, as each sequence has two items or more."""
    order = jnp.argsort(~comparisons, axis=1, stable=True)
    return order[:, : max(1, comparisons.shape[1] // 2)].astype(jnp.int32)


def affine(x: Float[Array, "*rows D"], layer: Any) -> Float[Array, "*rows D"]:
    """``x W + b`` for a map of the task's parameters."""
    return matmul(x, layer["kernel"]) + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def scores(x: Float[Array, "*rows D"], y: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """Inner products of the last axis."""
    return (x * y).sum(axis=-1)


@jax.custom_vjp
def attribute_loss(
    context: Float[Array, "B L D"], table: Float[Array, "A D"], own: Int[Array, "B L M"]
) -> Float[Array, "B L"]:
    """Sum over all attributes of the binary cross-entropy, at each position.

    The backward pass computes the scores again and needs one sigmoid of each, where the derivative of a softplus would
    compute the softplus, too.

    Args:
      context: float32[B, L, D].
      table: float32[A, D], the attributes' vectors.
      own: int32[B, L, M], rows of the table for the item at each position, -1 = none.

    Returns:
      float32[B, L].
    """
    logits = matmul(context, table.T)
    positive = jnp.take_along_axis(logits, jnp.maximum(own, 0), axis=-1)
    softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return softplus.sum(axis=-1) - jnp.where(own >= 0, positive, 0.0).sum(axis=-1)


def _attribute_loss_forward(context: Array, table: Array, own: Array) -> tuple[Array, Any]:
    return attribute_loss(context, table, own), (context, table, own)


def _attribute_loss_backward(inputs: Any, cotangent: Array) -> tuple[Array, Array, None]:
    context, table, own = inputs
    rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in own.shape[:2])
    weights = jax.nn.sigmoid(matmul(context, table.T))
    # Of -1, no attribute, the place lies outside and is dropped.
    place = jnp.where(own >= 0, own, table.shape[0])
    weights = weights.at[rows[:, None, None], columns[None, :, None], place].add(-1.0, mode="drop")
    weights = weights * cotangent[..., None]
    return matmul(weights, table), einsum("bla,bld->ad", weights, context), None


attribute_loss.defvjp(_attribute_loss_forward, _attribute_loss_backward)


@jax.checkpoint
def attribute_bound(
    context: Float[Array, "B L D"], table: Float[Array, "A D"], own: Int[Array, "B L M"]
) -> Float[Array, "B L"]:
    """The paper's bound for attributes, summed over those of the item at each position; arguments as `attribute_loss`."""
    values = jax.nn.sigmoid(matmul(context, table.T))
    positive = jnp.take_along_axis(values, jnp.maximum(own, 0), axis=-1)
    has = own >= 0
    others = jnp.exp(values).sum(axis=-1) - jnp.where(has, jnp.exp(positive), 0.0).sum(axis=-1)
    count = has.sum(axis=-1, dtype=jnp.float32)
    # An item that has every attribute has nothing to be compared with.
    bound = jnp.where(others > 0.5, jnp.log(jnp.maximum(others, 0.5)), 0.0)
    return count * bound - jnp.where(has, positive, 0.0).sum(axis=-1)


def catalogue_bound(
    context: Float[Array, "B L D"], table: ItemTable, items: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """The paper's bound for items, ``log sum_{i other than t} exp f_i - f_t``, float32[B, L] at all positions."""
    rows = table.vectors.shape[0]
    row = jnp.arange(rows, dtype=jnp.int32)
    candidate = (row > 0) & (row <= table.n_items)
    flat, targets = context.reshape(-1, context.shape[-1]), items.reshape(-1)
    padded = -len(flat) % POSITION_CHUNK
    flat = jnp.pad(flat, ((0, padded), (0, 0))).reshape(-1, POSITION_CHUNK, flat.shape[-1])
    targets = jnp.pad(targets, (0, padded)).reshape(-1, POSITION_CHUNK)

    @jax.checkpoint
    def one(chunk: tuple[Array, Array]) -> Array:
        states, target = chunk
        values = jax.nn.sigmoid(matmul(states, table.vectors.T))
        is_target = row[None] == target[:, None]
        others = jnp.where(candidate[None] & ~is_target, jnp.exp(values), 0.0).sum(axis=-1)
        return jnp.log(jnp.maximum(others, 1.0)) - jnp.where(is_target, values, 0.0).sum(axis=-1)

    return lax.map(one, (flat, targets)).reshape(-1)[: items.size].reshape(items.shape)


def negative_items(
    items: Int[Array, "B L"], segments: Int[Array, "B L"], n_items: int, key: Array
) -> Int[Array, "B L"]:
    """Draw for each position an item that its sequence does not hold, uniformly: int32[B, L].

    Exact and without rejection: a number among the V - d other items is moved up past the d items of the sequence.
    """
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    equal = same & (items[:, :, None] == items[:, None, :])
    earlier = jnp.tril(jnp.ones((items.shape[1],) * 2, bool), -1)[None]
    first = ~(equal & earlier).any(axis=2)  # first occurrence of its item in its sequence
    distinct = same & first[:, None, :]
    smaller = (distinct & (items[:, None, :] < items[:, :, None])).sum(axis=2, dtype=jnp.int32)
    others = jnp.maximum(n_items - distinct.sum(axis=2, dtype=jnp.int32), 1)
    number = 1 + jax.random.randint(key, items.shape, 0, others, jnp.int32)
    below = distinct & ((items - smaller)[:, None, :] <= number[:, :, None])
    return number + below.sum(axis=2, dtype=jnp.int32)


def uniform_index(key: Array, counts: Int[Array, "*size"]) -> Int[Array, "*size"]:
    """Draw an integer from 0 to ``counts`` - 1 for each element (0 where there is none)."""
    return jax.random.randint(key, counts.shape, 0, jnp.maximum(counts, 1), jnp.int32)


def segment_views(
    batch: Batch, token: Int[Array, ""], kind: str, key: Array
) -> tuple[Int[Array, "B 3 L"], Bool[Array, "B L"]]:
    """Draw a segment and a negative segment for each sequence.

    Args:
      batch: arrays [B, L].
      token: id of the mask token.
      kind: of negative segments; see `S3RecConfig`.
      key: for all draws.

    Returns:
      Views int32[B, 3, L] (segment masked, segment alone, negative segment in its place), and bool[B, L], True at the last
      position of each sequence of two items or more whose negative segment is another user's.
    """
    items, segments = batch.items, batch.segments
    length_key, start_key, negative_key = jax.random.split(key, 3)
    real = segments > 0
    column = jnp.arange(items.shape[1], dtype=jnp.int32)[None]
    offset = column - first_index(segments)
    size = last_index(segments) - first_index(segments) + 1
    length = per_segment(1 + uniform_index(length_key, size // 2), segments)
    start = per_segment(uniform_index(start_key, size - length + 1), segments)
    inside = real & (offset >= start) & (offset < start + length)

    draw = one_history if kind == "one-history" else across_histories
    place, usable = draw(batch, length, negative_key)
    within = jnp.where(inside, place + offset - start, 0)
    negatives = within if kind == "one-history" else compacted(segments)[within]
    negative = items.reshape(-1)[negatives]
    hidden = jnp.where(real, token, 0)
    views = [
        jnp.where(inside, token, items),
        jnp.where(inside, items, hidden),
        jnp.where(inside, negative, hidden),
    ]
    return jnp.stack(views, axis=1), is_last(segments) & (size >= 2) & usable


def one_history(
    batch: Batch, length: Int[Array, "B L"], key: Array
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Draw a place of the flattened batch from which ``length`` positions belong to one sequence of another user.

    Uniform among all such places, up to `SEGMENT_DRAWS` draws.

    Returns:
      Places int32[B, L], the same at all positions of a sequence, and whether a draw was another user's.
    """
    segments = batch.segments
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    remaining = jnp.where(segments > 0, last_index(segments) - column + 1, 0).reshape(-1)
    order = jnp.argsort(-remaining, stable=True).astype(jnp.int32)
    longest = segments.shape[1]
    sizes = jnp.bincount(remaining, length=longest + 1).astype(jnp.int32)
    enough = sizes.sum() - jnp.cumsum(sizes) + sizes  # places with at least so many positions left
    counts = enough[jnp.clip(length, 0, longest)]
    users = batch.users.reshape(-1)
    place, usable = jnp.zeros_like(length), jnp.zeros(length.shape, bool)
    for draw in range(SEGMENT_DRAWS):
        index = uniform_index(jax.random.fold_in(key, draw), counts)
        new = order[per_segment(index, segments)]
        place = jnp.where(usable, place, new)
        usable = usable | (users[new] != batch.users)
    return place, usable


def across_histories(
    batch: Batch, length: Int[Array, "B L"], key: Array
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Draw a place among the real positions of the batch, one after the other: as `one_history`, but always usable."""
    total = (batch.segments > 0).sum(dtype=jnp.int32)
    index = uniform_index(key, total - length + 1)
    return per_segment(index, batch.segments), jnp.ones(length.shape, bool)


def compacted(segments: Int[Array, "B L"]) -> Int[Array, " BL"]:
    """Flat indices of the real positions, in order, and then of padding: int32[B * L]."""
    return jnp.argsort((segments == 0).reshape(-1), stable=True).astype(jnp.int32)
