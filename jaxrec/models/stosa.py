"""STOSA (Fan et al., "Sequential Recommendation via Stochastic Self-Attention", WWW 2022, arXiv 2201.06035).

Items and states are Gaussians with diagonal covariance, compared by their squared Wasserstein distance

    W(h, i) = |mu_h - mu_i|^2 + |sqrt(sigma_h) - sqrt(sigma_i)|^2 = |h|^2 - 2 h . e_i + |e_i|^2

where ``h`` and ``e_i`` put means and square roots of covariances side by side. With vectors ``2 e_i`` and biases
``-|e_i|^2`` the common score ``h . vector + bias`` is ``|h|^2 - W(h, i)``: it ranks as the distance does, and the score
difference of two items is their distance difference, so BPR on scores is STOSA's loss. Its second term, pvn, also compares
distances between items (`jaxrec.nn.item_table.EuclideanItemTable`).

The authors' code (github.com/zfan20/STOSA) departs from the paper in two ways, which `STOSAConfig` offers as options:

* ``legacy_shared_norms``: means and covariances share one layer norm at the input, and one after the attention of a layer.
* ``legacy_input_means``: the encoder's loop assigns the mean that a layer returns to a misspelt name, so that every layer,
  and the final state, has the mean of the input, ``ELU(norm(item + position))``, that no attention has touched. Only
  covariances pass through the layers. The published figures come from that code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec, Mask
from jaxrec.attention.cache import CacheStep
from jaxrec.attention.functional import elu_plus_one, standard_deviation
from jaxrec.attention.wasserstein import WassersteinAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models.attentive import AttentiveEncoder, AttentiveEncoderConfig
from jaxrec.models.base import ENCODERS, current_columns
from jaxrec.models.blocks import zero_padding
from jaxrec.nn.embedding import ItemEmbedding, PositionEmbedding
from jaxrec.nn.item_table import EuclideanItemTable, ItemTable
from jaxrec.nn.layers import Dense, Dropout, Initializer, take_positions
from jaxrec.nn.precision import DTYPES
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Range, Search

STREAMS = ("mean", "covariance")


@ENCODERS.register("stosa")
@dataclasses.dataclass(frozen=True)
class STOSAConfig(AttentiveEncoderConfig):
    """A transformer over Gaussians; needs "wasserstein" attention.

    ``width`` is the size of a mean, and of a covariance: hidden states have twice as many numbers.

    Attributes:
      attention: mechanism inside each layer.
      ffn_width: inner size of each stream's feed-forward network; 0 = four times ``width``.
      init_mean: mean of the normal initialisation of tables and kernels.
      init_scale: its standard deviation.
      norm_epsilon: of the layer norms.
      legacy_shared_norms: share layer norms between means and covariances, as the authors' code does.
      legacy_input_means: let no layer change the means, as in the authors' code.
    """

    layers: Annotated[int, Range("[1, inf)"), Search("1:3")] = 1
    attention: AttentionConfig = WassersteinAttentionConfig()
    ffn_width: Annotated[int, Range("[0, inf)")] = 0
    init_mean: float = 0.01
    init_scale: Annotated[float, Range("(0, inf)")] = 0.02
    norm_epsilon: Annotated[float, Range("(0, 1]")] = 1e-12
    legacy_shared_norms: bool = False
    legacy_input_means: bool = False

    def build(self, spec: DataSpec) -> STOSA:
        """Build the encoder for data of these sizes."""
        if not isinstance(self.attention, WassersteinAttentionConfig):
            raise ConfigError(
                "the encoder 'stosa' needs attention between Gaussians: expected attention 'wasserstein', got "
                f"{type(self.attention).__name__}; choose that attention, or the encoder 'transformer'"
            )
        self.check_spec(spec)
        encoder = STOSA(self, spec)
        self.attention.check(encoder.attention_spec())
        return encoder


class GaussianBlock(nn.Module):
    """One layer ``[B, L, 2 d] -> [B, L, 2 d]`` on means and covariances side by side; each stream post-norm."""

    config: STOSAConfig
    attention: AttentionConfig
    shape: AttentionSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], context: AttentionContext, train: bool
    ) -> Float[Array, "B L D"]:
        """Apply the layer to ``x`` [B, L, 2 d]."""
        config, shape, width = self.config, self.shape, self.config.width
        attended = self.attention.build(shape, name="attention")(x, context, train)
        attended = x + Dropout(config.dropout)(attended, train)
        norms = stream_norms(config, "attention_norm")
        out = []
        for name, state in zip(STREAMS, jnp.split(attended, 2, axis=-1), strict=True):
            state = norms[name](state)
            inner = Dense(
                config.ffn_width or 4 * width,
                kernel_init=shape.kernel_init,
                dtype=shape.dtype,
                name=f"{name}_inner",
            )(state)
            outer = Dense(width, kernel_init=shape.kernel_init, dtype=shape.dtype, name=f"{name}_outer")
            fed = Dropout(config.dropout)(outer(jax.nn.elu(inner)), train)
            out.append(
                nn.LayerNorm(epsilon=config.norm_epsilon, name=f"{name}_feed_forward_norm")(state + fed)
            )
        mean = x[..., :width] if config.legacy_input_means else out[0]
        return jnp.concatenate([mean, elu_plus_one(out[1])], axis=-1)


def stream_norms(config: STOSAConfig, name: str) -> dict[str, nn.LayerNorm]:
    """Return the layer norm of each stream: two, or one module for both."""
    if config.legacy_shared_norms:
        return dict.fromkeys(STREAMS, nn.LayerNorm(epsilon=config.norm_epsilon, name=name))
    return {stream: nn.LayerNorm(epsilon=config.norm_epsilon, name=f"{stream}_{name}") for stream in STREAMS}


class STOSA(AttentiveEncoder):
    """Encoder whose states float32[B, L, 2 d] are a mean and the square root of a covariance.

    Parameters, with d the width and F the feed-forward width: ``2 (V + 1 + n_special) d`` for the items, ``2 max_length d``
    for learned positions, ``4 d`` for the input norms, what the attention shares between layers, and for each layer the
    attention's own, ``8 d`` for norms and ``2 (2 d F + F + d)``. With ``legacy_shared_norms`` the input norms have ``2 d``
    and those of a layer ``6 d``. With ``legacy_input_means`` the values, output map and feed-forward
    network of the mean stream have no effect.
    """

    config: STOSAConfig

    def _init(self) -> Initializer:
        config = self.config

        def init(key: Array, size: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return config.init_mean + config.init_scale * jax.random.normal(key, size, dtype)

        return init

    def attention_spec(self) -> AttentionSpec:
        """Return the sizes and settings that every block passes to its attention mechanism."""
        return AttentionSpec(
            width=2 * self.config.width,
            max_length=self.max_length,
            positions=self.positions,
            position_origin=self.spec.position_origin,
            kernel_init=self._init(),
            dtype=DTYPES[self.config.dtype],
        )

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
        config, shape = self.config, self.attention_spec()
        items, positions, segments = current_columns(batch, cache)
        streams, norms = [], stream_norms(config, "norm")
        for name in STREAMS:
            embed = ItemEmbedding(self.spec, config.width, self._init(), self.shards, name=f"{name}_items")
            x = embed(items)
            if self.has_additive_positions:
                x = x + PositionEmbedding(
                    self.max_length,
                    config.width,
                    self.has_learned_positions,
                    self._init(),
                    name=f"{name}_positions",
                )(positions)
            streams.append(Dropout(config.dropout)(norms[name](x), train))
        x = jnp.concatenate([jax.nn.elu(streams[0]), elu_plus_one(streams[1])], axis=-1)
        x = zero_padding(x, segments)

        context = self.attention_context(batch, shape, mask, cache)
        for layer in range(config.layers):
            block = GaussianBlock(config, self.attention, shape, name=f"layer_{layer}")
            x = zero_padding(block(x, context, train), segments)
        hidden = jnp.concatenate(
            [x[..., : config.width], standard_deviation(x[..., config.width :])], axis=-1
        )
        hidden = zero_padding(hidden, segments)
        return hidden if query_positions is None else take_positions(hidden, query_positions)

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """Return vectors ``2 e_i`` float32[V+1, 2 d] and biases ``-|e_i|^2`` float32[V+1]; see the module's docstring."""
        mean, covariance = (params[f"{name}_items"]["table"] for name in STREAMS)
        items = jnp.concatenate([mean, standard_deviation(elu_plus_one(covariance))], axis=-1)
        return EuclideanItemTable.of_points(items, self.shards)

    def parameter_count(self) -> int:
        """Count the parameters by the formula in the class docstring."""
        config, width = self.config, self.config.width
        inner = config.ffn_width or 4 * width
        shape = self.attention_spec()
        norms = 2 if config.legacy_shared_norms else 4  # at the input
        layer = self.attention.parameter_count(shape) + 2 * (2 * width * inner + inner + width)
        layer += (norms + 4) * width
        return (
            2 * (self.n_items + 1 + self.spec.n_special) * width
            + (2 * self.max_length * width if self.has_learned_positions else 0)
            + norms * width
            + config.layers * layer
            + self.attention.shared_parameter_count(shape)
        )
