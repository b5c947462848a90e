"""One trained run with titles, attributes and times for all tests of serving."""

import dataclasses

import jax
import pytest

import jaxrec
from jaxrec.data import load_dataset
from jaxrec.data.catalogue import AttributeTable
from jaxrec.serving import Recommender
from tests.helpers import small_config, small_dataset


def attributes_of(number):
    """Attributes of item number i: "odd" or "even", and "third" where 3 divides i."""
    return ["odd" if number % 2 else "even", *(["third"] if number % 3 == 0 else [])]


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Directory of a finished run on a saved dataset, so that it can be opened again from its path."""
    folder = tmp_path_factory.mktemp("served")
    dataset = small_dataset()
    table = AttributeTable.from_lists([attributes_of(number) for number in range(dataset.n_items)])
    dataclasses.replace(dataset, attributes=table).save(folder / "data")
    config = small_config(training={"epochs": 1})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder / "data")))
    with jax.numpy_dtype_promotion("standard"):
        jaxrec.fit(load_dataset(config.data), config, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="session")
def recommender(served):
    return Recommender.load(served)


@pytest.fixture(scope="session")
def personal(tmp_path_factory):
    """Directory of a run with vectors of users, whose users differ so much that lists show it."""
    folder = tmp_path_factory.mktemp("users")
    small_dataset().save(folder / "data")
    config = small_config(
        encoder={"user": "added", "user_unknown": 0.3},
        training={"epochs": 2},
        optimizer={"learning_rate": 0.02},
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder / "data")))
    with jax.numpy_dtype_promotion("standard"):
        jaxrec.fit(load_dataset(config.data), config, folder / "run", progress=False)
    return folder / "run"
