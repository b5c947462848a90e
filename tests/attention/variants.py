"""The table that drives the tests: every mechanism with its options. A new mechanism adds its lines here."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.attention import ATTENTION, AttentionConfig, AttentionContext, AttentionSpec

# Tiny shapes, compiled once each: optimising them would take longer than running them.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

MAX_LENGTH = 6
WIDTH = 8


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line: mechanism, options, position scheme, what positions count from, and options of the host."""

    mechanism: str
    options: tuple = ()
    positions: str = "none"
    origin: str = "start"
    separate_queries: bool = False
    output_projection: bool = True
    max_length: int = MAX_LENGTH
    mask: str = "causal"

    @property
    def config(self) -> AttentionConfig:
        return ATTENTION[self.mechanism](**{"heads": 2, **dict(self.options)})

    def spec(self, dtype=jnp.float32) -> AttentionSpec:
        return AttentionSpec(
            WIDTH,
            self.max_length,
            positions=self.positions,
            position_origin=self.origin,
            output_projection=self.output_projection,
            dtype=dtype,
        )

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options)
        host = [self.positions, self.origin] + ["queries"] * self.separate_queries
        host += [self.mask] * (self.mask != "causal")
        return "-".join([self.mechanism, options, *host])


def line(
    mechanism,
    positions="none",
    origin="start",
    separate_queries=False,
    output_projection=True,
    mask="causal",
    **options,
):
    """One line of the table; ``options`` are those of the mechanism."""
    return Variant(
        mechanism, tuple(options.items()), positions, origin, separate_queries, output_projection, mask=mask
    )


BOTH = {"mask": "bidirectional"}
#: AWRSR as probability profiles over the root of their size, without a gate: nearly uniform at the start.
PLAIN = {"source": "prob", "scale": "root", "residual": "none"}


VARIANTS = (
    line("softmax", heads=1),
    line("softmax", "learned", separate_queries=True, output_projection=False),
    line("softmax", "rotary"),
    line("softmax", "relative-bias", origin="end"),
    line("softmax", "alibi"),
    line("softmax", "time-interval"),
    line("softmax", rows_per_group=2),
    line("miq", query_window=1, query_level="none"),
    line("miq", query_window=4),
    line("miq", query_window=2, printed_window=True, mapping="vmap"),
    line("miq", query_window=6, query_level="last", heads=1),
    line("miq", "relative-bias", query_window=3, query_level="pooled", dummies_as_keys=True),
    line("miq", "rotary", query_window=3, query_level="sum", dummies_as_keys=True, share_dummies=True),
    line("miq", "rotary", query_window=3, dummies_as_keys=True, mapping="vmap", rows_per_group=2),
    line("miq", "relative-bias", query_window=3, separate_queries=True, mapping="vmap", **BOTH),
    line(
        "miq", "learned", separate_queries=True, output_projection=False, query_window=2, query_level="none"
    ),
    line("miq", origin="end", query_window=4, rows_per_group=3),
    line("awrsr"),
    line("awrsr", **PLAIN),
    line("awrsr", "rotary", source="raw", scale="root", rank=3),
    line("awrsr", "rotary", depth=2, residual="none"),
    line("awrsr", origin="end", variant="value-weighted", threshold=-0.1),
    line("awrsr", origin="end", variant="value-weighted", **PLAIN),
    line("awrsr", variant="value-weighted", source="raw", rank=2),
    line("awrsr", variant="value-weighted", value_map=False, **PLAIN),
    line("awrsr", variant="value-weighted", value_map=False, depth=2),
    line("awrsr", "relative-bias", variant="additive", threshold=0.2),
    line("awrsr", variant="additive", source="raw", separate_queries=True, output_projection=False),
    line("awrsr", variant="additive-gated", rows_per_group=3, **PLAIN),
    line("awrsr", variant="additive-bahdanau", rank=3),
    line("kernel"),
    line("kernel", upper="identity", lower="identity"),
    line("kernel", upper="full", lower="banded", bandwidth=2, per_head=True),
    line("kernel", origin="end", upper="full", lower="full"),
    line("kernel", origin="end", upper="banded", lower="toeplitz", bandwidth=3, share_lower=True),
    line("kernel", "rotary", upper="toeplitz", lower="toeplitz", per_head=True, rows_per_group=2),
    line(
        "kernel", "alibi", share_upper=True, share_lower=True, separate_queries=True, output_projection=False
    ),
    line("hstu"),
    line("hstu", "time-interval", separate_queries=True),
    line("hstu", "hstu-time"),
    line("hstu", "rotary", distance_bias=False, heads=1),
    line("wasserstein"),
    line("wasserstein", "relative-bias", separate_queries=True, output_projection=False, heads=1),
    line("wasserstein", variant="stochastic", threshold=0.3),
    line("wasserstein", origin="end", variant="stochastic", source="raw", rank=3),
    line("wasserstein", variant="stochastic", **PLAIN),
    line("wasserstein", variant="simple"),
    line("uniform"),
    line("softmax", "relative-bias", **BOTH),
    line("softmax", "rotary", **BOTH, rows_per_group=2),
    line("softmax", "time-interval", **BOTH),
    line("softmax", "hstu-time", **BOTH),
    line("softmax", "alibi", **BOTH),
    line("miq", query_window=4, **BOTH),
    line("miq", "rotary", query_window=3, dummies_as_keys=True, **BOTH),
    line("awrsr", **BOTH),
    line("awrsr", variant="value-weighted", source="raw", **BOTH),
    line("kernel", **BOTH),
    line("kernel", origin="end", upper="full", lower="banded", bandwidth=3, **BOTH),
    line("hstu", "learned-hstu-time", **BOTH),
    line("wasserstein", variant="stochastic", **BOTH),
    line("uniform", **BOTH),
)


