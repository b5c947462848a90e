"""The table that drives the tests of encoders. A new encoder adds its lines here, and its oracle."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.attention import PointwiseAttentionConfig, SoftmaxAttentionConfig, WassersteinAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.models import ENCODERS, EncoderConfig
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.nn.spec import DataSpec

V, L, D = 9, 6, 4
#: Users of the data.
U = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One line: a registered encoder, its options, and what it is built for.

    Attributes:
      name: of the case.
      encoder: a key of ``ENCODERS``.
      options: of its configuration.
      origin: what positions count from.
      mask: "causal" or "bidirectional".
      n_special: tokens beside the items; the sequences then hold one.
      sees_later_items: whether states depend on later items of their own sequence.
    """

    name: str
    encoder: str
    options: dict[str, Any]
    origin: str = "start"
    mask: str = "causal"
    n_special: int = 0
    sees_later_items: bool = False

    @property
    def config(self) -> EncoderConfig:
        return ENCODERS[self.encoder](**{"width": D, "dropout": 0.3, **self.options})

    @property
    def spec(self) -> DataSpec:
        return DataSpec(V, L, self.origin, n_users=U, n_special=self.n_special)

    def __str__(self) -> str:
        return self.name


def transformer(name, origin="start", mask="causal", n_special=0, heads=2, attention=None, **options):
    """A line for the transformer."""
    options = {"init_scale": 0.5, "attention": attention or SoftmaxAttentionConfig(heads=heads), **options}
    return Case(name, "transformer", options, origin, mask, n_special, mask == "bidirectional")


CASES = (
    transformer(
        "sasrec-original", block="original", activation="relu", scale_embeddings=True, init="xavier", heads=1
    ),
    transformer(
        "post-norm", origin="end", block="post-norm", ffn_width=12, activation="gelu", embedding_norm=True
    ),
    transformer(
        "pre-norm",
        block="pre-norm",
        activation="silu",
        positions="sinusoidal",
        item_bias=True,
        separate_output=True,
    ),
    transformer(
        "original-with-projection",
        block="original",
        output_projection="on",
        activation="identity",
        final_norm="off",
    ),
    transformer("post-norm-with-final-norm", block="post-norm", final_norm="on", activation="relu"),
    transformer("remat", layers=1, positions="none", remat=True),
    transformer("ligr", origin="end", block="gated", ffn_width=6, activation="swiglu"),
    transformer(
        "hstu", block="attention-only", embedding_norm=True, attention=PointwiseAttentionConfig(heads=2)
    ),
    transformer("attention-only", block="attention-only"),
    transformer(
        "padding-zero",
        origin="end",
        block="original",
        output_projection="on",
        activation="identity",
        padding_keys="zero",
    ),
    transformer(
        "propagated-padding",
        origin="end",
        block="post-norm",
        activation="relu",
        final_norm="on",
        embedding_norm=True,
        layers=3,
        padding_keys="propagated",
    ),
    transformer("padding-zero-bidirectional", mask="bidirectional", embedding_norm=True, padding_keys="zero"),
    transformer(
        "propagated-padding-gated",
        block="gated",
        positions="sinusoidal",
        remat=True,
        padding_keys="propagated",
    ),
    transformer(
        "bert4rec",
        mask="bidirectional",
        n_special=1,
        block="post-norm",
        ffn_width=8,
        prediction_transform=True,
        item_bias=True,
    ),
    transformer(
        "user-added",
        origin="end",
        block="post-norm",
        embedding_norm=True,
        activation="relu",
        user="added",
        user_width=3,
        user_dropout=0.2,
        user_unknown=0.3,
    ),
    transformer("user-added-at-full-width", layers=1, user="added", user_swap=0.5),
    transformer("user-prefix", user="prefix", layers=3, user_swap=0.2),
    transformer(
        "user-prefix-original",
        origin="end",
        block="original",
        output_projection="on",
        activation="relu",
        embedding_norm=True,
        user="prefix",
        user_width=2,
        remat=True,
    ),
    transformer("user-prefix-post-norm", block="post-norm", user="prefix", user_unknown=0.2),
    transformer("user-film", origin="end", block="gated", user="film", user_width=5, user_dropout=0.3),
    transformer("codes-hashed", origin="end", n_special=1, item_codes=ItemCodesConfig("hashed", 3, 5)),
    transformer("cosine", origin="end", block="post-norm", item_bias=True, similarity="cosine"),
    Case("stosa", "stosa", {"init_scale": 0.5, "attention": WassersteinAttentionConfig(heads=2)}),
    Case(
        "stosa-end",
        "stosa",
        {"layers": 2, "ffn_width": 6, "init_scale": 0.5, "attention": WassersteinAttentionConfig(heads=1)},
        origin="end",
    ),
    Case(
        "stosa-authors-code",
        "stosa",
        {
            "layers": 2,
            "init_scale": 0.5,
            "attention": WassersteinAttentionConfig(heads=2),
            "legacy_shared_norms": True,
            "legacy_input_means": True,
        },
    ),
    Case("gru4rec", "gru4rec", {"hidden_width": 6}, n_special=1),
    Case("gru4rec-cosine", "gru4rec", {"similarity": "cosine"}),
    Case(
        "gru4rec-deep",
        "gru4rec",
        {
            "layers": 2,
            "hidden_width": 0,
            "projection": False,
            "unit_bias": True,
            "hidden_dropout": 0.2,
            "item_bias": True,
            "separate_output": True,
            "init": "normal",
            "init_scale": 0.5,
            "unroll": 3,
        },
    ),
    Case("gru4rec-codes", "gru4rec", {"hidden_width": 6, "item_codes": ItemCodesConfig("product", 2, 5)}),
    Case("srgnn", "srgnn", {}, n_special=1),
    Case("srgnn-cosine", "srgnn", {"similarity": "cosine"}),
    Case("srgnn-codes", "srgnn", {"item_codes": ItemCodesConfig("residual", 2, 5)}, n_special=1),
    Case("srgnn-two-steps", "srgnn", {"layers": 2}),
    Case("srgnn-session", "srgnn", {"reading": "session", "layers": 2}, sees_later_items=True),
    Case("srgnn-padding-faults", "srgnn", {"reading": "session-padding-faults"}, sees_later_items=True),
)

