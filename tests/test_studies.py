"""Scripts of the papers' studies: their rows can be trained, their own measures follow the definitions, and they run."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import variants
from experiments.awrsr import table as awrsr_table
from experiments.kernel import ablation
from experiments.miq import pretraining, sampled_users, table2, table3
from experiments.revisited import duality, personalisation, positions, sampling
from experiments.studies import anchors, masked_items, masked_prefixes, prefix_verdict
from experiments.variants import StudyOptions, Variant, apply, plan_line
from jaxrec.analysis.curves import LearningCurve, curves_figure
from jaxrec.config import save_config
from jaxrec.data.batches import BatchConfig
from jaxrec.data.splits import split_dataset
from jaxrec.errors import DataError
from jaxrec.nn.spec import DataSpec
from jaxrec.presets import sasrec, sasrec_s3rec
from tests.helpers import small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()
SPLIT = split_dataset(DATASET, sasrec().split)
ROWS = {
    "sampling": sampling.variants(16),
    "prefix verdict": prefix_verdict.variants(10, SPLIT),
    "positions": positions.variants(10, SPLIT),
    "masked items": masked_items.variants(10),
    "masked prefixes": masked_prefixes.variants(10, 8, SPLIT),
    "table 2": table2.variants(table2.Options()),
    "awrsr": awrsr_table.variants((2,)),
    "kernel": ablation.variants(),
    "pretraining": pretraining.variants(pretraining.Options()),
    "anchors": anchors.variants(()),
}


@pytest.mark.parametrize("study", ROWS)
def test_rows_are_configurations_that_build(study):
    """Each row differs from the others, and its task can be built; pairs of rows name rows."""
    rows = ROWS[study]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    base = sasrec()
    if study == "table 2":
        base = apply(base, {"encoder": table2.sasrec_original().encoder})
    configs = []
    for row in rows:
        config = apply(base, row.sections)
        for candidate in row.candidates:
            chosen = apply(config, candidate)
            spec = DataSpec(40, chosen.batches.max_length, n_users=60, n_special=chosen.task.n_special)
            chosen.task.build(chosen.encoder.build(spec), chosen.objective)
        configs.append(config)
    assert all(a != b for a, b in itertools.combinations(configs, 2))
    pairs = {
        "positions": lambda: positions.PAIRS,
        "masked items": lambda: masked_items.PAIRS,
        "masked prefixes": lambda: masked_prefixes.PAIRS,
        "sampling": lambda: sampling.pairs(names),
        "prefix verdict": lambda: prefix_verdict.pairs(names),
    }.get(study, tuple)()
    assert {name for pair in pairs for name in pair} <= set(names)


def test_eight_ways_and_equal_steps():
    """All combinations, each with as many steps but for the two longer rows; twelve pairs differ in one factor."""
    rows = ROWS["prefix verdict"]
    first = {row.name for row in rows[:8]}
    assert first == {
        f"{mode}, {targets}, {loss}"
        for mode in ("packed", "prefix")
        for targets in ("all", "last")
        for loss in ("CE", "BCE")
    }
    assert len(prefix_verdict.pairs([row.name for row in rows])) == 12 + 4
    epochs = {row.name: row.sections["training"]["epochs"] for row in rows}
    for row in rows:
        batches = apply(sasrec(), {"batches": row.sections["batches"]}).batches
        log = positions.RowStream(SPLIT.train_starts, SPLIT.train_stops, batches, seed=0)
        steps = epochs[row.name] * log.rows_per_epoch
        times = prefix_verdict.TIMES if row.name.endswith("longer") else 1
        packed = positions.RowStream(SPLIT.train_starts, SPLIT.train_stops, sasrec().batches, seed=0)
        assert steps == pytest.approx(times * 10 * packed.rows_per_epoch)


def test_masked_items_have_equal_steps_whatever_the_examples():
    whole = apply(sasrec(), {"batches": {"batch_size": 8}}).batches
    histories = positions.RowStream(SPLIT.train_starts, SPLIT.train_stops, whole, seed=0)
    for row in ROWS["masked prefixes"]:
        config = apply(sasrec(), row.sections)
        log = positions.RowStream(SPLIT.train_starts, SPLIT.train_stops, config.batches, seed=0)
        assert config.training.epochs * log.rows_per_epoch == pytest.approx(10 * histories.rows_per_epoch)
        assert config.training.epochs == pytest.approx(
            masked_prefixes.VALIDATIONS * config.training.evaluate_every
        )


def test_what_a_study_leaves_out_is_said():
    @dataclasses.dataclass(frozen=True)
    class Options(StudyOptions):
        width: int = 8
        depths: tuple[int, ...] = (2, 4)

    rows = [Variant(name, {}) for name in "abc"]
    assert plan_line(Options(data="x", out="y").plan(rows)) == ""
    line = plan_line(Options(seeds=3, width=4, only=("a", "c")).plan(rows))
    assert line == (
        "**Less than planned** (3 variants): seeds 3 instead of 5, without b. "
        "Other options than the defaults: width 4 instead of 8."
    )
    more = Options(seeds=9, epochs=60, depths=(2, 3, 4)).plan(rows)
    assert plan_line(more).startswith("Other options than the defaults: seeds 9 instead of 5, epochs 60 "), (
        "more is not less"
    )
    assert plan_line(Options(depths=(4,)).plan(rows)).startswith("**Less than planned**")
    with pytest.raises(SystemExit, match=r"only: expected some of a, b, c; got \['d'\]"):
        Options(only=("d",)).chosen(rows)


def test_table_3_says_what_it_leaves_out(monkeypatch):
    written = {}
    row = {"name": "SASRec", "metrics": {name: {"mean": 0.05} for name in ("HR@10", "NDCG@10")}}
    row |= {"training": {"epochs": 20.0}, "timing": {"training_seconds": 30.0}, "seed_epochs": [20.0, 10.0]}

    def studied(base, chosen, dataset, out, metrics, record):
        record({"markdown": "", "variants": [row], "dataset": {"users": 1090}})

    monkeypatch.setattr(table3, "study", studied)
    monkeypatch.setattr(table3, "recorder", lambda *arguments: written.update)
    monkeypatch.setattr(table3.Options, "load", lambda options: DATASET)
    table3.main(table3.Options(data="data", seeds=5, patience=10, only=("SASRec",)))
    line = plan_line(written["plan"])
    assert line.startswith("**Less than planned** (16 variants): seeds 5 instead of 10, without GRU4Rec; ")
    assert line.endswith("patience 10 instead of 60.")
    assert re.search(r"\| SASRec +\| 20 +\| 1\.000 +\|", written["markdown"]), "30 s for 30 epochs of a seed"
    with pytest.raises(SystemExit, match=r"only: expected some of SASRec, .*; got \['SASREC'\]"):
        table3.main(table3.Options(data="data", only=("SASREC",)))


def test_same_compute_counts_the_epochs_of_every_seed(tmp_path):
    """Two seeds of which one has ended halfway: an epoch of both costs 40 s / 7.5 of them, not 40 s / 10."""
    for loss in pretraining.LOSSES:
        run = tmp_path / f"scratch,-{loss}"
        run.mkdir()
        results = {"timing": {"training_seconds": 40.0}, "training": {"steps": 20, "epochs": 10.0}}
        (run / "results.json").write_text(json.dumps(results))
        lines = [{"step": 10, "loss": [2.0, 3.0]}, {"step": 20, "loss": [None, 2.5]}]
        (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert variants.epochs_of_seeds(run) == [5.0, 10.0]
    rows = pretraining.variants(pretraining.Options(epochs=20, out=str(tmp_path)), seconds=160.0)
    longer = next(row for row in rows if row.name == "scratch, same compute, CE")
    assert longer.sections["training"]["epochs"] == 20 + 160 / (40 / 7.5)


def test_a_finished_run_with_another_budget_is_no_row(tmp_path, monkeypatch):
    """A study of more epochs in the folder of a short one would compare budgets; paths of data may differ."""
    short = apply(sasrec(), {"training": {"epochs": 1.0, "seeds": (0, 1)}, "data": {"source": "/a/log.txt"}})
    run = tmp_path / "plain"
    run.mkdir()
    save_config(short, run / "config.json")
    (run / "results.json").write_text("{}")
    variants.refuse_other_settings(run, apply(short, {"data": {"source": "log.txt"}}))
    monkeypatch.setattr(variants, "best_untrained", lambda split, config: None)
    longer = apply(short, {"training": {"epochs": 40.0}})
    with pytest.raises(SystemExit, match=r"other settings \(training.epochs: trained with 1.0, now 40.0\)"):
        variants.study(longer, [Variant("plain", {})], DATASET, tmp_path)


def test_pretraining_of_another_length_is_not_taken(tmp_path):
    folder = tmp_path / "pretraining-softmax"
    folder.mkdir()
    short = table3.Options(pretraining_epochs=20, out=str(tmp_path))
    configs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "fit", lambda dataset, config, *arguments, **options: configs.append(config))
        table3.pretrain(short, "", sasrec_s3rec(), DATASET)
    save_config(configs[0], folder / "config.json")
    (folder / "results.json").write_text("{}")
    table3.pretrain(short, "", sasrec_s3rec(), DATASET)
    with pytest.raises(SystemExit, match=r"training.epochs: trained with 20, now 150"):
        table3.pretrain(dataclasses.replace(short, pretraining_epochs=150), "", sasrec_s3rec(), DATASET)


def test_vectors_of_users_are_compared_with_the_row_that_is_named():
    rng = np.random.default_rng(0)

    def measured():
        values = rng.random((2, 30))
        return SimpleNamespace(warm=SimpleNamespace(own=values, lists=values, new=None), new=values)

    rows = personalisation.comparisons({"added": measured(), "film, swapped": measured()})
    assert {row["comparison"].split(", NDCG")[0] for row in rows} == {
        "film, swapped less added",
        "film, swapped less added, list similarity",
    }


@dataclasses.dataclass(frozen=True)
class Ranks:
    name: str


def test_duality_says_what_it_leaves_out(monkeypatch):
    """Data are read as in every study, and the next-item model is trained though it is not named."""
    kept = []
    side = SimpleNamespace(ranks=lambda names: [Ranks(name) for name in names])
    stand_ins = {
        "study": lambda *arguments: {},
        "Run": lambda *arguments: SimpleNamespace(ranks=lambda part: None),
        "saved_ranks": lambda name, ranks: Ranks(name),
        "next_user_run": lambda *arguments: None,
        "measure_duality": lambda *arguments, **options: side,
        "record": lambda options, trained, *others: kept.append(trained["plan"]),
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(duality, name, value)
    monkeypatch.setattr(duality.Options, "load", lambda options: DATASET)
    duality.main(duality.Options(data="s3rec_data.zip:LastFM", seeds=3, only=("consistency 1",)))
    line = plan_line(kept[0])
    assert line.startswith(
        "**Less than planned** (6 variants): seeds 3 instead of 5, without consistency 0.01; "
    )
    assert "next item" not in line


def test_duality_refuses_a_log_without_times_before_it_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(
        duality.Options, "load", lambda options: dataclasses.replace(DATASET, timestamps=None)
    )
    with pytest.raises(DataError, match="the users of an item are ordered by time"):
        duality.main(duality.Options(out=str(tmp_path / "study")))
    assert not (tmp_path / "study").exists()


def test_frontier_against_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, (2, 12)).astype(float)
        expected = {
            i
            for i in range(12)
            if not any(a[j] >= a[i] and b[j] >= b[i] and (a[j] > a[i] or b[j] > b[i]) for j in range(12))
        }
        found = sampling.undominated(a, b)
        assert set(found) == expected
        assert (np.diff(b[found]) >= 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"position_origin": "end"},
        {"position_origin": "start"},
        {"position_origin": "end", "mode": "prefix"},
    ],
    ids=["end", "start", "prefixes"],
)
def test_positions_that_items_received(options):
    """Against a loop over the training parts: every prefix, or every target of the newest L inputs."""
    length = 7
    log = positions.position_log(SPLIT, BatchConfig(max_length=length, batch_size=4, **options))
    counts = np.zeros((DATASET.n_items + 1, length), int)
    exact = pairs = targets = 0
    for start, stop in zip(SPLIT.train_starts, SPLIT.train_stops, strict=True):
        items = DATASET.items[start:stop]
        inputs = range(len(items) - 1)
        if options.get("mode") == "prefix":
            stretches = [(max(0, end + 1 - length), end + 1, [end]) for end in inputs]
        else:
            first = max(0, len(items) - 1 - length)
            stretches = [(first, len(items) - 1, list(range(first, len(items) - 1)))]
        for low, high, queries in stretches:
            place = {
                i: i - low if options["position_origin"] == "start" else high - 1 - i
                for i in range(low, high)
            }
            for i in range(low, high):
                counts[items[i], place[i]] += 1
            targets += len(queries)
            for query in queries:
                for i in range(low, query + 1):
                    pairs += 1
                    exact += place[i] == query - i
    np.testing.assert_array_equal(log.counts, counts)
    assert log.targets == targets
    assert log.exact == pytest.approx(exact / pairs)
    assert (log.exact == 1) == (options.get("mode") == "prefix")
    used = counts[counts.sum(axis=1) > 0]
    assert log.summary()["positions_per_item"] == pytest.approx(
        np.mean([np.count_nonzero(row) for row in used])
    )


def test_lists_in_common():
    a = np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0.3, 0.2, 0.1]])
    b = np.array([[0.9, 0.8, 0.1, 0.3], [0.4, 0.3, 0.2, 0.1]])
    np.testing.assert_allclose(positions.common(a, b, 2), [0.5, 1.0])


def test_chance_of_a_gap():
    """Samples of other users vary as the binomial does; those of the same users of one model do not at all."""
    rng = np.random.default_rng(0)
    hits = (rng.random(20_000) < 0.2).astype(float)
    values = np.stack([hits, hits])
    options = sampled_users.Options("runs/x", users=1000, draws=3000)
    printed = {1: 0.1, 3: 0.11, 5: 0.12}
    other = sampled_users.chance_of_gaps(values, printed, options, paired=False)
    assert other["share_kept"] == pytest.approx(0.1 / hits.mean())
    deviation = np.sqrt(2 * 0.1 * 0.9 / 1000)
    assert other["deviation"] == pytest.approx(deviation, rel=0.1)
    assert other["one_column"]["3"] == pytest.approx(0.456, abs=0.06), "a gap of .75 deviations"
    assert other["best_gap"] == pytest.approx(0.02)
    assert other["one_column"]["5"] / 2 < other["best_of_table"] < other["one_column"]["5"]
    same = sampled_users.chance_of_gaps(values, printed, options, paired=True)
    assert same["deviation"] == same["best_of_table"] == 0
    apart = np.stack([np.full(50, 0.1), np.full(50, 0.3)])
    table = sampled_users.drawn_columns(apart, 20, 4, 1.0, True, np.random.default_rng(1))
    assert len({round(x, 9) for x in table[1:]}) == 1 != len({round(x, 9) for x in table[:2]}), "other seeds"


def test_course_of_a_training(tmp_path):
    lines = [
        {"step": 2, "epoch": 1.0, "gradient_norm": [2.0, 4.0]},
        {"step": 2, "valid": {"NDCG@10": [0.1, 0.3]}},
        {"step": 4, "epoch": 2.0, "gradient_norm": [1.0, 1.0]},
        {"step": 4, "valid": {"NDCG@10": [0.5, 0.5]}},
        {"step": 6, "epoch": 3.0, "gradient_norm": [None, 3.0]},
        {"step": 6, "valid": {"NDCG@10": [None, 0.7]}},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = LearningCurve.of(tmp_path)
    np.testing.assert_allclose(
        [curve.epochs, curve.valid, curve.norms], [[1, 2, 3], [0.2, 0.5, 0.6], [3, 1, 2]]
    )
    assert (curve.epochs_to(0.98), curve.epochs_to(0.3), curve.metric) == (3, 1, "NDCG@10")
    assert not len(LearningCurve.of(tmp_path / "imported").epochs), "no log"
    left, right = curves_figure({"a": curve, "b": curve}).axes
    assert left.get_ylabel() == "validation NDCG@10"
    np.testing.assert_allclose(right.lines[1].get_ydata(), curve.norms)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data to run studies in, and a finished run of two seeds."""
    path = tmp_path_factory.mktemp("studies")
    dataset = small_dataset(n_users=80, n_items=60)
    dataset.save(path / "data")
    changes = {"encoder": {"width": 8, "layers": 1}, "evaluation": {"ks": (1, 5, 10, 20)}}
    training = {"seeds": (0, 1), "epochs": 1, "evaluate_every": 1, "checkpoint_seconds": 0}
    variants.fit(dataset, apply(sasrec(), {**changes, "training": training}), path / "null", progress=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "only", "options"),
    [
        (sampling, ("full", "mixed", "mixed, no logQ"), {"negatives": 8}),
        (prefix_verdict, ("packed, all, CE", "prefix, last, CE"), {}),
        (positions, ("from the end", "from the start", "prefixes"), {}),
        (masked_items, ("sasrec", "next item", "masked items"), {}),
        (masked_prefixes, ("next items", "masked items", "masked items, prefixes"), {}),
        (awrsr_table, ("softmax", "uniform", "simple"), {}),
        (ablation, ("none", "kernel toeplitz-full, layer-wise", "learned"), {}),
        (anchors, (), {"widths": (256,), "anchor": "lastfm"}),
        (table2, (), {"windows": (2,), "max_length": 10, "widths": (8,), "dropouts": (0.1,)}),
    ],
    ids=lambda value: getattr(value, "__name__", "").rpartition(".")[2] or None,
)
def test_a_study_keeps_a_record(folder, monkeypatch, module, only, options):
    """The record has its tables, its figure and what was left out; a copy of one run stands for every row."""

    def copied(dataset, config, workdir, **kwargs):
        assert config.data.source.endswith("data")
        shutil.copytree(folder / "null", workdir)

    def untrained(config, dataset, **kwargs):
        return SimpleNamespace(valid=[SimpleNamespace(metrics={config.metric: config.encoder.width / 1e3})])

    monkeypatch.setattr(variants, "fit", copied)
    monkeypatch.setattr(variants, "train", untrained)
    monkeypatch.chdir(folder)
    asked = module.Options(
        data="data", seeds=2, epochs=1, only=only, out=f"runs/{module.__name__}", **options
    )
    module.main(asked)
    (record,) = [
        path
        for path in (folder / "experiments/results").glob("*.json")
        if json.loads(path.read_text())["command"].split()[2] == module.__name__
    ]
    result = json.loads(record.read_text())
    names = [row["name"] for row in result["variants"]]
    assert names == list(only) or not only
    assert result["unfinished"] == []
    assert all(row["difference"] == 0 for row in result["differences"]), "copies do not differ"
    text = record.with_suffix(".md").read_text()
    assert "**Less than planned**" in text
    assert record.with_suffix(".png").stat().st_size > 5_000


