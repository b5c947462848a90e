"""Outputs of a finished run: results, ranks, figures, page and printed table."""

import dataclasses
import html
import json
import re
import shlex
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.config import to_dict
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.evaluation.metrics import MISSED, over_seeds
from jaxrec.models import GRU4RecConfig
from jaxrec.reporting import results as results_module
from jaxrec.reporting.advice import next_steps
from jaxrec.reporting.examples import example_users
from jaxrec.reporting.html import changed_options, model_label, write_page
from jaxrec.reporting.results import format_metrics, hardware, versions
from jaxrec.training.setup import prepare
from tests.helpers import replace, small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()


@pytest.fixture(scope="module")
def run(two_seeds):
    return two_seeds


def test_summary_over_seeds():
    summary = over_seeds([{"HR@10": value} for value in (0.1, 0.2, 0.4)])["HR@10"]
    assert summary["values"] == [0.1, 0.2, 0.4]
    assert summary["mean"] == pytest.approx(0.7 / 3)
    assert summary["sd"] == pytest.approx(np.sqrt(sum((x - 0.7 / 3) ** 2 for x in (0.1, 0.2, 0.4)) / 2))
    assert over_seeds([{"HR@10": 0.1}])["HR@10"]["sd"] is None, "one seed has no spread"


def test_results_record_the_measurement(run):
    results = run.results
    metrics = run.fit.test[1].metrics
    assert results["metrics"]["NDCG@10"]["values"][1] == metrics["NDCG@10"]
    assert results["dataset"]["fingerprint"] == DATASET.fingerprint
    assert results["seeds"] == [3, 1]
    assert results["training"]["steps"] == run.fit.steps
    assert results["training"]["parameters"] == sum(np.asarray(p)[0].size for p in leaves(run.fit.params))
    assert 0 < results["training"]["fill_rate"] <= 1
    assert all(value >= 0 for value in results["timing"].values())
    assert results["versions"]["jaxrec"] == jaxrec.__version__
    assert results["hardware"]["cores"] >= 1
    assert json.loads((run.workdir / "results.json").read_text()) == results


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_ranks_are_saved_for_each_part_and_seed(run):
    for part, expected in (("valid", run.fit.valid), ("test", run.fit.test)):
        for seed, evaluation in zip((3, 1), expected, strict=True):
            loaded, meta = Evaluation.load(run.workdir / "ranks" / f"{part}_seed{seed}.npz")
            np.testing.assert_array_equal(loaded.ranks, evaluation.ranks)
            assert (meta["fingerprint"], meta["part"], meta["seed"]) == (DATASET.fingerprint, part, seed)
            assert loaded.metrics == evaluation.metrics


