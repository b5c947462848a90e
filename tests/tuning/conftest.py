"""Studies that the tests share."""

import pytest

from tests.helpers import small_config, small_dataset

#: Two learning rates and the default one, whose trials share all shapes.
SPACE = {"optimizer.learning-rate": [1e-4, 3e-2], "optimizer.beta1": [0.8]}


@pytest.fixture(autouse=True, scope="session")
def optuna():
    return pytest.importorskip("optuna", reason="the extra tune is not installed")


@pytest.fixture(autouse=True, scope="module")
def promotion(standard_promotion):
    """Trials train, so optax may promote types."""


@pytest.fixture(scope="module")
def dataset():
    return small_dataset(n_users=30, n_items=20)


@pytest.fixture(scope="module")
def config():
    return small_config(training={"epochs": 2, "checkpoint_seconds": 30}, encoder={"width": 8})
