"""Studies of variants: tuned on validation, kept as they grow, never trained twice."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from experiments import variants
from experiments.studies import attention_comparison, objective_comparison
from experiments.variants import Variant, study, write
from jaxrec.objectives import BinaryCrossEntropyConfig
from tests.helpers import small_config, small_dataset

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
    for row in whole["variants"]:
        assert 0 < row["lists"]["coverage@10"]["mean"] <= 1

    write(kept[1], "Title", "command", "record", tmp_path)
    text = (tmp_path / "record.md").read_text()
    assert "**Partial**: not trained yet: plain again." in text
    write(whole, "Title", "command", "record", tmp_path)
    assert "Partial" not in (tmp_path / "record.md").read_text()


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


@pytest.mark.parametrize("module", [attention_comparison, objective_comparison])
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(SystemExit, match=r"only: expected some of .*; got \['rope'\]"):
        module.main(module.Options(only=("rope",)))
