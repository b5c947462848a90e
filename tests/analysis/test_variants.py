"""Studies of variants: tuned on validation, kept as they grow, never trained twice."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from experiments import variants
from experiments.miq import table3
from experiments.studies import attention_comparison, objective_comparison
from experiments.untrained import best_untrained
from experiments.variants import Variant, apply, contrasts, study, write
from jaxrec.analysis.significance import holm
from jaxrec.data.splits import split_dataset
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.objectives import BinaryCrossEntropyConfig
from jaxrec.presets import gru4rec, sasrec_s3rec
from tests.helpers import small_config, small_dataset
from tests.tasks.data import described_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
BASE = small_config(training={"epochs": 1, "seeds": (0, 1), "metric": "NDCG@10"})
RATES = [{"optimizer": {"learning_rate": rate}} for rate in (1e-2, 1e-9)]
VARIANTS = [
    Variant("plain", {}),
    Variant("tuned", {"encoder": {"dropout": 0.0}}, RATES),
    Variant("bce", {"objective": BinaryCrossEntropyConfig()}),
]


@pytest.mark.slow
def test_a_study_chooses_on_validation_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    kept = []
    first = study(BASE, VARIANTS[:2], DATASET, tmp_path / "runs", record=kept.append)
    assert kept == [first]
    tried = first["variants"][1]["tried"]
    assert [each["candidate"] for each in tried] == RATES
    best = max(tried, key=lambda each: each["valid"])
    chosen = first["variants"][1]["config"]["optimizer"]["learning_rate"]
    assert chosen == best["candidate"]["optimizer"]["learning_rate"]

    trained = []
    monkeypatch.setattr(
        variants,
        "fit",
        lambda *args, fit=variants.fit, **options: (trained.append(args[2].name), fit(*args, **options)),
    )
    monkeypatch.setattr(variants, "train", lambda *args, **options: pytest.fail("tuned again"))
    more = [*VARIANTS, dataclasses.replace(VARIANTS[0], name="plain again")]
    whole = study(BASE, more, DATASET, tmp_path / "runs", record=kept.append)
    assert trained == ["bce", "plain-again"]
    assert [record["unfinished"] for record in kept[1:]] == [["plain again"], []]
    assert whole["variants"][:2] == first["variants"]
    assert whole["variants"][3]["metrics"] == whole["variants"][0]["metrics"], "the same configuration"
    asked = contrasts(tmp_path / "runs", [("plain", "bce"), ("tuned", "plain again")], ("HR@10", "NDCG@10"))
    assert [each["comparison"] for each in asked[:2]] == ["bce less plain, HR@10", "bce less plain, NDCG@10"]
    np.testing.assert_allclose([each["p_holm"] for each in asked], holm([each["p_value"] for each in asked]))
    means = {row["name"]: row["metrics"]["HR@10"]["mean"] for row in whole["variants"]}
    assert asked[2]["difference"] == pytest.approx(means["plain again"] - means["tuned"])
    for row in whole["variants"]:
        assert 0 < row["lists"]["coverage@10"]["mean"] <= 1

    found = whole["untrained"]
    assert found["metric"] == "NDCG@10"
    assert [row["comparison"].split(" less ")[0] for row in found["rows"]] == [each.name for each in more]
    for row, each in zip(found["rows"], whole["variants"], strict=True):
        gap = each["metrics"]["NDCG@10"]["mean"] - whole["baselines"][found["name"]]["NDCG@10"]
        assert row["difference"] == pytest.approx(gap, abs=1e-6)

    write(kept[1], "Title", "command", "record", tmp_path)
    text = (tmp_path / "record.md").read_text()
    assert "**Partial**: not trained yet: plain again." in text
    write(whole, "Title", "command", "record", tmp_path)
    assert "Partial" not in (tmp_path / "record.md").read_text()


def test_validation_chooses_the_best_way_without_training():
    split = split_dataset(DATASET, BASE.split)
    chosen = best_untrained(split, BASE)
    valid, test = (evaluate_baselines(split, part, BASE.evaluation) for part in ("valid", "test"))
    assert all(valid[chosen.name].metrics["NDCG@10"] >= each.metrics["NDCG@10"] for each in valid.values())
    np.testing.assert_array_equal(chosen.evaluation.ranks, test[chosen.name].ranks)


@pytest.mark.slow
def test_the_command_of_a_study_keeps_a_record(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [f"{user},{item},{t}" for user in range(30) for t, item in enumerate(rng.permutation(20)[:8])]
    (tmp_path / "own.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["objective_comparison.py", "--data", "own.csv"])
    options = objective_comparison.Options(
        data="own.csv", epochs=1, seeds=2, learning_rates=(1e-3,), dropouts=(0.3,), only=("bce",)
    )
    objective_comparison.main(options)
    text = (tmp_path / "experiments/results/objectives_own.md").read_text()
    assert text.startswith(
        "# Objectives on own\n\n`python -m experiments.studies.objective_comparison --data own.csv`"
    )
    assert re.search(r"^\| bce +\| 0\.\d{4} ± 0\.\d{4} \|", text, re.MULTILINE)


@pytest.mark.parametrize("module", [attention_comparison, objective_comparison, table3])
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(SystemExit, match=r"only: expected some of .*; got \['rope'\]"):
        module.main(module.Options(data="movietweetings", only=("rope",)))


def test_rows_of_table_3():
    options = table3.Options(epochs=2, out="runs/a")
    lengths = np.array([10, 40, 400])  # two thirds of the positions that rows of 50 have
    rows = {row.name: apply(sasrec_s3rec(), row.sections) for row in table3.variants(options, lengths)}
    assert len(rows) == 16
    assert {each.row for each in table3.PRINTED} <= rows.keys()
    assert next(iter(rows)) == "SASRec"
    for name, config in rows.items():
        assert isinstance(config.objective, BinaryCrossEntropyConfig) == name.endswith(" BCE")
        stage = "pretraining-miq" if name.startswith("MIQ") else "pretraining-softmax"
        assert config.training.init_from == (f"runs/a/{stage}" if "S3-Rec" in name else "")
        assert config.training.epochs == 2
        assert config.batches.mode == "packed"
        waited = 180 if name.startswith("BERT4Rec") else 60
        assert config.training.evaluate_every * config.training.patience == waited
        if name.startswith("MIQ"):
            assert config.encoder.attention.query_window == 5
    assert rows["SASRec"].batches.batch_size == round(256 * 2 / 3)
    assert rows["GRU4Rec"].batches == gru4rec().batches
    hasty = [
        apply(sasrec_s3rec(), row.sections) for row in table3.variants(table3.Options(patience=10), lengths)
    ]
    assert {(row.training.evaluate_every, row.training.patience) for row in hasty} == {(1.0, 10), (2.0, 15)}
    every = table3.variants(table3.Options(), lengths)
    assert apply(sasrec_s3rec(), every[1].sections).training.epochs == 200


@pytest.mark.slow
def test_table_3_pretrains_and_keeps_a_record(tmp_path, monkeypatch):
    """A pretraining for the one mechanism that is asked for; a second call trains nothing again."""
    described_dataset(n_users=12, n_items=60).save(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    options = table3.Options(
        data="data", seeds=1, epochs=1, pretraining_epochs=1, out="runs", only=("SASRec", "S3-Rec")
    )
    table3.main(options)
    assert sorted(path.name for path in (tmp_path / "runs").glob("pre*")) == ["pretraining-softmax"]
    record = json.loads((tmp_path / "experiments/results/miq-table-3_walks.json").read_text())
    assert [row["name"] for row in record["variants"]] == ["SASRec", "S3-Rec"]
    text = (tmp_path / "experiments/results/miq-table-3_walks.md").read_text()
    assert re.search(r"^\| S3-Rec +\| MIQ-Attn +\| 0\.0743", text, re.MULTILINE)
    assert "seconds per epoch" in text
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("results.json")}
    table3.main(options)
    assert times == {path: path.stat().st_mtime_ns for path in times}