class Layout:
    """Sequences of lengths 6, 3 and 1 in one batch: alone, padded left and right, packed, and an empty row.

    ``where[name]`` lists the (row, columns) at which the sequence lies.
    """

    LENGTHS: ClassVar = {"long": 6, "middle": 3, "single": 1}
    ROWS = (
        ((0, "long"),),
        ((0, "middle"),),
        ((3, "middle"),),
        ((1, "middle"), (4, "single")),
        ((0, "single"), (1, "other"), (3, "middle")),
        ((5, "single"),),
        (),
    )

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        lengths = {**self.LENGTHS, "other": 2}
        self.states = {name: rng.normal(size=(n, WIDTH)) for name, n in lengths.items()}
        self.queries = {name: rng.normal(size=(n, WIDTH)) for name, n in lengths.items()}
        self.times = {name: np.cumsum(rng.integers(0, 9, n)).astype(np.int32) for name, n in lengths.items()}
        size = (len(self.ROWS), MAX_LENGTH)
        # Padding holds garbage: whoever reads it is found out.
        self.x = rng.normal(size=(*size, WIDTH)).astype(np.float32)
        self.asked = rng.normal(size=(*size, WIDTH)).astype(np.float32)
        self.segments, self.starts, self.ends, self.timestamps = (np.zeros(size, np.int32) for _ in range(4))
        self.where = {name: [] for name in lengths}
        for row, content in enumerate(self.ROWS):
            for number, (column, name) in enumerate(content):
                columns = slice(column, column + lengths[name])
                self.where[name].append((row, columns))
                self.x[row, columns] = self.states[name]
                self.asked[row, columns] = self.queries[name]
                self.segments[row, columns] = number + 1
                self.starts[row, columns] = np.arange(lengths[name])
                self.ends[row, columns] = np.arange(lengths[name])[::-1]
                self.timestamps[row, columns] = self.times[name] + 100 * number

    def context(self, variant: Variant, shared=None) -> AttentionContext:
        positions = self.starts if variant.origin == "start" else self.ends
        return AttentionContext(
            *map(jnp.asarray, (positions, self.segments, self.timestamps)), shared=shared, mask=variant.mask
        )


def random_parameters(abstract, seed=1):
    """Generic values for every parameter (an initialisation may hide an error behind zeros and ones)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.4, a.shape), jnp.float32), abstract)


def abstract_parameters(variant: Variant):
    """Shapes of the mechanism's own parameters and of those its layers share."""
    config, spec, layout = variant.config, variant.spec(), Layout()
    sharing = config.build_shared(spec)
    common = {} if sharing is None else jax.eval_shape(lambda: sharing.init(jax.random.key(0)))["params"]

    def init(common):
        shared = None if sharing is None else sharing.apply({"params": common})
        asked = layout.asked if variant.separate_queries else None
        context = layout.context(variant, shared)
        return config.build(spec).init(jax.random.key(0), jnp.asarray(layout.x), context, False, asked)

    return jax.eval_shape(init, common).get("params", {}), common


def apply(
    variant: Variant, own, common, x, asked, context_of, train=False, key=None, dtype=jnp.float32, **keywords
):
    """The mechanism on a batch; ``context_of(shared)`` gives its context."""
    config, spec = variant.config, variant.spec(dtype)
    sharing = config.build_shared(spec)
    shared = None if sharing is None else sharing.apply({"params": common})
    rngs = None if key is None else {"dropout": key}
    asked = asked if variant.separate_queries else None
    module = config.build(spec)
    return module.apply({"params": own}, x, context_of(shared), train, asked, rngs=rngs, **keywords)
