"""What the tests of commands share."""

import numpy as np
import polars as pl

from tests.helpers import small_dataset

#: Small enough for a test, with every part at work.
SMALL = ["--preset", "smoke", "--quiet", "--batches.batch-size", "4", "--batches.max-length", "16"]
SMALL += ["--evaluation.ks", "5", "10"]


def interactions():
    """The small dataset as a table of raw interactions."""
    dataset = small_dataset()
    users = np.repeat([f"u{i}" for i in range(dataset.n_users)], np.diff(dataset.offsets))
    return pl.DataFrame(
        {
            "user_id": users,
            "item_id": [dataset.item_ids[i - 1] for i in dataset.items],
            "timestamp": np.asarray(dataset.timestamps) + 1_500_000_000,
        }
    )


def refused(outcome, *words):
    """One line on standard error, exit status 1, nothing on standard output."""
    assert outcome.status == 1, outcome
    assert outcome.err.startswith("jaxrec: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err
    return True