#: Sequences of the maximum length, of other lengths and of one item, with repeats and an item after itself.
SEQUENCES = {
    "long": (3, 1, 3, 3, 1, 5),
    "nearly": (2, 8, 2, 7, 8),
    "middle": (4, 2, 4),
    "single": (6,),
    "other": (7, 1),
}
#: Each row lists (column, sequence): alone, padded on either side, packed; the last row is empty.
ROWS = (
    ((0, "long"),),
    ((0, "middle"),),
    ((3, "middle"),),
    ((1, "middle"), (4, "single")),
    ((0, "single"), (1, "other"), (3, "middle")),
    ((1, "nearly"),),
    ((5, "single"),),
    (),
)


def sequence(case, name):
    """Items of a sequence; one of the long ones is a special token where the case has any."""
    items = list(SEQUENCES[name])
    if case.n_special and len(items) > 2:
        items[1] = V + 1
    return items


def user_of(items):
    """Whose sequence it is: by its first item, so that later items can change; -1 = a new user."""
    return items[0] % (U + 1) - 1


def batch_of(case, rows, length=L):
    """A batch of the given rows, each a list of (column, items)."""
    shape = (len(rows), length)
    items, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    users = np.full(shape, -1, np.int32)
    for r, content in enumerate(rows):
        for number, (column, values) in enumerate(content):
            place = slice(column, column + len(values))
            items[r, place] = values
            count = np.arange(len(values))
            positions[r, place] = count if case.origin == "start" else count[::-1]
            segments[r, place] = number + 1
            users[r, place] = user_of(values)
    zeros = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    return Batch(items, positions, segments, *zeros, users=users)


def layout(case):
    """The batch of `ROWS`, and the (row, columns) at which each sequence lies."""
    rows = [[(column, sequence(case, name)) for column, name in row] for row in ROWS]
    where = [
        (name, r, slice(column, column + len(SEQUENCES[name])))
        for r, row in enumerate(ROWS)
        for column, name in row
    ]
    return batch_of(case, rows), where


def random_parameters(encoder, batch, seed=1):
    """Generic values for every parameter: an initialisation may hide mistakes behind zeros and ones."""
    abstract = jax.eval_shape(encoder.init, jax.random.key(0), batch)["params"]
    rng = np.random.default_rng(seed)

    def values(path, a):
        if getattr(path[-1], "key", None) != "codes":
            return jnp.asarray(rng.normal(0.0, 0.5, a.shape), jnp.float32)
        codes = rng.integers(1, encoder.config.item_codes.size + 1, a.shape)
        return jnp.asarray(codes, jnp.float32).at[0].set(0.0)

    return jax.tree_util.tree_map_with_path(values, abstract)
