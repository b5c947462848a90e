"""Experiment scripts: they run, their counts are right, and every script and record is listed."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import pytorch_race
from experiments.record import command_line, named_data, split_line, write_record
from experiments.revisited import tokenisation
from experiments.scaling import accelerator, costs, devices, training_step
from experiments.scaling.costs import Limits, Shape, parameters, seconds, step_cost
from experiments.studies import corrections, sequential_rules
from experiments.variants import apply
from jaxrec.attention import ATTENTION
from jaxrec.data import load_dataset
from jaxrec.nn.spec import DataSpec
from jaxrec.presets import sasrec

pytestmark = pytest.mark.usefixtures("standard_promotion")

FOLDER = Path(__file__).parents[1] / "experiments"
LIST = (FOLDER / "README.md").read_text()
RECORDS = sorted({path.stem for path in (FOLDER / "results").iterdir()})


def test_every_script_and_record_is_listed():
    scripts = [path for path in FOLDER.rglob("*.py") if "__main__" in path.read_text()]
    missing = [str(path.relative_to(FOLDER)) for path in scripts]
    missing = [name for name in [*missing, *RECORDS] if f"`{name}`" not in LIST]
    assert not missing, "experiments/README.md has no row for them"
    listed = set(re.findall(r"`((?:\w+/)*\w+\.py)`", LIST))
    assert all((FOLDER / name).exists() for name in listed)


@pytest.mark.parametrize("name", RECORDS)
def test_record_names_a_command_that_exists(name):
    path = FOLDER / "results" / f"{name}.json"
    text = path.read_text() if path.exists() else (FOLDER / "results" / f"{name}.md").read_text()
    modules = set(re.findall(r"python -m (experiments[\w.]*)", text))
    for module in modules:
        path_of_module = FOLDER.parent / module.replace(".", "/")
        assert path_of_module.with_suffix(".py").exists() or (path_of_module / "__main__.py").exists(), module
    assert modules or "jaxrec train" in text
    if path.exists():
        record = json.loads(text)
        assert record["command"]
        assert {"versions", "hardware"} <= record.keys()
        assert "commit" in record["versions"]


def test_one_writer_of_records():
    """Beside the writer, a study logs its tuning in its run directories; nothing else writes JSON or Markdown."""
    writing = re.compile(r"write_text\((?:json|text|page|report)|json\.dump\(|\.md\"\)\.write")
    writers = {path.name for path in FOLDER.rglob("*.py") if writing.search(path.read_text())}
    assert writers == {"record.py", "variants.py"}


def test_record_has_command_versions_and_tables(tmp_path):
    command = command_line(
        "experiments.x",
        ["--data", "/some/where/log.txt", "--out", "runs/a", "--notes", "a", "b", "--seeds", "3"],
    )
    assert command == "python -m experiments.x --data log.txt --out runs/a --seeds 3"
    assert command == command_line(
        "experiments.x",
        ["--data=/some/where/log.txt", "--record=name", "--out", "runs/a", "--json", "--seeds", "3"],
    ).replace("=", " ")
    page = write_record(
        "name",
        {"figure": 1.5},
        title="Title",
        command=command,
        body=["| a |"],
        notes=["Note."],
        folder=tmp_path,
    )
    record = json.loads((tmp_path / "name.json").read_text())
    assert list(record) == ["command", "notes", "figure", "versions", "hardware"]
    text = page.read_text()
    assert text.startswith(f"# Title\n\n`{command}`\n\n| a |\n\nNote.\n\n")
    assert f"jax {jax.__version__}" in text.splitlines()[-1]
    with pytest.raises(ValueError, match="Out of range"):
        write_record("nan", {"figure": float("nan")}, title="", command="", body=[], folder=tmp_path)
    assert not (tmp_path / "nan.json").exists()


def test_a_record_names_the_whole_split():
    split = {"protocol": "temporal", "description": "temporal, test from 2013-08-24, last target"}
    assert split_line(split) == split["description"]
    assert split_line({"protocol": "leave-one-out"}) == "leave-one-out"


def test_a_record_says_nothing_about_the_disk():
    """Names of files stay, folders go; names of datasets and separators are no paths."""
    config = {
        "data": {"source": "s3rec-lastfm", "archive": ["/a/b/s3rec_data.zip"], "separator": "|"},
        "task": 1,
    }
    assert named_data(config) == {
        "data": {"source": "s3rec-lastfm", "archive": ["s3rec_data.zip"], "separator": "|"},
        "task": 1,
    }
    assert named_data({"data": {"source": "/c/log.txt"}})["data"]["source"] == "log.txt"
    started = named_data({"training": {"init_from": "/a/b/pretraining-softmax", "seeds": [0, 1]}})
    assert started == {"training": {"init_from": "pretraining-softmax", "seeds": [0, 1]}}


def test_parameters_are_those_of_the_encoder():
    """But for biases and norms, which the model leaves out."""
    for m in (0, 3):
        shape = Shape(width=256, layers=3, items=500, length=20, query_positions=m)
        config = training_step.configuration(shape, 2)
        encoder = config.encoder.build(DataSpec(500, 20, has_timestamps=True))
        assert sum(parameters(shape)) == pytest.approx(encoder.parameter_count(), rel=0.02)


def test_operations_are_those_that_the_compiler_counts():
    """A product of the forward pass and its two of the backward pass, with nothing else that matters."""
    shape = Shape(rows=4, length=8, width=256, layers=1, items=2000)

    def plain(hidden, table):
        return jax.nn.logsumexp(hidden @ table.T, axis=1).sum()

    arrays = np.zeros((32, 256), np.float32), np.zeros((2000, 256), np.float32)
    counted = jax.jit(jax.grad(plain, (0, 1))).lower(*arrays).compile().cost_analysis()["flops"]
    without = step_cost(Shape(rows=4, length=8, width=256, layers=0, items=2000)).operations
    assert without == pytest.approx(counted, rel=0.05)
    more = step_cost(shape).operations - without
    assert more == 3 * 32 * (8 * 256**2 + 4 * 8 * 256 + 4 * 256**2)


def test_meshes_share_work_and_talk():
    one, wide, tall = (Shape(rows=64, items=100_000, data=d, item=i) for d, i in ((1, 1), (8, 1), (1, 8)))
    alone = step_cost(one)
    assert alone.collective_bytes == 0
    for shape in (wide, tall):
        cost = step_cost(shape)
        assert alone.operations / 8 <= cost.operations < alone.operations
        assert cost.collective_bytes > 0
    table, dense = parameters(one)
    assert step_cost(wide).collective_bytes == pytest.approx(2 * 7 / 8 * 4 * (table + dense))
    limits = Limits(1e12, 2e12, 1e11)
    assert seconds(alone, one, limits) > seconds(step_cost(wide), wide, limits, 1e10)
    half = Shape(rows=64, items=100_000, dtype="bfloat16")
    assert seconds(step_cost(half), half, limits) < seconds(alone, one, limits)


def test_negatives_replace_the_catalogue_in_operations_but_not_in_memory():
    exact, sampled = (Shape(rows=4, length=8, items=100_000, negatives=n) for n in (0, 256))
    assert step_cost(exact).operations - step_cost(sampled).operations == 32 * (100_000 - 256) * (6 * 64 + 20)
    assert costs.temporary_bytes(sampled) > 4 * parameters(sampled)[0]
    assert costs.resident_bytes(Shape(users=1000), 53) == 4 * (1000 * 53 + 4001)


def test_the_race_draws_every_program():
    seconds = {name: np.array([0.2, 0.3, 0.1]) for name in ("jaxrec, float32", "PyTorch, float32")}
    axes = pytorch_race.figure(seconds, "race").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [200.0, 200.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["PyTorch, float32", "jaxrec, float32"]


def test_limits_are_measured():
    limits = costs.measure_limits(quick=True)
    assert all(limit > 1e7 for limit in limits)


def test_tokenisation_compares_equal_numbers_of_parameters():
    dataset = load_dataset("movietweetings")
    options = tokenisation.Options()
    rows = {
        row.name: apply(sasrec(), row.sections) for row in tokenisation.variants(options, sasrec(), dataset)
    }
    trained = {name: tokenisation.trained_parameters(config, dataset) for name, config in rows.items()}
    for width in options.widths:
        for method in tokenisation.METHODS:
            name = f"{method} {2 * width}"
            codes = rows[name].encoder.item_codes
            one_value = codes.table_count(2 * width) / codes.size
            assert abs(trained[name] - trained[f"full {width}"]) <= one_value / 2
    assert (
        trained["full 64"] == sasrec().encoder.build(DataSpec(dataset.n_items, 50, "end")).parameter_count()
    )
    named = {name for pair in tokenisation.pairs(options, "full 64") for name in pair}
    assert named == set(rows)
    result = {
        "variants": [{"name": name, "metrics": {"NDCG@10": {"values": [0.1, 0.2]}}} for name in rows],
        "items": {name: {"trained": trained[name]} for name in rows},
    }
    assert len(tokenisation.figure(result).axes[0].get_legend_handles_labels()[0]) == 4
    with pytest.raises(SystemExit, match="leave out the width 2"):
        tokenisation.composed(sasrec(), dataset, "hashed", 4, 4, 300)


@pytest.mark.slow
def test_scaling_writes_its_records(tmp_path):
    result = training_step.main(
        training_step.Options(
            axes=("batch", "sampled catalogue"),
            repeats=1,
            steps=2,
            quick=True,
            out=str(tmp_path / "out" / "scaling"),
        )
    )
    small, large = result["axes"]["batch"]
    assert large["shape"]["rows"] == 2 * small["shape"]["rows"]
    assert large["memory"]["state_mib"] == small["memory"]["state_mib"]
    assert large["memory"]["temporary_mib"] > small["memory"]["temporary_mib"]
    for point in result["axes"]["batch"]:
        assert point["memory"]["resident_mib"] == point["expected"]["resident_mib"]
    few, many = result["axes"]["sampled catalogue"]
    assert many["memory"]["state_mib"] > few["memory"]["state_mib"]
    assert json.loads((tmp_path / "out" / "scaling.json").read_text())["limits"] == result["limits"]
    record = (tmp_path / "out" / "scaling.md").read_text()
    assert "## Predictions (not measured)" in record
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match=r"unknown axes \['colour'\]: expected some of batch, length"):
        training_step.main(training_step.Options(axes=("colour",)))


@pytest.mark.slow
def test_accelerator_checks_and_measures(tmp_path):
    options = accelerator.Options(quick=True, only=("parity", "steps", "profile"), out=str(tmp_path))
    result = accelerator.main(options)
    assert result["failed"] == result["left_out"] == []
    assert result["parity"]["all_within_tolerance"]
    assert result["parity"]["mechanisms"]["softmax"]["float32"] < 1e-5
    assert result["parity"]["mechanisms"]["softmax"]["bfloat16"] > 1e-5, "it was not run in bfloat16"
    assert result["steps"]["packed float32"]["interactions_per_second"] > 0
    top = result["profile"]["top"]
    assert len(top) == 5
    assert top[0]["share"] >= top[1]["share"] > 0
    assert any("Transformer" in row["origin"] for row in top)
    assert json.loads((tmp_path / "accelerator.json").read_text())["steps"] == result["steps"]


def test_accelerator_tells_what_failed_and_what_it_left_out(tmp_path, monkeypatch):
    def broken(options):
        raise RuntimeError("no room")

    monkeypatch.setitem(accelerator.SECTIONS, "scoring", broken)
    result = accelerator.main(accelerator.Options(only=("scoring",), out=str(tmp_path)))
    assert result["failed"] == ["scoring"]
    assert result["scoring"]["error"] == "RuntimeError: no room"
    late = accelerator.main(accelerator.Options(only=("scoring",), seconds=-1.0, out=str(tmp_path)))
    assert late["left_out"] == ["scoring"]
    assert set(accelerator.mechanisms(accelerator.Options())) == set(ATTENTION)


def test_traffic_is_read_from_compiled_programs():
    """A ring all-reduce of 4 devices sends 1.5 times the array, an all-gather of 2 half of its result."""
    program = """
  %all-reduce.1 = f32[10,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %all-gather.2 = bf16[8]{0} all-gather(%y), replica_groups=[4,2]<=[8], dimensions={0}
  %pair = (f32[2]{0}, f32[3]{0}) all-reduce(%a, %b), replica_groups=[1,8]<=[8], to_apply=%add
  %alone = f32[100]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add
  %by_mesh = f32[7]{0} all-reduce(%x), replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, to_apply=%add
  %done = f32[100]{0} add(%all-reduce.1, %z)
"""
    expected = 1.5 * 160 + 0.5 * 16 + 2 * 7 / 8 * 20 + 1.5 * 28
    assert devices.collective_bytes(program) == pytest.approx(expected)


def test_former_and_present_rules_of_repeats_and_ties():
    """Three histories over five items: a repeat at the best score, a new target, and nothing seen."""
    scores = np.array([[9, 5, 4, 3, 2, 1]] * 3, float)
    targets, seen = np.array([1, 3, 5]), [np.array([1, 2]), np.array([1, 1, 2]), np.array([], int)]
    ranks = [corrections.ranks_with_seen_removed(scores, targets, seen, keep) for keep in (True, False)]
    np.testing.assert_array_equal(ranks, [[1, 1, 5], [np.inf, 1, 5]])
    by_number = np.arange(16)
    targets, seen = np.array([10, 11, 12]), [np.array([], int), np.array([3, 3]), np.array([1])]
    assert corrections.constant_hits(by_number, targets, seen) == pytest.approx(2 / 3)
    assert corrections.constant_hits(-by_number, targets, seen) == 1.0


def test_sequential_rules_have_a_row_for_each_length():
    log = sequential_rules.main(sequential_rules.Options(shuffles=2))["logs"][0]
    rows = [line.strip("| ").split() for line in sequential_rules.table([log]).splitlines()[2:]]
    assert [row[0] for row in rows] == ["movietweetings"] * 2
    assert [int(row[4]) for row in rows] == [log["rules"][2], log["rules"][3]]
    assert log["remaining"][2] == pytest.approx(np.mean(log["shuffled"][2]) / log["rules"][2])
    assert "strongest" not in log


def test_controls_are_read_from_both_records():
    rows = corrections.controls()
    assert [row.item for row in rows] == ["A4 positions"] * len(corrections.CONTROLS)
    page = (FOLDER / "results" / "attention-controls_movietweetings.md").read_text()
    line = next(text for text in page.splitlines() if "hstu-block,-learned-positions - softmax" in text)
    assert f"{rows[0].after:+.4f}" in line
    assert rows[0].before < rows[0].after < 0


def test_verdicts_are_corrected_within_each_metric():
    differences = [
        {"metric": metric, "users": p, "both": 2 * p}
        for metric, values in (("HR@10", (0.01, 0.02, 0.9)), ("MRR", (0.04,)))
        for p in values
    ]
    assert corrections.verdicts(differences, "users") == 3
    assert corrections.verdicts(differences, "both") == 0


@pytest.mark.slow
def test_meshes_agree_with_one_device():
    one, data, item = devices.main(devices.Options(quick=True))
    assert one["collective_mib"] == 0
    for mesh in (data, item):
        assert mesh["difference"] < 1e-4
        assert mesh["loss_difference"] < 1e-4
        assert mesh["collective_mib"] > 0
    assert data["state_mib"] == pytest.approx(one["state_mib"], rel=1e-3)
    assert item["state_mib"] < 0.85 * one["state_mib"]
    # The program sums the two parts of a tied table's gradient after it has reduced each.
    twice = data["expected_collective_mib"] + 4 * 401 * 32 / 2**20
    assert data["collective_mib"] == pytest.approx(twice, rel=0.1)
