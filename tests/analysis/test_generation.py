"""Measures of generated sequences against loops over single recommendations."""

import types

import numpy as np
import pytest

import jaxrec
from jaxrec.analysis.generation import (
    GenerationQuality,
    first_targets,
    generation_figure,
    generation_quality,
    recall,
    repeated,
    sequence_measures,
    step_measures,
)
from jaxrec.data.dataset import save_dataset
from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import ConfigError
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.seen import SeenItems
from jaxrec.serving.generation import GenerationConfig
from tests.helpers import small_config, small_dataset
from tests.runs import jaxrec as command

pytestmark = pytest.mark.usefixtures("standard_promotion")

G = 3
DATASET = small_dataset(n_users=14)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_config(split={"strategy": "leave-last-n", "n": G}, training={"epochs": 1, "seeds": (1,)})
    return jaxrec.fit(DATASET, config, tmp_path_factory.mktemp("generation") / "run", progress=False).run


def loop(run, seed):
    """Own items, lists of the first step and ranks after own and after true items, one recommendation at a time."""
    ranker, setup = run.ranker(seed), run.setup
    cases, out = setup.split.test, []
    for e in range(len(cases)):
        targets = cases.targets[cases.target_offsets[e] : cases.target_offsets[e + 1]]
        base = DATASET.items[cases.history_starts[e] : cases.history_stops[e]]
        own, true, ranks = list(base), list(base), {"own": [], "true": []}
        first = None
        for target in targets:
            orders = {}
            for name, history in (("own", own), ("true", true)):
                log = Histories(np.array(history, np.int32), np.array([0]), np.array([len(history)]))
                seen = SeenItems(np.array([0, len(history)]), np.array(history, np.int32))
                order = ranker.top_k(log, DATASET.n_items, seen).items[0].tolist()
                ranks[name].append(order.index(target) + 1 if target in order else MISSED)
                orders[name] = order
            first = first or orders["own"][:G]
            own.append(orders["own"][0])
            true.append(int(target))
        out.append((own[len(base) :], first, ranks["own"], ranks["true"], targets.tolist(), base.tolist()))
    return out


def mean(values):
    return float(np.mean(list(values)))


def test_quality_equals_a_loop_over_single_recommendations(run):
    quality = generation_quality(run, G)
    assert quality.cases == len(run.setup.split.test)
    assert "count from the newest" not in (quality.read_again or "")
    counts = run.setup.split.item_counts
    for number, seed in enumerate(run.seeds):
        cases = loop(run, seed)
        for s in range(G):
            expected = {
                "own HR@10": mean(c[2][s] <= 10 for c in cases),
                "true HR@10": mean(c[3][s] <= 10 for c in cases),
                "own NDCG@10": mean(1 / np.log2(1 + c[2][s]) if c[2][s] <= 10 else 0 for c in cases),
                "true HR@10, early missed": mean(c[3][s] <= 10 and c[4][s] not in c[0][:s] for c in cases),
                "early": mean(c[4][s] in c[0][:s] and c[3][s] != MISSED for c in cases),
                "exact": mean(c[0][s] == c[4][s] for c in cases),
                "popularity": mean(counts[c[0][s]] for c in cases),
                "target popularity": mean(counts[c[4][s]] for c in cases),
                "repetition": mean(c[0][s] in [*c[5], *c[0][:s]] for c in cases),
                "target repetition": mean(c[4][s] in [*c[5], *c[4][:s]] for c in cases),
                "coverage": len({c[0][s] for c in cases}) / DATASET.n_items,
            }
            for name, value in expected.items():
                assert quality.by_step[name][number, s] == pytest.approx(value, abs=1e-6), (name, s)
        whole = {
            "recall": mean(len(set(c[0]) & set(c[4])) / len(set(c[4])) for c in cases),
            "list recall": mean(len(set(c[1]) & set(c[4])) / len(set(c[4])) for c in cases),
            "distinct": 1.0,
            "coverage": len({i for c in cases for i in c[0]}) / DATASET.n_items,
        }
        for name, value in whole.items():
            assert quality.whole[name][number] == pytest.approx(value), name
    assert quality.by_step["own HR@10"].max() > 0
    assert quality.by_step["early"].max() > 0, "or nothing was tested"
    of_steps = quality.by_step["true NDCG@10, early missed"].mean(axis=1)
    np.testing.assert_allclose(quality.values["true 10, early missed"].mean(axis=1), of_steps)
    assert (quality.by_step["entropy"] > 0).all()
    assert (quality.by_step["entropy"] < np.log(DATASET.n_items)).all()
    assert len(generation_figure({"model": quality}).axes[0].lines) == 2


