"""Datasets, configurations and batches of the tests of tasks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrec.attention import SoftmaxAttentionConfig
from jaxrec.data.batches import Batch
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.splits import split_dataset
from jaxrec.models import TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.tasks import Resources, S3RecConfig
from tests.helpers import small_config, small_dataset

V, A, L, D = 12, 5, 6, 4
#: Items 3, 7 and 11 have no attributes.
ATTRIBUTES = AttributeTable.from_lists(
    [
        [] if item % 4 == 3 else [f"a{item % 5}", f"a{item % 3}", "a4"][: 1 + item % 3]
        for item in range(1, V + 1)
    ]
)


def described_dataset(**options):
    """A small dataset whose items have attributes, but for a few."""
    dataset = small_dataset(**options)
    lists = [
        [] if item % 7 == 3 else [f"a{item % 6}", f"b{item % 4}"] for item in range(1, dataset.n_items + 1)
    ]
    return dataclasses.replace(dataset, attributes=AttributeTable.from_lists(lists))


def poisoned(dataset):
    """The dataset with other held-out items; only the training part is the same."""
    split = split_dataset(dataset, small_config().split)
    items = dataset.items.copy()
    for user in range(dataset.n_users):
        held = slice(split.train_stops[user], dataset.offsets[user + 1])
        items[held] = (items[held] + 16) % dataset.n_items + 1
    assert (items != dataset.items).sum() == 2 * dataset.n_users
    return dataclasses.replace(dataset, items=items)


def resources():
    """What the device holds for the toy catalogue: attributes in rows."""
    rows = np.zeros((V + 1, 3), np.int32)
    for item in range(1, V + 1):
        own = ATTRIBUTES.of_item(item)
        rows[item, : len(own)] = own
    return Resources(attributes=jnp.asarray(rows))


def toy_batch(histories, rows=None, users=None):
    """A batch of the given lists of items, packed as ``rows`` (lists of indices) say, or one per row."""
    rows = [[i] for i in range(len(histories))] if rows is None else rows
    shape = (len(rows), L)
    items, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    owners = np.full(shape, -1, np.int32)
    for r, members in enumerate(rows):
        column = 0
        for number, member in enumerate(members):
            values = histories[member]
            place = slice(column, column + len(values))
            items[r, place], positions[r, place], segments[r, place] = values, range(len(values)), number + 1
            owners[r, place] = member if users is None else users[member]
            column += len(values)
    weights = np.zeros(shape, np.float32)
    return Batch(
        *map(jnp.asarray, (items, positions, segments, 0 * items, weights)), users=jnp.asarray(owners)
    )


def toy_encoder(**options):
    """A transformer without dropout."""
    options = {"block": "post-norm", "ffn_width": 6, "dropout": 0.0, "layers": 1, **options}
    config = TransformerConfig(width=D, attention=SoftmaxAttentionConfig(heads=2), **options)
    return config.build(DataSpec(V, L, n_attributes=A, n_special=1))


def pretraining(**options):
    """The pretraining task on the toy encoder."""
    return S3RecConfig(**options).build(toy_encoder(), CrossEntropyConfig())