@pytest.mark.slow
def test_pretraining_against_more_training(folder, monkeypatch):
    """The row of the same compute has as many more epochs as the first stage took seconds; a copy stands for every run."""
    configs = {}

    def copied(dataset, config, workdir, **kwargs):
        configs[Path(workdir).name] = config
        shutil.copytree(folder / "null", workdir)
        seconds = 30.0 if Path(workdir).name == "pretraining" else 6.0
        results = json.loads((Path(workdir) / "results.json").read_text())
        results["timing"]["training_seconds"], results["training"]["epochs"] = seconds, 3.0
        (Path(workdir) / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(variants, "fit", copied)
    monkeypatch.setattr(variants, "refuse_other_settings", lambda run, config: None)
    monkeypatch.chdir(folder)
    options = pretraining.Options(data="data", seeds=2, epochs=20, pretraining_epochs=7, out="runs/pre")
    pretraining.main(options)
    result = json.loads((folder / "experiments/results/pretraining_walks.json").read_text())
    assert len(result["variants"]) == len(configs) - 1 == 6
    for loss in pretraining.LOSSES:
        longer = configs[f"scratch,-same-compute,-{loss}"].training
        assert (longer.epochs, longer.patience, longer.init_from) == (20 + 30 / (6 / 3), 0, "")
        assert configs[f"scratch,-{loss}"].training.epochs == 20
        started = configs[f"pretrained,-{loss}"].training
        assert (started.epochs, started.init_from) == (20, "runs/pre/pretraining")
    first = configs["pretraining"]
    assert (first.training.epochs, first.training.select, first.task.needs_attributes) == (7, "last", True)
    assert {(row["a"], row["b"]) for row in result["questions"]} == {
        (f"{kind}, {loss}", f"pretrained, {loss}")
        for loss in pretraining.LOSSES
        for kind in ("scratch", "scratch, same compute")
    }


@pytest.mark.slow
def test_chance_in_samples_of_a_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(
        SystemExit, match="items: expected a catalogue of the printed table, 57289, 3416; got 60"
    ):
        sampled_users.main(sampled_users.Options("null"))
    sampled_users.main(sampled_users.Options("null", users=40, draws=200, items=3416))
    text = (folder / "experiments/results/miq-sampled-users_walks.md").read_text()
    assert "| HR@20" in text
    assert "200 tables, 40 users a column" in text
