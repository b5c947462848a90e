"""The transformer over item embeddings: SASRec, the transformer of S3-Rec, HSTU and LiGR by configuration.

SASRec is Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781); the presets
`jaxrec.presets.sasrec`, ``sasrec_original``, ``sasrec_s3rec``, ``hstu`` and ``ligr`` name the settings of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.attention.base import AttentionSpec, Mask
from jaxrec.attention.cache import CacheStep
from jaxrec.attention.positions import POSITIONS
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError, DataError
from jaxrec.models.attentive import (
    AttentiveEncoder,
    AttentiveEncoderConfig,
    padding_context,
    prefix_context,
    tokens_context,
)
from jaxrec.models.base import ENCODERS, current_columns
from jaxrec.models.blocks import ACTIVATIONS, SWIGLU, Block, zero_padding
from jaxrec.models.output_table import (
    ScoreOptions,
    declare_output,
    embedding_count,
    output_states,
    output_table,
)
from jaxrec.models.users import UserOptions, UserVectors, modulated, user_count, user_input
from jaxrec.nn.embedding import ItemEmbedding, PositionEmbedding
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import Dense, Dropout, Initializer, LayerNorm, take_positions
from jaxrec.nn.precision import DTYPES
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Idle, Range


@ENCODERS.register("transformer", "sasrec")
@dataclasses.dataclass(frozen=True)
class TransformerConfig(ScoreOptions, UserOptions, AttentiveEncoderConfig):
    """A causal transformer over item embeddings whose output is scored against those embeddings.

    Attributes:
      block: arrangement of norms and residuals: "original", "post-norm" (S3-Rec, Li et al.), "pre-norm", "gated"
        (LiGR) or "attention-only" (HSTU); see `jaxrec.models.blocks.Block`.
      ffn_width: inner size of the feed-forward network; 0 = the same as ``width`` (the original's).
      activation: of the feed-forward network; "identity" leaves it linear, "swiglu" multiplies SiLU of one map by another.
      output_projection: affine map after the heads: "auto" (in every block but "original"), "on" or "off".
      final_norm: layer norm of the last states: "auto" (in every block but "post-norm"), "on" or "off".
      scale_embeddings: multiply item vectors by sqrt(D) at the input (the original does).
      embedding_norm: layer norm on the input embeddings (S3-Rec does).
      init: "normal" with standard deviation ``init_scale``, or "xavier" (uniform for kernels, normal for tables).
      init_scale: standard deviation of "normal".
      norm_epsilon: of the layer norms.
      final_norm_epsilon: of the final norm; 0 = ``norm_epsilon`` (RecTools has another there).
      prediction_transform: affine map, GELU and layer norm between the last states and the scores, as in BERT4Rec's code.
      item_bias: learn a bias for each item's score (BERT4Rec does).
      separate_output: score against a second item table rather than the input's.
      padding_keys: whether histories shorter than L also attend to the padding before them, as in public PyTorch code of
        SASRec: "none"; "zero", states of padding that stay zero (pmixer's code of 2020); "propagated", states that pass
        through the layers as an item's do (its code since 2024). For models that were trained so; the same for padded
        and packed rows. Dropout leaves padding alone.
      remat: recompute each block in the backward pass: less memory, one more forward. (On a CPU, XLA's scheduler prefers
        speed and gives the memory away; `training.accumulate_steps` saves it there.)
    """

    block: Literal["original", "post-norm", "pre-norm", "gated", "attention-only"] = "pre-norm"
    ffn_width: Annotated[int, Range("[0, inf)")] = 0
    activation: Annotated[
        Literal["relu", "gelu", "gelu-tanh", "silu", "identity", "swiglu"], Idle("block", ("attention-only",))
    ] = "gelu-tanh"
    output_projection: Literal["auto", "on", "off"] = "auto"
    final_norm: Literal["auto", "on", "off"] = "auto"
    scale_embeddings: bool = False
    embedding_norm: bool = False
    init: Literal["normal", "xavier"] = "normal"
    init_scale: Annotated[float, Range("(0, inf)"), Idle("init", ("xavier",))] = 0.02
    norm_epsilon: Annotated[float, Range("(0, 1]")] = 1e-6
    final_norm_epsilon: Annotated[float, Range("[0, 1]"), Idle("final_norm", ("off",))] = 0.0
    prediction_transform: bool = False
    item_bias: bool = False
    separate_output: bool = False
    padding_keys: Literal["none", "zero", "propagated"] = "none"
    remat: bool = False

    def __post_init__(self) -> None:
        """Check every option."""
        super().__post_init__()
        self.check_user_options()
        if self.user == "prefix":
            self._check_prefix()
        if self.block == "attention-only" and self.ffn_width:
            raise ConfigError(
                "--encoder.ffn-width has nothing to act on in block 'attention-only', which has no feed-forward "
                f"network: expected 0, got {self.ffn_width}; leave it out, or choose block 'pre-norm'"
            )
        if self.padding_keys != "none":
            self._check_padding_keys()

    def _check_prefix(self) -> None:
        """Refuse what a token without a position has no meaning for."""
        scheme = self.position_scheme
        if not self.attention.reads_prefix:
            raise ConfigError(
                "--encoder.user prefix works with attention 'softmax' alone: got "
                f"{type(self.attention).__name__}; choose --attention softmax, or --encoder.user added or film"
            )
        if POSITIONS[scheme].inside:
            raise ConfigError(
                "--encoder.user prefix puts a token without a position in front of each sequence: expected positions "
                f"outside the attention, got --encoder.positions {scheme}; choose 'learned', 'sinusoidal' or 'none', or "
                "--encoder.user added or film"
            )
        if self.padding_keys != "none":
            raise ConfigError(
                f"--encoder.user prefix and --encoder.padding-keys {self.padding_keys} exclude each other: both put keys "
                "in front of a sequence; leave one out"
            )

    def _check_padding_keys(self) -> None:
        """Refuse what padding as keys has no exact meaning for."""
        scheme = self.position_scheme
        if not self.attention.reads_padding:
            raise ConfigError(
                f"--encoder.padding-keys {self.padding_keys} works with attention 'softmax' alone: got "
                f"{type(self.attention).__name__}; choose --attention softmax or --encoder.padding-keys none"
            )
        if POSITIONS[scheme].inside:
            raise ConfigError(
                f"--encoder.padding-keys {self.padding_keys} counts all positions of padding as one key: expected "
                f"positions outside the attention, got --encoder.positions {scheme}; choose 'learned', 'sinusoidal' "
                "or 'none', or --encoder.padding-keys none"
            )

    @property
    def has_output_projection(self) -> bool:
        """Whether an affine map follows the heads."""
        return (
            self.block != "original" if self.output_projection == "auto" else self.output_projection == "on"
        )

    @property
    def has_final_norm(self) -> bool:
        """Whether the last states are normalised once more."""
        return self.block != "post-norm" if self.final_norm == "auto" else self.final_norm == "on"

    @property
    def needs_users(self) -> bool:
        """Whether there is a vector for each user; see `EncoderConfig`."""
        return self.user != "none"

    @property
    def reads_item_vectors(self) -> bool:
        """Whether one table serves input and output; see `EncoderConfig`."""
        return not self.separate_output

    def build(self, spec: DataSpec) -> Transformer:
        """Build the encoder for data of these sizes."""
        self.check_spec(spec)
        self.check_users(spec)
        encoder = Transformer(self, spec)
        self.attention.check(encoder.attention_spec())
        return encoder


class Transformer(AttentiveEncoder):
    """``apply({"params": p}, batch, train, rngs) -> hidden float32[B, L, D]``.

    Parameters: ``(V + 1) D`` for the items (twice with ``separate_output``, and ``V + 1`` with ``item_bias``),
    ``n_special * D`` for tokens beside the items, ``max_length * D`` for learned positions, ``2 D`` for the embedding
    norm and for the final norm where there is one, ``D^2 + 3 D`` for a prediction transform, those of users
    (`jaxrec.models.users.user_count`), what the attention shares between layers, and for each layer the attention's own,
    ``2 D`` for each of two norms and ``2 D F + F + D`` for a feed-forward width F (``D F + F`` more with "swiglu").
    "attention-only" has one norm and no feed-forward network; "gated" has two gates of ``D^2 + D`` more.
    """

    config: TransformerConfig

    selects_in_training: ClassVar[bool] = True

    def attention_spec(self) -> AttentionSpec:
        """Settings that every block passes to its attention mechanism."""
        return AttentionSpec(
            width=self.config.width,
            max_length=self.max_length,
            positions=self.positions,
            position_origin=self.spec.position_origin,
            output_projection=self.config.has_output_projection,
            kernel_init=self._kernel_init(),
            dtype=DTYPES[self.config.dtype],
        )

    def _kernel_init(self) -> Initializer:
        if self.config.init == "normal":
            return nn.initializers.normal(self.config.init_scale)
        return nn.initializers.xavier_uniform()

    def _table_init(self) -> Initializer:
        if self.config.init == "normal":
            return nn.initializers.normal(self.config.init_scale)
        return nn.initializers.xavier_normal()

    def _user_row_init(self) -> Initializer:
        """Of one more vector of a user: Xavier's deviation follows from the shape of the table, and a vector has none."""
        table_init, n_users = self._table_init(), self.spec.n_users
        if self.config.init == "normal":
            return table_init
        return lambda key, shape, dtype: table_init(key, (n_users, *shape), dtype)[0]

    def cache_obstacle(self, planned: bool = False) -> str | None:
        """Padding as keys, or what attention and positions say; see `Encoder`."""
        if self.config.padding_keys != "none":
            return "padding takes part as keys (--encoder.padding-keys), and every interaction takes the place of some"
        if self.config.user == "prefix":
            return "the token of the user (--encoder.user prefix) is not kept between positions"
        return super().cache_obstacle(planned)

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
        if config.padding_keys == "propagated" and mask == "bidirectional":
            raise ConfigError(
                "--encoder.padding-keys propagated needs a task with a causal mask, since under a bidirectional one the "
                "states of padding differ between histories; choose --encoder.padding-keys zero or none, or another "
                "task"
            )
        embed = ItemEmbedding(
            self.spec,
            config.width,
            self._table_init(),
            self.shards,
            config.item_delta,
            config.item_codes,
            name="items",
        )
        items, positions, segments = current_columns(batch, cache)
        x = embed(items)
        if config.scale_embeddings:
            x = x * config.width**0.5
        if self.has_additive_positions:
            x = x + PositionEmbedding(
                self.max_length,
                config.width,
                self.has_learned_positions,
                self._table_init(),
                name="positions",
            )(positions)
        vectors = self._user_vectors(batch, train, cache)
        prefix = None
        if vectors is not None and config.user != "film":
            mapped = user_input(config, vectors, config.width, shape.kernel_init, shape.dtype)
            x, prefix = (x + mapped, None) if config.user == "added" else (x, mapped)
        padding = None if config.padding_keys == "none" else jnp.zeros((1, 1, config.width), x.dtype)
        if config.embedding_norm:
            embedding_norm = LayerNorm(epsilon=config.norm_epsilon, name="embedding_norm")
            x = embedding_norm(x)
            padding = embedding_norm(padding) if config.padding_keys == "propagated" else padding
            prefix = None if prefix is None else embedding_norm(prefix)
        prefix = None if prefix is None else Dropout(config.dropout)(prefix, train)
        x = zero_padding(Dropout(config.dropout)(x, train), segments)

        context = self.attention_context(batch, shape, mask, cache)
        block = nn.remat(Block, static_argnums=(3,)) if config.remat and cache is None else Block
        tokens = self.attention.front_tokens(context)
        for layer in range(config.layers):
            last = layer == config.layers - 1
            queries = query_positions if last else None
            apply_block = block(
                config.block,
                self.attention,
                shape,
                config.ffn_width or config.width,
                config.activation,
                config.dropout,
                config.norm_epsilon,
                name=f"layer_{layer}",
            )
            states = dataclasses.replace(context, tokens=tokens, padding=padding, prefix=prefix)
            x = apply_block(x, states, train, queries)
            if config.padding_keys == "propagated" and not last:
                padding = apply_block(padding, padding_context(), False)
            if tokens is not None and not last:
                tokens = apply_block(tokens, tokens_context(tokens), train)
            if prefix is not None and not last:
                alone = prefix.reshape(-1, 1, config.width)
                prefix = apply_block(alone, prefix_context(len(alone)), train).reshape(prefix.shape)
            segments = segments if queries is None else jnp.take_along_axis(segments, queries, axis=1)
            x = zero_padding(x, segments)
        if config.has_final_norm:
            epsilon = config.final_norm_epsilon or config.norm_epsilon
            x = zero_padding(LayerNorm(epsilon=epsilon, name="final_norm")(x), segments)
        if vectors is not None and config.user == "film":
            vectors = vectors if query_positions is None else take_positions(vectors, query_positions)
            x = zero_padding(modulated(x, vectors, shape.kernel_init, shape.dtype), segments)
        if config.prediction_transform:
            mapped = Dense(config.width, kernel_init=shape.kernel_init, dtype=shape.dtype, name="prediction")(
                x
            )
            norm = LayerNorm(epsilon=config.norm_epsilon, name="prediction_norm")
            x = zero_padding(norm(ACTIVATIONS["gelu"](mapped)), segments)
        declare_output(self, self._table_init())
        return output_states(self, x)

    def _user_vectors(
        self, batch: Batch, train: bool, cache: CacheStep | None
    ) -> Float[Array, "B L W"] | None:
        """The vector of each position's user, or None without vectors of users."""
        config = self.config
        if config.user == "none":
            return None
        if batch.users is None:
            raise DataError(
                f"--encoder.user {config.user} reads whose history it is: expected Batch.users int32[B, L], got None"
            )
        look_up = UserVectors(
            config,
            self.spec.n_users,
            config.user_width or config.width,
            self._table_init(),
            self._user_row_init(),
            name="users",
        )
        users, segments = batch.users, batch.segments
        if cache is not None:
            users, segments = cache.current(users), cache.current(segments)
        return look_up(users, segments, train)

    def item_table(self, params: Mapping[str, Any]) -> ItemTable:
        """The candidates' vectors float32[V+1, D] and bias float32[V+1] or None."""
        return output_table(self, params)

    def parameter_count(self) -> int:
        """Number of parameters by the formula in the class docstring."""
        config, width = self.config, self.config.width
        inner = config.ffn_width or width
        shape = self.attention_spec()
        norms = 2 * width
        layer = self.attention.parameter_count(shape) + norms
        if config.block != "attention-only":
            layer += norms + 2 * width * inner + inner + width
            layer += (width * inner + inner) if config.activation == SWIGLU else 0
        if config.block == "gated":
            layer += 2 * (width**2 + width)
        return (
            embedding_count(self)
            + (self.max_length * width if self.has_learned_positions else 0)
            + 2 * width * (int(config.embedding_norm) + int(config.has_final_norm))
            + (width**2 + 3 * width) * int(config.prediction_transform)
            + user_count(config, self.spec, width)
            + self.attention.shared_parameter_count(shape)
            + config.layers * layer
        )
