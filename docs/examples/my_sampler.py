"""A sampler that draws rare items more often."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.objectives.samplers import SAMPLERS, Negatives, Request, draw_by_weight


@SAMPLERS.register("rare-first")
def rare_first(request: Request) -> Negatives:
    """Draw items with probabilities proportional to one over (their count + 1)."""
    counts = request.inputs.sampling.require("item_counts", "the sampler rare-first")
    return draw_by_weight(request, (1.0 / (counts + 1.0)).at[0].set(0.0).astype(jnp.float32))
