"""The optimiser of a run: an optax chain built from its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import optax

from jaxrec.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
      algorithm: "adamw" (Adam where ``weight_decay`` is 0), "adagrad" or "sgd" (with ``beta1`` as momentum).
      learning_rate: peak value of the schedule.
      schedule: "constant", or "cosine" / "linear" decay to ``final_fraction`` of the peak over the whole run.
      warmup_steps: linear rise from zero to the peak over so many steps.
      final_fraction: the last learning rate as a fraction of the peak.
      beta1: decay of the first moment.
      beta2: decay of the second moment (the original SASRec: 0.98).
      epsilon: added to the root of the second moment.
      weight_decay: decoupled decay a step, times the learning rate.
      decay_on: which parameters decay: "kernels" (matrices from features to features, MIQ's Query Window Matrix among
        them), "kernels-and-items", or "all". What is indexed by positions or distances is no kernel in this sense: zero
        is not its neutral value, as the positional kernel's U and L and AWRSR's maps show, which start at the identity.
      clip_norm: scale gradients down to this global norm; 0 = never.
    """

    algorithm: Literal["adamw", "adagrad", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decay_on: Literal["kernels", "kernels-and-items", "all"] = "kernels"
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(f"optimizer.learning_rate must be above 0, got {self.learning_rate}")
        for field in ("warmup_steps", "weight_decay", "clip_norm"):
            if getattr(self, field) < 0:
                raise ConfigError(f"optimizer.{field} must not be negative, got {getattr(self, field)}")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"optimizer.final_fraction must be in [0, 1], got {self.final_fraction}")
        for field, allowed in (
            ("algorithm", ("adamw", "adagrad", "sgd")),
            ("schedule", ("constant", "cosine", "linear")),
            ("decay_on", ("kernels", "kernels-and-items", "all")),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"optimizer.{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}"
                )

    def learning_rate_schedule(self, total_steps: int) -> optax.Schedule:
        """Step -> learning rate, for a run of ``total_steps``."""
        peak, floor = self.learning_rate, self.learning_rate * self.final_fraction
        decay_steps = max(total_steps - self.warmup_steps, 1)
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

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation for a run of ``total_steps``."""
        rate = self.learning_rate_schedule(total_steps)
        decays = lambda params: decay_mask(params, self.decay_on)  # noqa: E731
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        if self.algorithm == "adamw":
            parts.append(
                optax.adamw(
                    rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay, mask=decays
                )
                if self.weight_decay
                else optax.adam(rate, self.beta1, self.beta2, self.epsilon)
            )
            return optax.chain(*parts)
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=decays))
        parts.append(
            optax.adagrad(rate, eps=self.epsilon)
            if self.algorithm == "adagrad"
            else optax.sgd(rate, self.beta1)
        )
        return optax.chain(*parts)


def decay_mask(params: Any, decay_on: str) -> Any:
    """Which parameters decay: a tree of booleans.

    By name: matrices from features to features end in ``kernel``, and nothing else does; the items' tables are
    ``items``, ``mean_items`` and ``covariance_items`` (STOSA) and ``output_table``, at the top of the tree.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        is_kernel = names[-1].endswith("kernel")
        is_items = names[0].endswith("items") or names[0] == "output_table"
        return decay_on == "all" or is_kernel or (is_items and decay_on == "kernels-and-items")

    return jax.tree_util.tree_map_with_path(decays, params)
