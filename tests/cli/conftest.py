"""Files and finished runs that the tests of commands share."""

import pytest

from tests.cli.shared import SMALL, interactions
from tests.runs import jaxrec


@pytest.fixture(autouse=True, scope="module")
def promotion(standard_promotion):
    """Commands train, so optax may promote types."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    table = interactions()
    table.write_csv(folder / "log.csv")
    table.write_csv(folder / "log.tsv", separator="\t")
    table.write_parquet(folder / "log.parquet")
    table.rename({"user_id": "who", "item_id": "what", "timestamp": "when"}).write_csv(folder / "odd.csv")
    return folder


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A finished run of the README's main command, with the smallest preset."""
    run = tmp_path_factory.mktemp("bundled") / "run"
    return run, jaxrec("train", "--preset", "smoke", "--workdir", run, "--json")


@pytest.fixture(scope="module")
def small(tmp_path_factory, files):
    """A finished run on the small CSV, two seeds."""
    run = tmp_path_factory.mktemp("small") / "run"
    return run, jaxrec("train", "--data", files / "log.csv", "--workdir", run, *SMALL, "--seeds", 2, "--json")