def test_page_is_self_contained_and_shows_the_numbers(run):
    page = (run.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is loaded from elsewhere"
    assert f"{run.metrics['NDCG@10']:.4f}" in page
    for word in (
        "popularity",
        "popularity-7d",
        "markov",
        "item-knn",
        "graph",
        DATASET.fingerprint[:8],
        "leave-one-out",
    ):
        assert word in page


def test_figures_are_pictures(run):
    for path in (run.workdir / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_table_puts_the_model_beside_the_baselines(run):
    table = format_metrics(run.results)
    lines = table.splitlines()
    assert lines[0].startswith("walks: 60 users, 40 items, ")
    baselines = ["popularity", "popularity-7d", "markov", "item-knn", "graph"]
    assert [line.split()[0] for line in lines[2:8]] == [*baselines, "transformer"]
    assert "±" in lines[7]
    assert table.endswith("(mean ± sd over seeds)")


def test_the_label_names_encoder_attention_and_loss(run):
    assert format_metrics(run.results).splitlines()[7].startswith("transformer (softmax, cross-entropy)")
    assert "transformer (softmax, cross-entropy)" in (run.workdir / "report.html").read_text()
    other = {"encoder": {"name": "stosa"}, "attention": {"name": "wasserstein"}, "objective": {"name": "bce"}}
    assert model_label(other) == "stosa (wasserstein, bce)"
    inside = {"encoder": {"name": "sasrec", "attention": {"name": "miq"}}, "objective": {"name": "bpr"}}
    assert model_label(inside) == "sasrec (miq, bpr)"
    assert model_label({"encoder": {"name": "gru4rec"}, "objective": {"name": "bpr"}}) == "gru4rec (bpr)"
    masked = {
        "encoder": {"name": "transformer"},
        "task": {"name": "masked-item"},
        "objective": {"name": "bce"},
    }
    assert model_label(masked) == "transformer (masked-item, bce)"
    masked["task"]["name"] = "next-item"
    assert model_label(masked) == "transformer (bce)"


def test_versions_and_hardware_are_plain():
    assert json.loads(json.dumps(versions())) == versions()
    assert {"jax", "flax", "python"} <= set(versions())
    assert hardware()["backend"] == "cpu"


def test_the_commit_is_marked_where_code_differs(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setattr(results_module, "__file__", str(tmp_path / "jaxrec/reporting/results.py"))
    assert "commit" not in versions()
    (tmp_path / "code.py").write_text("one")
    (tmp_path / "record.md").write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")[:12]
    (tmp_path / "record.md").write_text("two")
    assert versions()["commit"] == commit
    (tmp_path / "new.py").write_text("two")
    assert versions()["commit"] == f"{commit}-dirty"


def test_page_shows_users_drawn_at_random_with_what_was_held_out(run):
    examples = example_users(run.fit)
    page = html.unescape((run.workdir / "report.html").read_text())
    assert len(examples) == 8
    evaluation, cases = run.fit.test[0], run.fit.setup.split.cases("test")
    ranks = {DATASET.user_ids[u]: rank for u, rank in zip(cases.users, evaluation.ranks, strict=True)}
    recommender = jaxrec.Recommender.load(run.workdir)
    for example in examples:
        (target, rank), user = example.targets[0], DATASET.user_ids.tolist().index(example.user)
        history = DATASET.history(user)[:-1]
        ids = [DATASET.item_ids[i - 1] for i in history]
        assert [item.id for item in example.history] == ids[-8:]
        assert target.id == DATASET.item_ids[DATASET.history(user)[-1] - 1]
        assert rank == ranks[example.user]
        assert example.hit == (rank <= 10)
        assert [item.id for item in example.recommendations] == recommender.recommend([ids], k=10)[0].items
        assert f"<h3>User {example.user}</h3>" in page
        assert f'<strong title="{target.id}">{target.label}</strong>, rank {rank}' in page
    assert f"{sum(e.hit for e in examples)} have a held-out item" in page


def test_held_out_items_that_are_no_candidates_have_no_rank_on_the_page(run, tmp_path):
    tested = run.fit.test[0]
    ranks = np.where(np.arange(len(tested.ranks)) % 2, tested.ranks, MISSED).astype(np.int32)
    examples = example_users(dataclasses.replace(run.fit, test=[dataclasses.replace(tested, ranks=ranks)]))
    shown = [rank for example in examples for _, rank in example.targets]
    assert None in shown
    assert MISSED not in shown
    assert any(shown)
    page = write_page(run.results, [], tmp_path, examples).read_text()
    assert page.count("in the history, so no candidate") == shown.count(None)
    assert "2,147,483,647" not in page


def test_page_names_the_whole_split(run, tmp_path):
    described = {**run.results["split"], "protocol": "temporal", "description": "temporal, random target"}
    page = write_page({**run.results, "split": described}, [], tmp_path).read_text()
    assert "temporal, random target: full corpus" in page


def test_examples_are_of_different_users_where_a_user_has_several_cases(run):
    temporal = {"strategy": "temporal", "target": "successive", "valid_quantile": 0.4, "test_quantile": 0.5}
    setup = prepare(replace(run.fit.setup.config, split=temporal), DATASET)
    tested = setup.evaluate(run.fit.seed_params(0), setup.split.test)
    assert len(np.unique(tested.users)) < len(tested.users)
    examples = example_users(dataclasses.replace(run.fit, setup=setup, test=[tested]))
    assert len({example.user for example in examples}) == len(examples) == 8


def test_examples_of_a_model_without_a_preference_agree_with_its_ranks(run):
    """All scores are equal, so that lists and ranks follow from the order of ties alone."""
    setup, flat = run.fit.setup, jax.tree.map(jnp.zeros_like, run.fit.params)
    nothing = dataclasses.replace(run.fit, params=flat)
    tested = setup.evaluate(nothing.seed_params(0), setup.split.test)
    examples = example_users(dataclasses.replace(nothing, test=[tested]), count=60)
    assert 0 < sum(example.hit for example in examples) < len(examples)
    for example in examples:
        listed = [item.id for item in example.recommendations]
        for target, rank in example.targets:
            assert (listed.index(target.id) + 1 if target.id in listed else 99) == (
                rank if rank <= 10 else 99
            )


def test_page_names_options_and_next_steps(run):
    page = (run.workdir / "report.html").read_text()
    for option in ("--encoder.width", "--training.seeds", "--batches.max-length"):
        assert f"<code>{option}</code>" in page
    assert "--training.metric" not in page, "as by default"
    assert f"jaxrec evaluate {run.workdir} --breakdown" in page


def test_next_steps_follow_from_the_results(tmp_path):
    results = {
        "metrics": {"HR@10": {"mean": 0.2}, "NDCG@10": {"mean": 0.1}},
        "baselines": {"popularity": {"HR@10": 0.1, "NDCG@10": 0.15}},
        "seeds": [0],
        "training": {"steps": 40, "best_steps": [40]},
        "config": {"training": {"select": "best", "epochs": 5.0}, "optimizer": {"schedule": "constant"}},
    }
    steps = next_steps(results, tmp_path, titles=False)
    text = " ".join(f"{step.reason} {step.command}" for step in steps)
    assert steps[0].reason.startswith("No better than popularity in NDCG@10")
    assert "--resume --training.epochs 10" in text
    assert "--seeds 5" in text
    assert "--data.item-table" in text
    results["baselines"]["popularity"]["NDCG@10"] = 0.05
    results |= {"seeds": [0, 1], "training": {"steps": 40, "best_steps": [20, 40]}}
    results["config"]["training"]["select"] = "last"
    text = " ".join(step.reason for step in next_steps(results, tmp_path, titles=True))
    assert "No better" not in text
    assert "too early" not in text
    assert "One seed" not in text


def test_next_steps_can_be_typed_as_they_are(tmp_path):
    results = {
        "metrics": {"NDCG@10": {"mean": 0.1}},
        "baselines": {},
        "seeds": [0],
        "training": {"steps": 40, "best_steps": [40]},
        "config": {
            "training": {"select": "best", "epochs": 5.0},
            "optimizer": {"schedule": "constant"},
            "encoder": {"item_codes": {"method": "none"}},
        },
    }
    folder = tmp_path / "my runs" / "it's"
    commands = [step.command for step in next_steps(results, folder, titles=True)]
    for command in commands:
        assert any(word.startswith(str(folder)) for word in shlex.split(command)), command
    assert any(command.startswith("jaxrec extend") for command in commands)
    results["config"]["encoder"]["item_codes"]["method"] = "product"
    assert not any("extend" in step.command for step in next_steps(results, folder, titles=True))


@pytest.mark.parametrize(
    ("best", "patience", "expected"),
    [
        ([400, 300], 10, ""),
        ([400, 24], 10, "seed 1 at epoch 6"),
        ([24, 20], 10, "seed 0 at epoch 6, seed 1 at epoch 5"),
        ([400, 24], 0, ""),
        ([400, 24], 100, ""),  # at epoch 6 it could not have run out of patience
    ],
)
def test_models_that_ended_in_the_first_epochs_are_named(tmp_path, best, patience, expected):
    results = {
        "metrics": {"NDCG@10": {"mean": 0.2}},
        "baselines": {"popularity": {"NDCG@10": 0.1}},
        "seeds": [0, 1],
        "training": {"steps": 480, "epochs": 120.0, "best_steps": best},
        "config": {
            "training": {"select": "best", "epochs": 200.0, "patience": patience, "evaluate_every": 2.0},
            "optimizer": {"schedule": "constant"},
        },
    }
    steps = [step for step in next_steps(results, tmp_path / "run", titles=True) if "patience" in step.reason]
    assert len(steps) == bool(expected)
    if steps:
        assert (
            f"Training of {expected} of at most 200 ended for want of patience (20 epochs)" in steps[0].reason
        )
        assert f"--training.patience {5 * patience} --workdir {tmp_path / 'run'}-patient" in steps[0].command


def test_changed_options_name_classes_and_values():
    config = small_config(attention={"heads": 2}).updated({"encoder.block": "post-norm"})
    options = {name: (value, default) for name, value, default in changed_options(to_dict(config))}
    assert options["--encoder.attention.heads"] == ("2", "1")
    assert options["--encoder.block"] == ("post-norm", "pre-norm")
    gru = dataclasses.replace(config, encoder=GRU4RecConfig(hidden_width=16))
    options = {name: (value, default) for name, value, default in changed_options(to_dict(gru))}
    assert options["--encoder"] == ("gru4rec", "transformer")
    assert options["--encoder.hidden-width"] == ("16", "128")


@pytest.mark.slow
def test_page_in_a_browser_on_a_phone_and_in_print(run, tmp_path):
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    # A frame, since a headless window is at least 500 pixels wide.
    shutil.copy(run.workdir / "report.html", tmp_path / "report.html")
    (tmp_path / "phone.html").write_text(
        '<iframe src="report.html" style="width:375px;height:800px;border:0"></iframe><script>onload = () => {'
        "const page = frames[0].document, root = page.documentElement;"
        "document.body.dataset.width = root.scrollWidth - root.clientWidth;"
        "document.body.dataset.users = page.querySelectorAll('.user ol').length;"
        "document.body.dataset.pictures = [...page.images].filter(i => i.naturalWidth > 0).length;"
        "document.body.dataset.small = [...page.querySelectorAll('p, li, td')].filter("
        "e => parseFloat(frames[0].getComputedStyle(e).fontSize) < 12).length}</script>"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path}/profile",
    ]

    def chromium(*words):
        return subprocess.run(
            [browser, *flags, *words], capture_output=True, text=True, timeout=120, check=True
        ).stdout

    dom = chromium("--dump-dom", (tmp_path / "phone.html").as_uri())
    facts = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert facts == {"width": "0", "users": "8", "pictures": "3", "small": "0"}
    chromium(
        "--no-pdf-header-footer",
        f"--print-to-pdf={tmp_path / 'page.pdf'}",
        (tmp_path / "report.html").as_uri(),
    )
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
