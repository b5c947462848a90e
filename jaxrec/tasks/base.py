"""Contract of a training task: how a batch becomes inputs and a loss, and how a history is put to the encoder."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from jax import Array
from jaxtyping import Float, Int

from jaxrec.attention.base import Mask
from jaxrec.data.batches import Batch
from jaxrec.models.base import Encoder
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import ObjectiveConfig
from jaxrec.options import validate
from jaxrec.registry import Registry

#: Name, among the task's parameters, of those that no gradient moves (`Task.remember`).
MEMORY = "memory"


class Resources(NamedTuple):
    """Arrays that stay on the device for a whole run.

    Attributes:
      items: int32[N], the log, or None where batches are streamed.
      timestamps: int32[N] seconds since the first event, or None.
      item_counts: float32[V+1], training interactions of each item, or None where nothing asks for them.
      seen_items: int32[N], each user's training items in ascending order, or None where nothing asks for them.
      seen_offsets: int32[U+1], user u's items are ``seen_items[seen_offsets[u]:seen_offsets[u+1]]``, or None.
      attributes: int32[V+1, M], attributes of each item (1..A), 0 = none, or None where nothing asks for them.
      item_users: int32[V+1, K], indices of the newest training users of each item, newest first, -1 = none; or None where
        nothing asks for them.
    """

    items: Int[Array, " N"] | None = None
    timestamps: Int[Array, " N"] | None = None
    item_counts: Float[Array, " V1"] | None = None
    seen_items: Int[Array, " N"] | None = None
    seen_offsets: Int[Array, " U1"] | None = None
    attributes: Int[Array, "V1 M"] | None = None
    item_users: Int[Array, "V1 K"] | None = None


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's configuration; a subclass adds its options and builds its task."""

    #: Tokens beside the items that the task puts into batches, with ids V+1, V+2, ...
    n_special: ClassVar[int] = 0
    #: Whether batches hold whole training histories, the newest item among the inputs, rather than inputs with targets. Such
    #: a task must not read ``Batch.targets`` and ``Batch.weights``: the item after a whole history is held out.
    whole_sequences: ClassVar[bool] = False
    #: Whether an epoch may hold only one sequence of each user, so that its end is the end of the user's training part.
    one_sequence_per_user: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check every option; a subclass with rules of its own calls this first."""
        validate(self, "task")

    @property
    def needs_attributes(self) -> bool:
        """Whether ``Resources.attributes`` must be given."""
        return False

    @property
    def users_per_item(self) -> int:
        """Newest training users of each item that ``Resources.item_users`` must hold; 0 = it is not read."""
        return 0

    def build(self, encoder: Encoder, objective: ObjectiveConfig) -> Task:
        """Build the task for an encoder, whose ``spec`` holds the sizes of the data.

        Raises:
          ConfigError: the task cannot work with this encoder, objective or data.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build(encoder, objective)")


#: Configuration classes by name; `TASKS.register` adds one.
TASKS: Registry[type[TaskConfig]] = Registry("task")


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of the tasks. Pure: all randomness comes from the keys, inside the compiled step.

    Attributes:
      encoder: whose states are trained.
      objective: loss of hidden states against item targets.
    """

    encoder: Encoder
    objective: ObjectiveConfig

    #: Mask under which the encoder reads histories, in training and in ranking.
    mask: ClassVar[Mask] = "causal"
    #: Number among the special tokens (0, 1, ...) that is appended to a history to ask for its next item; None = none.
    query_token: ClassVar[int | None] = None

    @property
    def spec(self) -> DataSpec:
        """Sizes of the data."""
        return self.encoder.spec

    def init(self, key: Array) -> dict[str, Any]:
        """Initialise the parameters that the task owns beside the encoder's, kept under ``params["task"]``; {} = none.

        Those under `MEMORY` are not trained: `remember` alone changes them, and `loss` must not send a gradient there.
        """
        return {}

    def remember(self, params: Any, batch: Batch, resources: Resources) -> Any:
        """Return the parameters with what the task keeps of a batch, before the step's gradient; as they are here.

        Args:
          params: the encoder's parameters, with the task's under "task".
          batch: arrays [B, L], before `prepare`.
          resources: see `Resources`.
        """
        return params

    def prepare(self, batch: Batch, key: Array, resources: Resources) -> Any:
        """Mask items, crop, or add views; the identity here. What is returned is given to `loss`."""
        return batch

    def loss(
        self, params: Any, batch: Any, key: Array, resources: Resources
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute the loss of a batch that `prepare` returned, in training mode.

        Args:
          params: the encoder's parameters, with the task's under "task" where it has any.
          batch: arrays [B, L].
          key: for dropout and sampling.
          resources: see `Resources`.

        Returns:
          (weighted sum of the loss, sum of the weights), two float32 scalars.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(params, batch, key, resources)")