def test_repeats_recalls_and_empty_places_by_hand():
    seen = SeenItems(np.array([0, 2, 3]), np.array([4, 5, 1], np.int32))
    sequences = np.array([[1, 4, 1], [2, 3, 1]])
    np.testing.assert_array_equal(repeated(sequences, seen), [[False, True, True], [False, False, True]])
    np.testing.assert_allclose(recall(sequences, np.array([[1, 1, 6], [3, 2, 1]])), [0.5, 1.0])
    outcome = types.SimpleNamespace(
        items=np.array([[3, 3, 0], [2, 0, 0]]),
        targets=np.array([[3, 1, 2], [1, 2, 3]]),
        own_ranks=np.array([[1, 2, MISSED], [11, 4, 1]]),
        true_ranks=np.ones((2, 3), int),
        entropies=np.ones((2, 3), np.float32),
        one_list=np.array([[3, 2, 1], [4, 2, 5]]),
        seen=seen,
    )
    steps = step_measures(outcome, np.array([0, 1, 10, 100, 0, 0]), 10)
    np.testing.assert_allclose(steps["popularity"], [55.0, 100.0, 0.0])
    np.testing.assert_allclose(steps["repetition"], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(steps["own HR@10"], [0.5, 1.0, 0.5])
    np.testing.assert_allclose(steps["coverage"], [0.4, 0.2, 0.0])
    np.testing.assert_allclose(steps["early"], [0.0, 0.0, 0.5])
    np.testing.assert_allclose(steps["true HR@10"], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(steps["true NDCG@10, early missed"], [1.0, 1.0, 0.5])
    whole = sequence_measures(outcome, 5)
    assert whole["distinct"] == pytest.approx(2 / 3)
    assert whole["recall"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert whole["list recall"] == pytest.approx((1 + 1 / 3) / 2)


def test_cases_with_too_few_targets_are_left_out():
    cases = EvaluationCases(
        np.arange(3), np.zeros(3, int), np.arange(1, 4), np.array([1, 2, 3, 4, 5, 6]), np.array([0, 3, 4, 6])
    )
    chosen = first_targets(cases, 2)
    assert chosen.users.tolist() == [0, 2]
    assert chosen.targets.tolist() == [1, 2, 5, 6]
    assert chosen.target_offsets.tolist() == [0, 2, 4]
    with pytest.raises(ConfigError, match=r"at most 3 in this run's split; got 4: .*--split\.n 4"):
        first_targets(cases, 4)
    with pytest.raises(ConfigError, match="--steps must be from 1"):
        first_targets(cases, 0)


@pytest.mark.slow
def test_command_line(run, tmp_path):
    save_dataset(DATASET, tmp_path / "data")
    base = ("evaluate", run.path, "--data", tmp_path / "data")
    planned = ("--steps", G, "--generation.window", "planned")
    result = command(*base, *planned, "--out", tmp_path / "out", "--json").json["generation"]
    quality = generation_quality(run, G, GenerationConfig(window="planned"))
    assert result["read_again"] is None
    assert result["by_step"]["own HR@10"][1]["values"] == quality.by_step["own HR@10"][:, 1].tolist()
    assert result["whole"]["recall"]["mean"] == pytest.approx(quality.whole["recall"].mean())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "generation.md",
        "generation.tex",
        "generation.png",
    }
    for options, message in (
        (("--generation.method", "sample"), "--generation.* chooses the items of --steps"),
        (("--steps", -1), "--steps must be at least 0, got -1"),
        (("--steps", G + 1), "--steps must be from 1 to the number of held-out items of a user, at most 3"),
        (("--steps", G, "--generation.method", "beam"), "--steps of evaluate follows one sequence"),
        (
            ("--steps", G, "--distributed.mode", "auto"),
            "--steps generates on one device: expected --distributed.mode off",
        ),
    ):
        outcome = command(*base, *options)
        assert outcome.status == 1
        assert message in outcome.err


def test_tables_and_record_have_every_step_and_seed():
    by_step = {"own HR@10": np.array([[0.25, 0.5, 0.0], [0.75, 0.5, 0.0]])}
    quality = GenerationQuality(G, 4, by_step, {"recall": np.array([0.25, 0.5])}, {}, None)
    header, rows = quality.rows()
    assert header == ["measure", "step 1", "step 2", "step 3"]
    assert rows == [["own HR@10", "0.5000 ± 0.3536", "0.5000 ± 0.0000", "0.0000 ± 0.0000"]]
    assert quality.whole_rows()[1] == [["recall", "0.3750 ± 0.1768"]]
    record = quality.to_dict()
    assert (record["steps"], record["cases"]) == (G, 4)
    assert [step["values"] for step in record["by_step"]["own HR@10"]] == [
        [0.25, 0.75],
        [0.5, 0.5],
        [0.0, 0.0],
    ]
    assert record["whole"]["recall"]["mean"] == 0.375
