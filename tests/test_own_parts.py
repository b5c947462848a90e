"""Parts of one's own in ways that the how-to pages do not show: what the contracts carry, and what they refuse."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis import attention_maps
from jaxrec.attention import AttentionConfig
from jaxrec.attention.module import OutputProjection, projection_count
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import Encoder, EncoderConfig, ItemTable
from jaxrec.nn.embedding import ItemEmbedding
from jaxrec.nn.layers import Dense
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import ObjectiveConfig
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from tests.helpers import small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")
INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class GapsConfig(EncoderConfig):
    """Items and the time since the one before; ``batch_norm`` keeps running means."""

    batch_norm: bool = False

    @property
    def needs_timestamps(self):
        return True

    def build(self, spec):
        return Gaps(self, spec)


class Gaps(Encoder):
    """Parameters: ``(V + 1) D + 2 D``; no `parameter_count` of its own."""

    config: GapsConfig

    @nn.compact
    def __call__(self, batch, train=False, query_positions=None, mask="causal"):
        self.check_call(train, query_positions)
        x = ItemEmbedding(self.spec, self.config.width, INIT, self.shards, name="items")(batch.items)
        before = jnp.pad(batch.timestamps[:, :-1], ((0, 0), (1, 0)))
        same = batch.segments == jnp.pad(batch.segments[:, :-1], ((0, 0), (1, 0)))
        gap = jnp.where(same, batch.timestamps - before, 0).astype(jnp.float32)
        x = x + Dense(self.config.width, kernel_init=INIT, name="gap")(jnp.log1p(gap)[..., None])
        if self.config.batch_norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        hidden = jnp.where((batch.segments > 0)[..., None], x, 0.0)
        if query_positions is None:
            return hidden
        return jnp.take_along_axis(hidden, query_positions[..., None], axis=1)

    def item_table(self, params):
        return ItemTable(params["items"]["table"], None, self.shards)


def config_of(encoder):
    return dataclasses.replace(small_config(), encoder=encoder)


def test_parameters_are_counted_without_a_formula():
    encoder = GapsConfig(width=8).build(DataSpec(n_items=40, max_length=16, has_timestamps=True))
    assert encoder.parameter_count() == 41 * 8 + 2 * 8


def test_an_encoder_that_reads_times_refuses_data_without_them():
    with pytest.raises(ConfigError, match=r"the encoder GapsConfig reads the time .* \(--data\.time-column"):
        prepare(config_of(GapsConfig(width=8)), small_dataset(times=False))


def test_an_encoder_may_keep_nothing_but_parameters():
    with pytest.raises(ConfigError, match=r"Gaps keeps variables in Flax's collections batch_stats"):
        prepare(config_of(GapsConfig(width=8, batch_norm=True)), small_dataset())


@dataclasses.dataclass(frozen=True)
class CarelessConfig(EncoderConfig):
    """Item vectors alone, with a fault."""

    fault: str = ""

    def build(self, spec):
        return Careless(self, spec)


class Careless(Encoder):
    """Parameters: the items' vectors, and their biases."""

    config: CarelessConfig

    @nn.compact
    def __call__(self, batch, train=False, query_positions=None, mask="causal"):
        x = ItemEmbedding(self.spec, self.config.width, INIT, self.shards, name="items")(batch.items)
        if self.config.fault == "bias":
            self.param("bias", nn.initializers.zeros_init(), (self.n_items + 1,))
        if query_positions is None or self.config.fault == "positions":
            return x
        return jnp.take_along_axis(x, query_positions[..., None], axis=1)

    def item_table(self, params):
        vectors = params["items"]["table"]
        return ItemTable(vectors[1:] if self.config.fault == "padding" else vectors, None, self.shards)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("positions", r"Careless, called with query_positions .* \[1, 1, 8\] .*; got \[1, 2, 8\]"),
        ("padding", r"Careless, asked for its item_table, must return \[41, 8\] .*; got \[40, 8\]"),
    ],
)
def test_states_and_tables_of_other_shapes_are_refused(fault, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config_of(CarelessConfig(width=8, fault=fault)), small_dataset())


def test_rows_of_items_that_devices_cannot_share_are_refused():
    config = config_of(CarelessConfig(width=8, fault="bias")).updated({"mesh.item": 2})
    with pytest.raises(ConfigError, match=r"--mesh\.item 2 cannot share the parameter bias.* got 41; "):
        prepare(config, small_dataset())
    prepare(config.updated({"encoder.fault": ""}), small_dataset())


@dataclasses.dataclass(frozen=True)
class SumsConfig(AttentionConfig):
    """Sums of earlier values: no weights to draw."""

    default_positions = "none"
    sown: str = ""

    def build(self, spec, name=None):
        return Sums(self, spec, name=name)

    def parameter_count(self, spec):
        return projection_count(spec)


class Sums(nn.Module):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``."""

    config: SumsConfig
    spec: object

    @nn.compact
    def __call__(self, x, context, train=False, queries=None):
        allowed = context.allowed().astype(x.dtype)
        if self.config.sown:
            self.sow("intermediates", self.config.sown, allowed[:, None])
        return OutputProjection(self.spec, name="output")(jnp.einsum("bij,bjd->bid", allowed, x))


@pytest.mark.parametrize("sown", ["", "gates"])
def test_a_mechanism_may_have_no_weights_to_draw(tmp_path, sown):
    encoder = dataclasses.replace(small_config().encoder, attention=SumsConfig(sown=sown))
    model = encoder.build(DataSpec(n_items=40, max_length=4))
    ones = np.ones((1, 4), np.int32)
    batch = Batch(ones, ones, ones, ones, ones.astype(np.float32))
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    assert attention_maps.write_attention_figures(model, params, batch, ["a"] * 4, tmp_path) == []


@dataclasses.dataclass(frozen=True)
class ScalarConfig(ObjectiveConfig):
    """A loss that forgets the sum of the weights."""

    def loss(self, inputs):
        return jnp.sum(inputs.weights)


def test_a_loss_that_is_no_pair_of_sums_is_refused():
    config = dataclasses.replace(small_config(), objective=ScalarConfig())
    assert config.objective.temperature == 1.0  # of a loss without the option
    with pytest.raises(ConfigError, match=r"ScalarConfig\.loss must return LossSums\(total, weight\)"):
        train(config, small_dataset(), None, progress=False)
