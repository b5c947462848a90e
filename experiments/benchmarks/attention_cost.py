"""Cost of each attention mechanism relative to softmax attention: time and memory of a training step and of a layer.

    python -m experiments.benchmarks.attention_cost --json
    python -m experiments.benchmarks.attention_cost --mechanisms miq kernel-toeplitz --rounds 5
    python -m experiments.benchmarks.attention_cost --record attention_cost --json

Shapes are those of ML-1M by default: 128 histories of 200 interactions, width 64, two layers, exact
cross-entropy over 3,416 items, Adam. Mechanisms take turns within each round, so ratios hold where the
machine's speed drifts; a ratio is the median over the rounds of this round's time divided by softmax
attention's in the same round. Memory is what the compiled step needs beside its arguments, as the compiler
reports it: exact, and the same on every run.

Two columns tell what bounds a mechanism's ratio. *Products*: multiplications between projections of a step, forward,
recomputed and backward, over those of softmax attention. *Cost*: time of a step beyond one whose layers project and attend
to nothing (`ProjectionsOnlyConfig`), over the same of softmax attention in the same round. A mechanism whose cost is below
its products works at a higher rate than softmax attention does.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import tyro

from experiments.record import command_line, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.attention import ATTENTION, AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.functional import merge_heads
from jaxrec.attention.module import OutputProjection, Projections, projection_count


@dataclasses.dataclass(frozen=True)
class ProjectionsOnlyConfig(AttentionConfig):
    """Layers without attention: each position takes the sum of its own query, key and value."""

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `ProjectionsOnly`."""
        return ProjectionsOnly(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """Those of softmax attention."""
        return 3 * (spec.width**2 + spec.width) + projection_count(spec)


class ProjectionsOnly(nn.Module):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``."""

    config: ProjectionsOnlyConfig
    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        train: bool = False,
        queries: jax.Array | None = None,
    ) -> jax.Array:
        """Project; see `AttentionConfig.build` for the arguments."""
        q, k, v = Projections(self.config.heads, self.spec, name="projections")(x, queries)
        return OutputProjection(self.spec, name="output")(merge_heads(q + k + v))


MECHANISMS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax", {}),
    "projections": ("projections", {}),
    "softmax-rotary": ("softmax", {}),
    "softmax-relative-bias": ("softmax", {}),
    "miq": ("miq", {"query_window": 5}),
    "miq-2": ("miq", {"query_window": 2}),
    "kernel-toeplitz": ("kernel", {"upper": "toeplitz", "lower": "toeplitz"}),
    "kernel-toeplitz-full": ("kernel", {"upper": "toeplitz", "lower": "full"}),
    "awrsr-simple": ("awrsr", {"variant": "simple"}),
    "awrsr-simple-rank-16": ("awrsr", {"variant": "simple", "rank": 16}),
    "awrsr-value-weighted": ("awrsr", {"variant": "value-weighted"}),
    "awrsr-additive": ("awrsr", {"variant": "additive"}),
    "hstu": ("hstu", {}),
    "wasserstein": ("wasserstein", {}),
    "wasserstein-stochastic": ("wasserstein", {"variant": "stochastic"}),
}
#: Ratios of step times that the project aims at.
GOALS = {"miq": 1.8, "kernel-toeplitz": 1.15, "awrsr-simple": 1.6}


@dataclasses.dataclass(frozen=True)
class Options:
    """Cost of attention mechanisms against softmax attention.

    Attributes:
      mechanisms: names to measure beside softmax; empty = all.
      rows: histories of a batch.
      max_length: interactions of each.
      width: of the encoder.
      layers: of the encoder.
      n_items: of the catalogue.
      dtype: operands of matrix products, "float32" or "bfloat16".
      rounds: measurements of each mechanism.
      repeats: steps of one measurement.
      record: name of the record to write in experiments/results; empty = none.
      notes: what a reader of the record must know besides, a paragraph each.
      json: print one JSON object.
    """

    mechanisms: tuple[str, ...] = ()
    rows: int = 128
    max_length: int = 200
    width: int = 64
    layers: int = 2
    n_items: int = 3416
    dtype: str = "float32"
    rounds: int = 9
    repeats: int = 2
    record: str = ""
    notes: tuple[str, ...] = ()
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


class Trial:
    """One mechanism: a compiled training step, and one attention layer forward and forward plus backward."""

    def __init__(self, name: str, options: Options):
        import jax.numpy as jnp
        import numpy as np
        import optax

        from jaxrec.analysis.estimate import matmul_flops
        from jaxrec.data.batches import Batch
        from jaxrec.models import DataSpec, TransformerConfig
        from jaxrec.objectives import OBJECTIVES, LossInputs

        mechanism, settings = MECHANISMS[name]
        attention = ProjectionsOnlyConfig() if name == "projections" else ATTENTION[mechanism](**settings)
        positions = name.removeprefix("softmax-") if name.startswith("softmax-") else "auto"
        config = TransformerConfig(
            width=options.width,
            layers=options.layers,
            positions=positions,
            dtype=options.dtype,
            dropout=0.2,
            attention=attention,
        )
        encoder = config.build(DataSpec(options.n_items, options.max_length, has_timestamps=True))
        objective = OBJECTIVES["cross-entropy"](dtype=options.dtype)
        optimizer = optax.adam(1e-3)
        size = (options.rows, options.max_length)
        rng = np.random.default_rng(0)
        items = jnp.asarray(rng.integers(1, options.n_items + 1, size), jnp.int32)
        places = jnp.broadcast_to(jnp.arange(size[1], dtype=jnp.int32), size)
        ones = jnp.ones(size, jnp.int32)
        times = jnp.asarray(np.cumsum(rng.integers(0, 1000, size), axis=1), jnp.int32)
        batch = Batch(items, places, ones, jnp.roll(items, -1, axis=1), jnp.ones(size), times, ones * 0)
        params = jax.jit(encoder.init)(jax.random.key(0), batch)["params"]
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

        def step(params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, jax.Array]:
            def loss(params: Any) -> jax.Array:
                hidden = encoder.apply({"params": params}, batch, True, rngs={"dropout": key})
                inputs = LossInputs(
                    hidden.reshape(-1, hidden.shape[-1]),
                    encoder.item_table(params),
                    batch.targets.reshape(-1),
                    batch.weights.reshape(-1),
                    key,
                )
                total, weight = objective.build()(inputs)
                return total / weight

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        layer = attention.build(encoder.attention_spec())
        context = AttentionContext(places, ones, times)
        x = jax.random.normal(jax.random.key(1), (*size, options.width))

        def forward(own: Any, x: jax.Array) -> jax.Array:
            return layer.apply({"params": own}, x, context)

        def backward(own: Any, x: jax.Array, direction: jax.Array) -> Any:
            out, pull = jax.vjp(forward, own, x)
            return out, pull(direction)

        own = params["layer_0"]["attention"]
        arguments: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "step": (step, (params, optimizer.init(params), batch, jax.random.key(2))),
            "layer_forward": (forward, (own, x)),
            "layer_forward_backward": (backward, (own, x, jnp.ones_like(x))),
        }
        self.calls = {}
        self.memory_mib = {}
        for part, (function, inputs) in arguments.items():
            traced = jax.jit(function).trace(*inputs)
            if part == "step":
                self.flops = matmul_flops(traced.jaxpr.jaxpr)
            compiled = traced.lower().compile()
            self.memory_mib[part] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            self.calls[part] = (compiled, inputs)
        self.seconds: dict[str, list[float]] = {part: [] for part in self.calls}
        self.repeats = options.repeats

    def round(self, record: bool) -> None:
        """Measure each part once."""
        for part, (compiled, inputs) in self.calls.items():
            started = time.perf_counter()
            for _ in range(self.repeats):
                out = compiled(*inputs)
            jax.block_until_ready(out)
            if record:
                self.seconds[part].append((time.perf_counter() - started) / self.repeats)


def report(trial: Trial, baseline: Trial, floor: Trial, goal: float | None) -> dict[str, Any]:
    """Times, memory and ratios of one mechanism; ``floor`` projects and attends to nothing."""
    ratios = {
        part: statistics.median(
            a / b for a, b in zip(trial.seconds[part], baseline.seconds[part], strict=True)
        )
        for part in trial.seconds
    }
    steps = list(zip(trial.seconds["step"], baseline.seconds["step"], floor.seconds["step"], strict=True))

    def cost(step_ratio: float | None = None) -> float:
        """Time beyond ``floor``, over that of the baseline; of a mechanism whose step has a given ratio, or this one."""
        return statistics.median(
            ((own if step_ratio is None else step_ratio * softmax) - least) / (softmax - least)
            for own, softmax, least in steps
        )

    return {
        "step_ratio": ratios["step"],
        "products": (trial.flops - floor.flops) / (baseline.flops - floor.flops),
        "cost": cost(),
        "memory_ratio": trial.memory_mib["step"] / baseline.memory_mib["step"],
        "goal": goal,
        "cost_of_the_goal": None if goal is None else cost(goal),
        "goal_reached": None if goal is None else ratios["step"] <= goal,
        "layer_forward_ratio": ratios["layer_forward"],
        "layer_forward_backward_ratio": ratios["layer_forward_backward"],
        "step_gflop": trial.flops / 1e9,
        "milliseconds": {part: 1000 * statistics.median(values) for part, values in trial.seconds.items()},
        "memory_mib": trial.memory_mib,
        "parameters": trial.parameters,
    }


def main(options: Options) -> dict[str, Any]:
    """Measure all mechanisms in turns."""
    from jaxrec.reporting.results import hardware, versions

    unknown = set(options.mechanisms) - set(MECHANISMS)
    if unknown:
        raise SystemExit(f"unknown mechanisms {sorted(unknown)}: expected some of {', '.join(MECHANISMS)}")
    names = dict.fromkeys(("softmax", "projections", *(options.mechanisms or MECHANISMS)))
    trials = {name: Trial(name, options) for name in names}
    for number in range(options.rounds + 1):
        for trial in trials.values():
            trial.round(record=number > 0)
    return {
        "mechanisms": {
            name: report(trial, trials["softmax"], trials["projections"], GOALS.get(name))
            for name, trial in trials.items()
        },
        "options": dataclasses.asdict(options),
        "versions": versions(),
        "hardware": hardware(),
    }


COLUMNS = (
    *("mechanism", "step", "step ratio", "goal (its cost)", "products", "cost"),
    *("memory ratio", "layer", "layer, backward too"),
)


def table(result: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table to read (times in milliseconds)."""
    return [
        [
            name,
            f"{figures['milliseconds']['step']:.0f}",
            f"{figures['step_ratio']:.2f}",
            f"{figures['goal']} ({figures['cost_of_the_goal']:.1f})" if figures["goal"] else "",
            f"{figures['products']:.1f}",
            f"{figures['cost']:.1f}",
            f"{figures['memory_ratio']:.2f}",
            f"{figures['milliseconds']['layer_forward']:.1f}",
            f"{figures['milliseconds']['layer_forward_backward']:.1f}",
        ]
        for name, figures in result["mechanisms"].items()
    ]


if __name__ == "__main__":
    arguments = tyro.cli(Options)
    outcome = main(arguments)
    if arguments.record:
        write_record(
            arguments.record,
            outcome,
            title="Cost of attention mechanisms",
            command=command_line(__spec__.name),
            body=[to_markdown(list(COLUMNS), table(outcome))],
            notes=[
                f"A training step of {arguments.rows} histories of {arguments.max_length} interactions, width "
                f"{arguments.width}, {arguments.layers} layers, {arguments.n_items:,} items, "
                f"{arguments.dtype}; milliseconds, medians of "
                f"{arguments.rounds} rounds; ratios against softmax attention in the same round. Layer: one layer's "
                "attention alone, forward, and forward with backward. Products and cost: multiplications, and time, of a "
                "step beyond one whose layers project and attend to nothing, over the same of softmax attention.",
                *arguments.notes,
            ],
        )
    print(json.dumps(outcome) if arguments.json else to_markdown(list(COLUMNS), table(outcome)))
