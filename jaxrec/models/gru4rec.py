"""GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016).

A gated recurrent unit per layer reads the items of a sequence, oldest first, from input x_t and state h_{t-1}:

    r = sigmoid(x_t W_r + h_{t-1} U_r)          reset gate
    z = sigmoid(x_t W_z + h_{t-1} U_z)          update gate
    c = tanh(x_t W_c + r * (h_{t-1} U_c))       candidate
    h_t = (1 - z) * c + z * h_{t-1}             h = 0 before the first item of each sequence

The defaults are the shape of Li et al. 2023 (arXiv 2301.00979), which RecBole has too: dropout on the
embeddings, a unit wider than the items and without biases, an affine map back to the width of the items,
scores against the input's item table. With ``--encoder.unit-bias`` the unit has the biases of PyTorch and
cuDNN, less those that only repeat another: b_r, b_z and b_c beside the input products, and d_c inside
``r * (h_{t-1} U_c + d_c)``.

Only the product with ``U = [U_r | U_z | U_c]`` depends on the step before. The input products of all times
are computed ahead of the loop, and the gradient of U, a sum over all times, is one product after the loop of
the backward pass (JAX's own rule adds to it at every step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import Mask
from jaxrec.attention.cache import GROWN, CacheStep, remember_ends
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.base import ENCODERS, Encoder, EncoderConfig, current_columns
from jaxrec.models.blocks import zero_padding
from jaxrec.models.output_table import (
    ScoreOptions,
    declare_output,
    embedding_count,
    output_states,
    output_table,
)
from jaxrec.nn.embedding import ItemEmbedding
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import Dense, Dropout, Initializer, take_positions
from jaxrec.nn.precision import DTYPES
from jaxrec.nn.segments import is_first
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Idle, Range, Search

#: Input products of the reset gate, the update gate and the candidate, each float32[L, B, H].
Inputs = tuple[Array, Array, Array]


def _product(states: Array, kernel: Array, dtype: Any) -> Array:
    """``states [B, I] @ kernel [I, O]`` with operands in ``dtype`` and a float32 sum."""
    return lax.dot_general(
        states.astype(dtype),
        kernel.astype(dtype),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _step(
    inputs: Inputs, before: Array, kernel: Array, bias: Array, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    """The state after one step, and its gates: reset, update, candidate, and what the reset gate multiplies."""
    from_reset, from_update, from_candidate = jnp.split(_product(before, kernel, dtype), 3, axis=-1)
    reset = jax.nn.sigmoid(inputs[0] + from_reset)
    update = jax.nn.sigmoid(inputs[1] + from_update)
    inner = from_candidate + bias[None]
    candidate = jnp.tanh(inputs[2] + reset * inner)
    return candidate + update * (before - candidate), (reset, update, candidate, inner)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def gated_recurrence(
    inputs: tuple[Float[Array, "L B H"], Float[Array, "L B H"], Float[Array, "L B H"]],
    kernel: Float[Array, "H 3*H"],
    bias: Float[Array, " H"],
    starts: Bool[Array, "L B"],
    dtype: Any = jnp.float32,
    unroll: int = 1,
) -> Float[Array, "L B H"]:
    """Compute the states float32[L, B, H] of a gated recurrent unit; time is the leading axis.

    Args:
      inputs: ``x W`` and its biases for the reset gate, the update gate and the candidate, each [L, B, H].
      kernel: U float32[H, 3 H], in the same order.
      bias: d_c float32[H]; zeros for a unit without biases.
      starts: bool[L, B], True where the state before is zero: at the first item of each sequence.
      dtype: operands of the products with U.
      unroll: steps of time per iteration of the compiled loop.
    """
    operand = kernel.astype(dtype)

    def step(state: Array, now: tuple[Inputs, Array]) -> tuple[Array, Array]:
        x, start = now
        state = _step(x, jnp.where(start[:, None], 0.0, state), operand, bias, dtype)[0]
        return state, state

    # Zeros made from the inputs lie on the devices as these do.
    return lax.scan(step, jnp.zeros_like(inputs[0][0]), (inputs, starts), unroll=unroll)[1]


def _recurrence_forward(
    inputs: Inputs, kernel: Array, bias: Array, starts: Array, dtype: Any, unroll: int
) -> tuple[Array, tuple[Any, ...]]:
    operand = kernel.astype(dtype)

    def step(state: Array, now: tuple[Inputs, Array]) -> tuple[Array, tuple[Any, ...]]:
        x, start = now
        before = jnp.where(start[:, None], 0.0, state)
        state, gates = _step(x, before, operand, bias, dtype)
        return state, (state, before, gates)

    _, (states, before, gates) = lax.scan(step, jnp.zeros_like(inputs[0][0]), (inputs, starts), unroll=unroll)
    return states, (kernel, starts, before, gates)


def _recurrence_backward(
    dtype: Any, unroll: int, saved: tuple[Any, ...], cotangent: Array
) -> tuple[Inputs, Array, Array, None]:
    kernel, starts, before, gates = saved
    transposed = kernel.T.astype(dtype)

    def step(carry: Array, now: tuple[Any, ...]) -> tuple[Array, tuple[Array, ...]]:
        from_above, start, before, (reset, update, candidate, inner) = now
        total = from_above + carry
        update_bar = total * (before - candidate) * update * (1.0 - update)
        candidate_bar = total * (1.0 - update) * (1.0 - candidate**2)
        inner_bar = candidate_bar * reset
        reset_bar = inner_bar * (1.0 - reset) * inner
        products_bar = jnp.concatenate([reset_bar, update_bar, inner_bar], axis=-1)
        carry = total * update + _product(products_bar, transposed, dtype)
        return jnp.where(start[:, None], 0.0, carry), (reset_bar, update_bar, candidate_bar, inner_bar)

    _, (reset_bar, update_bar, candidate_bar, inner_bar) = lax.scan(
        step, jnp.zeros_like(cotangent[0]), (cotangent, starts, before, gates), reverse=True, unroll=unroll
    )

    def kernel_bar(product_bar: Array) -> Array:
        over_all = (((0, 1), (0, 1)), ((), ()))
        return lax.dot_general(
            before.astype(dtype), product_bar.astype(dtype), over_all, preferred_element_type=jnp.float32
        )

    kernels = [kernel_bar(x) for x in (reset_bar, update_bar, inner_bar)]
    inputs_bar = (reset_bar, update_bar, candidate_bar)
    return inputs_bar, jnp.concatenate(kernels, axis=-1), inner_bar.sum((0, 1)), None


gated_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


class GatedRecurrentUnit(nn.Module):
    """One layer, time first: ``(x [L, B, I], starts bool[L, B]) -> states [L, B, H]``.

    ``3 I H + 3 H^2`` parameters, and ``4 H`` with ``use_bias``.
    """

    hidden_width: int
    use_bias: bool
    kernel_init: Initializer
    dtype: Any
    unroll: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "L B I"],
        starts: Bool[Array, "L B"],
        cache: CacheStep | None = None,
        ends: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "L B H"]:
        """Compute the states at all times; with a ``cache``, store those at ``ends``, or continue by one time."""
        width = self.hidden_width
        inputs = tuple(
            Dense(width, self.use_bias, self.kernel_init, self.dtype, name=f"{gate}_input")(x)
            for gate in ("reset", "update", "candidate")
        )
        kernel = self.param("recurrent_kernel", self.kernel_init, (width, 3 * width), jnp.float32)
        bias = jnp.zeros((width,), jnp.float32)
        if self.use_bias:
            bias = self.param("recurrent_bias", nn.initializers.zeros_init(), (width,), jnp.float32)
        if cache is None:
            return gated_recurrence(inputs, kernel, bias, starts, self.dtype, self.unroll)
        if cache.column is None:
            states = gated_recurrence(inputs, kernel, bias, starts, self.dtype, self.unroll)
        else:
            stored: Any = self.get_variable(GROWN, "last_state")
            before = jnp.where(starts[0][:, None], 0.0, stored[:, 0])
            now = tuple(part[0] for part in inputs)
            states = _step(now, before, kernel.astype(self.dtype), bias, self.dtype)[0][None]
        remember_ends(self, cache, "state", states.swapaxes(0, 1), ends)
        return states


@ENCODERS.register("gru4rec")
@dataclasses.dataclass(frozen=True)
class GRU4RecConfig(ScoreOptions, EncoderConfig):
    """A recurrent encoder; it has no attention and no positions, and is causal by construction.

    ``dropout`` is the rate on the embeddings.

    Attributes:
      hidden_width: H, size of the states of the units; 0 = the same as ``width``.
      projection: an affine map from the states to ``width``; without it ``hidden_width`` must be ``width``.
      unit_bias: biases inside the units.
      hidden_dropout: rate on the states that each layer passes on.
      init: "xavier" (uniform for kernels, normal for tables) or "normal" with standard deviation ``init_scale``. Xavier's
        range goes by the shape of a parameter: the recurrent kernels of the three gates are one, [H, 3 H], as in PyTorch,
        and the input kernels are three, where PyTorch has one with a smaller range.
      init_scale: standard deviation of "normal".
      item_bias: learn a bias for each item's score.
      separate_output: score against a second item table rather than the input's.
      unroll: steps of time per iteration of the compiled loop; results do not depend on it.
    """

    layers: Annotated[int, Range("[1, inf)"), Search("1:2")] = 1
    dropout: Annotated[float, Range("[0, 1)"), Search("0:0.6")] = 0.5
    hidden_width: Annotated[int, Range("[0, inf)"), Search("64,128,256")] = 128
    projection: bool = True
    unit_bias: bool = False
    hidden_dropout: Annotated[float, Range("[0, 1)")] = 0.0
    init: Literal["xavier", "normal"] = "xavier"
    init_scale: Annotated[float, Range("(0, inf)"), Idle("init", ("xavier",))] = 0.02
    item_bias: bool = False
    separate_output: bool = False
    unroll: Annotated[int, Range("[1, inf)")] = 1

    def __post_init__(self) -> None:
        """Check every option."""
        super().__post_init__()
        if not self.projection and self.state_width != self.width:
            raise ConfigError(
                f"--encoder.hidden-width must be --encoder.width {self.width} (or 0) without --encoder.projection; "
                f"got {self.hidden_width}"
            )

    @property
    def state_width(self) -> int:
        """H in force."""
        return self.hidden_width or self.width

    @property
    def reads_item_vectors(self) -> bool:
        """Whether one table serves input and output; see `EncoderConfig`."""
        return not self.separate_output

    def build(self, spec: DataSpec) -> GRU4Rec:
        """Build the encoder for data of these sizes."""
        return GRU4Rec(self, spec)


class GRU4Rec(Encoder):
    """``apply({"params": p}, batch, train, rngs) -> hidden float32[B, L, D]``.

    Parameters, with H the state width: ``(V + 1) D`` for the items (twice with ``separate_output``, and ``V + 1``
    with ``item_bias``), ``n_special * D`` for tokens beside the items, ``3 D H + 3 H^2`` for the first unit and
    ``6 H^2`` for each other (``4 H`` more with ``unit_bias``), and ``H D + D`` for the projection.
    """

    config: GRU4RecConfig

    def _initializers(self) -> tuple[Initializer, Initializer]:
        """Of kernels and of item tables."""
        if self.config.init == "normal":
            return (nn.initializers.normal(self.config.init_scale),) * 2
        return nn.initializers.xavier_uniform(), nn.initializers.xavier_normal()

    def cache_obstacle(self, planned: bool = False) -> str | None:
        """None: the states of the units are all that is needed of the past."""
        return None

    @nn.compact
    def __call__(
        self,
        batch: Batch,
        train: bool = False,
        query_positions: Int[Array, "B S"] | None = None,
        mask: Mask = "causal",
        cache: CacheStep | None = None,
    ) -> Float[Array, "B S D"]:
        """Compute hidden states; see `Encoder`."""
        self.check_call(train, query_positions)
        if mask != "causal":
            raise ConfigError(
                f"the encoder 'gru4rec' reads histories forwards: expected the mask 'causal', got {mask!r}; "
                "for masked-item tasks choose --encoder transformer"
            )
        config, dtype = self.config, DTYPES[self.config.dtype]
        kernel_init, table_init = self._initializers()
        items, _, segments = current_columns(batch, cache)
        x = ItemEmbedding(
            self.spec,
            config.width,
            table_init,
            self.shards,
            config.item_delta,
            config.item_codes,
            name="items",
        )(items)
        x = Dropout(config.dropout)(x, train).swapaxes(0, 1)
        starts = is_first(batch.segments) | (batch.segments == 0)
        starts = (starts if cache is None else cache.current(starts)).T
        for layer in range(config.layers):
            unit = GatedRecurrentUnit(
                config.state_width, config.unit_bias, kernel_init, dtype, config.unroll, name=f"layer_{layer}"
            )
            x = Dropout(config.hidden_dropout)(unit(x, starts, cache, query_positions), train)
        hidden = x.swapaxes(0, 1)
        if query_positions is not None:
            hidden = take_positions(hidden, query_positions)
            segments = jnp.take_along_axis(segments, query_positions, axis=1)
        if config.projection:
            hidden = Dense(config.width, kernel_init=kernel_init, dtype=dtype, name="projection")(hidden)
        declare_output(self, table_init)
        return output_states(self, zero_padding(hidden, segments))

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """Return the candidates' vectors float32[V+1, D] and bias float32[V+1] or None."""
        return output_table(self, params)

    def parameter_count(self) -> int:
        """Count the parameters by the formula in the class docstring."""
        config, width, hidden = self.config, self.config.width, self.config.state_width
        recurrent = 3 * hidden**2 + 4 * hidden * int(config.unit_bias)
        units = 3 * width * hidden + recurrent + (config.layers - 1) * (3 * hidden**2 + recurrent)
        return embedding_count(self) + units + (hidden * width + width if config.projection else 0)
