"""Both sides of a log as runs: the ensemble, its tables, figures and command, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis.duality import (
    ENSEMBLE,
    FILES,
    NEXT_ITEM,
    NEXT_USER,
    item_sequences,
    measure_duality,
)
from jaxrec.data import split_dataset, transposed
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.next_user import NextUserScorer
from jaxrec.runs import Run
from jaxrec.training.setup import prepare_model
from jaxrec.training.state import initial_params
from tests.helpers import replace, small_config, small_dataset
from tests.runs import jaxrec

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = ["--preset", "smoke", "--quiet", "--batches.batch-size", "4", "--batches.max-length", "16"]
SMALL += ["--evaluation.ks", "5", "10", "--training.epochs", "1", "--json"]


class Untrained:
    """The parts of a run that the ensemble reads, with parameters as they are drawn."""

    def __init__(self, name, dataset, seeds=(0, 1)):
        self.name, self.seeds, self.config = name, seeds, small_config()
        self.setup = prepare_model(self.config, dataset)

    @property
    def dataset(self):
        return self.setup.dataset

    def ranker(self, seed):
        return self.setup.ranker(jax.jit(lambda: initial_params(self.setup.task, jnp.uint32(seed)))())


@pytest.fixture(scope="module")
def sides():
    log = small_dataset()
    return Untrained("items", log), Untrained("users", transposed(split_dataset(log), 20))


def test_weights_are_chosen_on_validation_whatever_is_ranked(sides, tmp_path):
    options = {"scale": "log-softmax", "popularity": 1.0, "metric": "HR@5", "weights": (0.0, 0.5, 1.0)}
    test, valid = (measure_duality(*sides, part, **options) for part in ("test", "valid"))
    assert test.curves == valid.curves
    for name, weights in ((NEXT_USER, [1.0, 1.0]), (ENSEMBLE, valid.weights), (NEXT_ITEM, [0.0, 0.0])):
        found = [evaluation.metrics["HR@5"] for evaluation in valid.evaluations[name]]
        curves = zip(weights, valid.curves, strict=True)
        assert found == pytest.approx([curve[weight] for weight, curve in curves])
    assert all(curve[w] == max(curve.values()) for w, curve in zip(valid.weights, valid.curves, strict=True))
    json.dumps(test.to_dict())
    test.write(tmp_path / "out", ("HR@5",))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    text = (tmp_path / "out" / "ensemble.md").read_text()
    assert "that validation chose (log-softmax of scores per user)" in text
    assert {row.b for row in test.compare(("HR@5",)).differences} == {NEXT_USER, ENSEMBLE}
    with pytest.raises(ConfigError, match=r"already holds ensemble\.md"):
        test.write(tmp_path / "out", ("HR@5",))


def test_held_out_items_do_not_enter_the_scores(sides):
    """With other held-out interactions the same model gives every user the same scores."""
    items, _ = sides
    log, everyone = items.dataset, np.arange(60)
    poisoned = log.items.copy()
    held = ~items.setup.split.training_mask
    poisoned[held] = (poisoned[held] + 6) % log.n_items + 1
    scores = []
    for data in (log, dataclasses.replace(log, items=poisoned)):
        split = split_dataset(data)
        users = Untrained("users", transposed(split, 20))
        scorer = NextUserScorer.build(users.ranker(0), item_sequences(users), split.item_counts)
        scores.append(scorer.scores(Histories(data.items, everyone, everyone + 1, None, everyone)))
    np.testing.assert_array_equal(*scores)


def test_log_softmax_is_that_of_training(sides):
    """A model whose scores are a tenth of another's, divided by .1 in its loss, gives the same probabilities."""
    options = {"scale": "log-softmax", "metric": "NDCG@10", "weights": (0.3,)}
    plain = measure_duality(*sides, **options)
    tempered = []
    for side in sides:
        changed = Untrained(side.name, side.dataset)
        changed.config = replace(side.config, objective={"temperature": 0.1})
        changed.ranker = lambda seed, side=side: scaled(side.ranker(seed), 0.1)
        tempered.append(changed)
    other = measure_duality(*tempered, **options)
    assert [curve[0.3] for curve in other.curves] == pytest.approx([curve[0.3] for curve in plain.curves])


def scaled(ranker, factor):
    table = dataclasses.replace(ranker.table, vectors=ranker.table.vectors * factor)
    return dataclasses.replace(ranker, table=dataclasses.replace(table, bias=table.bias * factor))


def test_pairs_that_do_not_belong_together_are_refused(sides):
    items, users = sides
    with pytest.raises(DataError, match=r"run 'items' must be trained on a transposed log"):
        measure_duality(users, items)
    record = users.dataset.meta["transposed"]
    for entry, message in (
        ({"source": "0" * 64}, r"transposed log of 'walks'"),
        ({"split": {**record["split"], "strategy": "temporal"}}, r"--split\.strategy differ"),
    ):
        changed = Untrained("users", users.dataset.with_meta({"transposed": {**record, **entry}}))
        with pytest.raises(DataError, match=message):
            measure_duality(items, changed)
    with pytest.raises(ConfigError, match=r"got 2 \(items\) and 1 \(users\)"):
        measure_duality(items, Untrained("users", users.dataset, seeds=(0,)))


@pytest.mark.slow
def test_from_the_log_to_the_ensemble(tmp_path):
    """As commands: transpose, train one encoder on either side, join them."""
    small_dataset().save(tmp_path / "log")
    assert jaxrec("transpose", tmp_path / "log", "--last", 20, "--out", tmp_path / "reverse").status == 0
    for data, run, encoder in (("log", "items", "transformer"), ("reverse", "users", "gru4rec")):
        parts = ["--workdir", tmp_path / run, "--encoder", encoder, *SMALL]
        outcome = jaxrec("train", "--data", tmp_path / data, *parts)
        assert outcome.status == 0, outcome.err
    result = jaxrec("ensemble", tmp_path / "items", tmp_path / "users", "--json").json
    saved = Run(tmp_path / "items").results["metrics"]["NDCG@10"]["values"]
    assert [metrics["NDCG@10"] for metrics in result["metrics"][NEXT_ITEM]] == pytest.approx(saved)
    assert {row["b"] for row in result["differences"]} == {NEXT_USER, ENSEMBLE}
