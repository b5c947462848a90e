"""Attention weights of AWRSR before training: how concentrated, how far from uniform and from the first weights.

    python -m experiments.awrsr.initial_weights --record awrsr_initial_weights

Scores are normal with several standard deviations, as attention may have them at the start and after training; the maps
are as initialised. Each reading of the refinement is measured for each variant.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.attention_maps import weight_statistics
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import WassersteinAttentionConfig, allowed_positions
from jaxrec.attention.awrsr import RefinementMaps, refine
from jaxrec.attention.functional import masked_softmax

VARIANTS = ("simple", "value-weighted", "additive", "additive-bahdanau", "stochastic")
#: Options of `jaxrec.attention.awrsr.RefinementConfig`; the first is the default.
READINGS: dict[str, dict[str, Any]] = {
    "centred, unit, gate": {},
    "centred, unit": {"residual": "none"},
    "centred, unit, gate, depth 3": {"depth": 3},
    "centred, unit, depth 3": {"residual": "none", "depth": 3},
    "prob, unit": {"source": "prob", "residual": "none"},
    "prob, root": {"source": "prob", "scale": "root", "residual": "none"},
    "raw, root": {"source": "raw", "scale": "root", "residual": "none"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the weights of AWRSR before training.

    Attributes:
      length: interactions of a history.
      rows: histories.
      scales: standard deviations of the scores.
      record: name of the record to write; empty = print only.
    """

    length: int = 50
    rows: int = 16
    scales: tuple[float, ...] = (0.1, 1.0, 3.0, 6.0)
    record: str = ""


def measure(options: Options) -> list[dict[str, Any]]:
    """Statistics of the first weights and of each reading, variant and scale of scores."""
    segments = jnp.ones((options.rows, options.length), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(options.length, dtype=jnp.int32), segments.shape)
    mask = allowed_positions(segments)[:, None]
    size = (options.rows, 1, options.length, options.length)
    results = []
    for scale in options.scales:
        scores = scale * jax.random.normal(jax.random.key(0), size)
        first = masked_softmax(scores, mask)
        results.append(
            {"reading": "first weights", "variant": "", "scale": scale}
            | weight_statistics(first, segments).means()
        )
        for reading, changes in READINGS.items():
            for variant in VARIANTS:
                # The configuration that knows all variants; its scores are not used here.
                config = WassersteinAttentionConfig(variant=variant, **changes)  # type: ignore[arg-type]
                module = RefinementMaps(config, options.length)
                maps = module.apply(module.init(jax.random.key(1)))
                weights, _ = jax.jit(lambda s, maps, config=config: refine(config, maps, s, mask, positions))(
                    scores, maps
                )
                results.append(
                    {"reading": reading, "variant": variant, "scale": scale}
                    | weight_statistics(weights, segments, first).means()
                )
    return results


def tables(options: Options, results: list[dict[str, Any]]) -> list[str]:
    """Markdown: one table per statistic, a row per reading and variant, a column per scale of the scores."""
    titles = {
        "from_first": "Total variation distance to the first weights",
        "from_uniform": "Total variation distance to uniform weights",
        "entropy": "Entropy as a fraction of that of uniform weights",
    }
    header = ["source, scale, residual", "variant", *(f"scores {scale:g}" for scale in options.scales)]
    by_key = {(r["reading"], r["variant"], r["scale"]): r for r in results}
    keys = list(dict.fromkeys((reading, variant) for reading, variant, _ in by_key))
    body = []
    for statistic, title in titles.items():
        rows = [
            [*key, *(f"{by_key[*key, scale][statistic]:.3f}" for scale in options.scales)]
            for key in keys
            if statistic in by_key[*key, options.scales[0]]
        ]
        body += [f"## {title}", to_markdown(header, rows)]
    return body


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    results = measure(options)
    body = tables(options, results)
    print("\n\n".join(body))
    if options.record:
        write_record(
            options.record,
            {"length": options.length, "rows": options.rows, "results": results},
            title="AWRSR before training",
            command=command_line(__spec__.name),
            body=[
                f"Histories of {options.length} interactions, normal scores of several standard deviations, one head. "
                'Means over queries with more than one key. Without "gate" the new weights replace the first ones.',
                *body,
            ],
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
