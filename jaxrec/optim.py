"""The optimiser of a run: an optax chain built from its configuration, and the rule for weight decay.

Which parameters decay follows from their names, by two conventions that every encoder and attention mechanism keeps:

* a *kernel* maps features to features; its name is ``kernel`` or ends in ``_kernel`` (`jaxrec.nn.layers.Dense` calls its own
  so). No other parameter may have such a name: what is indexed by positions, distances or times is no kernel, since zero is
  not its neutral value (the positional kernel's U and L and AWRSR's maps start at the identity).
* an *item table* has a row for each item; it is a parameter ``output_table`` or ``table`` of a module whose name ends in
  ``items`` (`jaxrec.nn.embedding.ItemEmbedding`), at the top of the encoder's parameters. ``code_table``, of whose rows
  items are composed, counts as one. Beside it ``content``, ``known`` and ``codes`` come from the data and are never
  trained.
* the *table of users* is ``users/table`` (`jaxrec.models.users.UserVectors`), and has a decay of its own, ``user_decay``;
  ``users/known`` comes from the dataset.

Biases, norms, positions and all else decay with ``decay_on="all"`` alone.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import optax

from jaxrec.options import Idle, Range, Search, validate

DecayOn = Literal["kernels", "kernels-and-items", "all"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser: how gradients become updates.

    Attributes:
      algorithm: "adamw" (Adam where ``weight_decay`` is 0), "adagrad" or "sgd" (with ``beta1`` as momentum).
      learning_rate: peak value of the schedule.
      schedule: "constant", or "cosine" / "linear" decay to ``final_fraction`` of the peak over the whole run.
      warmup_steps: steps of a linear rise from zero, at the first of them, to the peak after the last.
      final_fraction: learning rate after the last step as a fraction of the peak.
      beta1: decay of the first moment.
      beta2: decay of the second moment (the original SASRec: 0.98).
      epsilon: added to the root of the second moment; under the root for "adagrad".
      weight_decay: every step, decaying parameters shrink by this times the learning rate. The decay is decoupled from the
        gradient in all three algorithms (Loshchilov & Hutter, ICLR 2019): neither moments nor momentum see it.
      decay_on: parameters that decay: "kernels", "kernels-and-items" or "all" (see the module's docstring).
      user_decay: the same for the vectors of users (``encoder.user``), beside what ``decay_on`` says of them.
      clip_norm: scale gradients down to this global norm; 0 = never.
    """

    algorithm: Literal["adamw", "adagrad", "sgd"] = "adamw"
    learning_rate: Annotated[float, Range("(0, inf)"), Search("log:1e-4:1e-2")] = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Annotated[int, Range("[0, inf)")] = 0
    final_fraction: Annotated[float, Range("[0, 1]"), Idle("schedule", ("constant",))] = 0.0
    beta1: Annotated[float, Range("[0, 1)"), Idle("algorithm", ("adagrad",))] = 0.9
    beta2: Annotated[float, Range("[0, 1)"), Idle("algorithm", ("adagrad", "sgd"))] = 0.98
    epsilon: Annotated[float, Range("(0, inf)"), Idle("algorithm", ("sgd",))] = 1e-8
    weight_decay: Annotated[float, Range("[0, inf)"), Search("0,0.001,0.01,0.1")] = 0.0
    decay_on: Annotated[DecayOn, Idle("weight_decay", (0.0,))] = "kernels"
    user_decay: Annotated[float, Range("[0, inf)")] = 0.0
    clip_norm: Annotated[float, Range("[0, inf)")] = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        validate(self, "optimizer")

    def learning_rate_schedule(self, steps: int) -> optax.Schedule:
        """Return the learning rate as a function of the step, for a run of ``steps``."""
        peak, floor = self.learning_rate, self.learning_rate * self.final_fraction
        decay_steps = max(steps - self.warmup_steps, 1)
        if self.schedule == "constant":
            main = optax.constant_schedule(peak)
        elif self.schedule == "cosine":
            main = optax.cosine_decay_schedule(peak, decay_steps, alpha=self.final_fraction)
        else:
            main = optax.linear_schedule(peak, floor, decay_steps)
        if not self.warmup_steps:
            return main
        warmup = optax.linear_schedule(0.0, peak, self.warmup_steps)
        return optax.join_schedules([warmup, main], [self.warmup_steps])

    def build(self, steps: int) -> optax.GradientTransformation:
        """Return the transformation of gradients for a run of ``steps``."""
        if self.algorithm == "adamw":
            direction = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        elif self.algorithm == "adagrad":
            direction = optax.scale_by_rss(initial_accumulator_value=0.1, eps=self.epsilon)
        else:
            direction = optax.trace(decay=self.beta1)
        decay = optax.add_decayed_weights(
            self.weight_decay, mask=lambda params: decay_mask(params, self.decay_on)
        )
        user_decay = optax.add_decayed_weights(self.user_decay, mask=user_mask)
        update = optax.chain(
            direction,
            *([decay] if self.weight_decay else []),
            *([user_decay] if self.user_decay else []),
            optax.scale_by_learning_rate(self.learning_rate_schedule(steps)),
        )
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return optax.chain(*clip, update)


def decay_mask(params: Any, decay_on: DecayOn) -> Any:
    """Return a tree of booleans: which parameters decay, by the rule in the module's docstring."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        return (
            decay_on == "all"
            or is_kernel(names)
            or (decay_on == "kernels-and-items" and is_item_table(names))
        )

    return jax.tree_util.tree_map_with_path(decays, params)


def user_mask(params: Any) -> Any:
    """Return a tree of booleans: which parameters are vectors of users."""

    def of_users(path: tuple[Any, ...], _: Any) -> bool:
        return [str(getattr(entry, "key", entry)) for entry in path] == ["users", "table"]

    return jax.tree_util.tree_map_with_path(of_users, params)


def trained_mask(params: Any) -> Any:
    """Return a tree of booleans: which parameters are trained; what the dataset gives and a task remembers is not."""

    def trained(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        return not (is_frozen(names) or is_remembered(names))

    return jax.tree_util.tree_map_with_path(trained, params)


def is_frozen(path: list[str]) -> bool:
    """Return whether the parameter at ``path`` is never trained: vectors or codes of items, items and users of training."""
    of_items = len(path) == 2 and path[0].endswith("items") and path[1] in ("content", "known", "codes")
    return of_items or path == ["users", "known"]


def is_remembered(path: list[str]) -> bool:
    """Return whether the parameter at ``path`` is what a task remembers of earlier batches."""
    return path[:2] == ["task", "memory"]


def is_kernel(path: list[str]) -> bool:
    """Return whether the parameter at ``path`` maps features to features."""
    return path[-1] == "kernel" or path[-1].endswith("_kernel")


def is_item_table(path: list[str]) -> bool:
    """Return whether the parameter at ``path`` has a row for each item, or rows of which items are composed."""
    in_items = len(path) == 2 and path[0].endswith("items")
    return path == ["output_table"] or (in_items and path[1] in ("table", "code_table"))
