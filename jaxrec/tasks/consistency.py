"""Next-item prediction with a consistency loss between items and their users (Revisiting SASRec, experiment E4).

A user is a sequence of items and an item a sequence of users, so the vector e_i of an item should be recovered from the
states u_k of the users who interacted with it. The paper gives no equations; this reading adds

    weight * mean over items of (1 - cos(e_i, g(u_1, ..., u_K)))        g(u) = W sum_k a_k u_k + b

to the next-item loss, with u_1 the newest of at most ``newest`` *training* users of item i, a the softmax over these users
of one trained number for each place (equal at the start, so that g starts as the mean) and W, b starting at the identity.
A step draws ``items_per_step`` items uniformly; those without a user are left out of the mean.

**States of users.** A user's state is that of the last position of its training sequence, whose newest item is a target and
not among the inputs; batches with several sequences of a user (prefixes, windows) are refused. States of users outside the
batch come from a table: at the start of each step the states of the batch's users are computed without dropout by a copy of
the encoder whose parameters are an exponential moving average (``decay``; 0 = the present parameters), and stored. So a
state is at most about an epoch old, and no gradient follows it.

**Sides that are fixed.** With ``stop`` "item" e_i is a constant, and the loss moves g and the users of the batch, whose
states are then those of the training pass; were they constants too, as with a moving average alone, the loss would train
nothing but g. With "users" all states are from the table, and the loss moves e_i and g. With "none" both move.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import Encoder, blank_batch
from jaxrec.nn.segments import is_last
from jaxrec.objectives import ObjectiveConfig
from jaxrec.options import Range
from jaxrec.tasks.base import MEMORY, TASKS, Resources, TaskConfig
from jaxrec.tasks.next_item import NextItem, item_loss

#: Of the keys of a step: keeps the draw of items apart from dropout and negatives.
_ITEM_STREAM = 13
#: Least squared length of a vector in a cosine.
_LEAST_SQUARE = 1e-12


@TASKS.register("consistency")
@dataclasses.dataclass(frozen=True)
class ConsistencyConfig(TaskConfig):
    """Predict the next item, and recover items from the states of their users; see the module's docstring.

    Attributes:
      weight: of the consistency loss.
      stop: side that is a constant: item, users or none.
      newest: newest training users of an item that stand for it.
      items_per_step: items that a step draws; with as many as the catalogue or more it takes them all.
      decay: of the moving average of the encoder that gives the states of users outside the batch; 0 = no average.
    """

    weight: Annotated[float, Range("(0, inf)")] = 0.1
    stop: Literal["item", "users", "none"] = "item"
    newest: Annotated[int, Range("[1, inf)")] = 20
    items_per_step: Annotated[int, Range("[1, inf)")] = 256
    decay: Annotated[float, Range("[0, 1)")] = 0.99

    one_sequence_per_user: ClassVar[bool] = True

    @property
    def users_per_item(self) -> int:
        """Users of ``Resources.item_users``."""
        return self.newest

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> Consistency:
        """Build the task.

        Raises:
          ConfigError: the number of users is not known.
        """
        if encoder.spec.n_users < 1:
            raise ConfigError(
                "--task consistency needs users: expected a dataset with at least one, got a specification without"
            )
        return Consistency(encoder, objective, self)


@dataclasses.dataclass(frozen=True)
class Consistency(NextItem):
    """The objective and the distance between items and their users.

    ``D^2 + D + newest`` trained parameters, and a memory of ``U D`` states and, with ``decay`` above 0, a copy of the
    encoder's parameters.

    Attributes:
      config: options.
    """

    config: ConsistencyConfig

    def init(self, key: Array) -> dict[str, Any]:
        """Initialise g at the mean, and an empty memory."""
        shapes = jax.eval_shape(self._encoder_params)
        width = jax.eval_shape(self.encoder.item_table, shapes).vectors.shape[-1]
        memory: dict[str, Any] = {
            "steps": jnp.zeros((), jnp.float32),
            "states": jnp.zeros((self.spec.n_users, width), jnp.float32),
        }
        if self.config.decay:
            memory["average"] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return {
            "places": jnp.zeros((self.config.newest,), jnp.float32),
            "map": {"kernel": jnp.eye(width, dtype=jnp.float32), "bias": jnp.zeros((width,), jnp.float32)},
            MEMORY: memory,
        }

    def _encoder_params(self) -> Any:
        return self.encoder.init(jax.random.key(0), blank_batch(self.encoder.max_length), False)["params"]

    def remember(self, params: Any, batch: Batch, resources: Resources) -> Any:
        """Store the states of the batch's users, by the averaged encoder."""
        heads = params["task"]
        memory = dict(heads[MEMORY])
        average = {name: value for name, value in params.items() if name != "task"}
        if self.config.decay:
            decay, first = jnp.float32(self.config.decay), memory["steps"] == 0

            def averaged(path: Any, new: Array, old: Array) -> Array:
                if path[-1].key == "codes":  # numbers of rows, whose mean may round to just below them
                    return new
                return jnp.where(first, new, decay * old + (1 - decay) * new)

            average = jax.tree_util.tree_map_with_path(averaged, average, memory["average"])
            memory["average"] = average
        hidden = self.encoder.apply({"params": average}, batch, False)
        states = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
        # Only the rows of the batch's users are written, each once: the table may be long.
        owners = self._owners(batch)
        numbers = jnp.arange(owners.shape[0], dtype=jnp.int32)
        chosen = self.places_of_users(batch).at[owners].get(mode="fill", fill_value=-1) == numbers
        rows = jnp.where(chosen, owners, self.spec.n_users)
        memory["states"] = memory["states"].at[rows].set(states, mode="drop")
        memory["steps"] = memory["steps"] + 1
        return {**params, "task": {**heads, MEMORY: memory}}

    def places_of_users(self, batch: Batch) -> Int[Array, " U"]:
        """Place in the flattened batch of the last position of each user's sequence, -1 for users who are not in it.

        Of several sequences of a user it is the last one in the batch.
        """
        owners = self._owners(batch)
        numbers = jnp.arange(owners.shape[0], dtype=jnp.int32)
        return jnp.full((self.spec.n_users,), -1, jnp.int32).at[owners].max(numbers, mode="drop")

    def _owners(self, batch: Batch) -> Int[Array, " N"]:
        """User of each position that ends a sequence, U for all others: int32[B L]."""
        return jnp.where(is_last(batch.segments), batch.users, self.spec.n_users).reshape(-1)

    def loss(
        self, params: Any, batch: Batch, key: Array, resources: Resources
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute both losses; see `Task.loss`."""
        dropout_key, objective_key = jax.random.split(key)
        hidden = self.encoder.apply({"params": params}, batch, True, rngs={"dropout": dropout_key})
        total, weight = item_loss(self, params, hidden, batch, objective_key, resources)
        items = self.draw_items(jax.random.fold_in(key, _ITEM_STREAM))
        distance = self.distance(params, hidden, batch, items, resources)
        # The sums are divided by the weights of the targets, which must not divide the mean over items.
        return total + self.config.weight * distance * weight, weight

    def draw_items(self, key: Array) -> Int[Array, " M"]:
        """Items int32[M] of a step, each uniform over the catalogue; all of them where M would not be less."""
        n_items, wanted = self.spec.n_items, self.config.items_per_step
        if wanted >= n_items:
            return jnp.arange(1, n_items + 1, dtype=jnp.int32)
        return jax.random.randint(key, (wanted,), 1, n_items + 1, jnp.int32)

    def distance(
        self,
        params: Any,
        hidden: Float[Array, "B L D"],
        batch: Batch,
        items: Int[Array, " M"],
        resources: Resources,
    ) -> Float[Array, ""]:
        """Mean of 1 - cos(e_i, g(users of i)) over the items that have a user with a known state.

        Args:
          params: of the encoder and the task.
          hidden: states of the training pass.
          batch: that gave them.
          items: to recover.
          resources: with ``item_users``.
        """
        config, heads = self.config, params["task"]
        assert resources.item_users is not None
        users = resources.item_users[items]
        stored = lax.stop_gradient(heads[MEMORY]["states"])[jnp.maximum(users, 0)]
        known = (users >= 0) & jnp.any(stored != 0, axis=-1)
        states = stored
        if config.stop != "users":
            place = self.places_of_users(batch)[jnp.maximum(users, 0)]
            live = hidden.reshape(-1, hidden.shape[-1])[jnp.maximum(place, 0)].astype(jnp.float32)
            states = jnp.where((place >= 0)[..., None], live, stored)
        logits = jnp.where(known, heads["places"][None], -jnp.inf)
        largest = jnp.max(logits, axis=1, keepdims=True)
        raised = jnp.where(known, jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0)), 0.0)
        share = raised / jnp.maximum(raised.sum(axis=1, keepdims=True), _LEAST_SQUARE)
        pooled = jnp.einsum("mk,mkd->md", share, states)
        recovered = pooled @ heads["map"]["kernel"] + heads["map"]["bias"][None]
        vectors = self.encoder.item_table(params).take(items).vectors
        if config.stop == "item":
            vectors = lax.stop_gradient(vectors)
        present = known.any(axis=1).astype(jnp.float32)
        distances = 1.0 - cosine(vectors, recovered)
        return jnp.sum(distances * present) / jnp.maximum(jnp.sum(present), 1.0)


def cosine(a: Float[Array, "M D"], b: Float[Array, "M D"]) -> Float[Array, " M"]:
    """Cosine of the angle between rows; 0 where one has no length."""
    squares = (
        jnp.maximum(jnp.sum(a * a, axis=1), _LEAST_SQUARE),
        jnp.maximum(jnp.sum(b * b, axis=1), _LEAST_SQUARE),
    )
    return jnp.sum(a * b, axis=1) * lax.rsqrt(squares[0]) * lax.rsqrt(squares[1])
