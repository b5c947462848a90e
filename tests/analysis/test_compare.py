"""Comparison of saved runs: values, corrections, errors for incomparable runs, tables and figures."""

import dataclasses

import numpy as np
import pytest

from jaxrec.analysis.compare import compare_runs, effect_figure, saved_ranks, setting_warnings, training_facts
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.groups import breakdown, group_figure, history_length_groups
from jaxrec.analysis.leaderboard import leaderboard_figure, rank_runs
from jaxrec.analysis.stability import Perturbation, Stability, stability_figure
from jaxrec.analysis.tables import cell, mean_and_deviation, to_latex, to_markdown
from jaxrec.errors import DataError
from jaxrec.evaluation.evaluate import Evaluation, evaluation_of

META = {"fingerprint": "abc", "split": {"protocol": "leave-one-out"}, "part": "test"}
USERS = 300


@pytest.fixture
def save(tmp_path, make_cases):
    def save(name, best, seeds=2, meta=None, users=USERS, remove_seen=True, shift=0):
        """Runs whose targets rank among the first ``best`` items."""
        paths = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            targets = [[1 + (user + shift) % 50] for user in range(users)]
            cases = make_cases(np.zeros(users), np.ones(users), targets)
            ranks = 1 + (rng.random(users) * best).astype(np.int32)
            evaluation = evaluation_of(ranks, cases, {"cases": users}, ks=(10,), remove_seen=remove_seen)
            paths.append(tmp_path / f"{name}{seed}.npz")
            evaluation.save(paths[-1], {**META, **(meta or {}), "seed": seed})
        return saved_ranks(name, [Evaluation.load(path) for path in paths])

    return save


def test_a_better_run_differs_and_an_equal_one_does_not(save):
    got = compare_runs([save("base", 100), save("better", 50), save("same", 101)], resamples=500)
    assert got.users == USERS
    better, same = (
        next(d for d in got.differences if d.b == name and d.metric == "HR@10") for name in ("better", "same")
    )
    assert better.difference == pytest.approx(
        np.diff([np.mean(got.values[n]["HR@10"]) for n in ("base", "better")])[0]
    )
    assert better.low > 0
    assert better.p_permutation == pytest.approx(1 / 501)
    assert better.p_holm == pytest.approx(2 * better.p_bootstrap)
    assert same.low <= 0 <= same.high
    assert same.p_holm >= same.p_bootstrap > 0.05
    assert same.p_permutation > 0.05
    assert better.relative == pytest.approx(better.difference / np.mean(got.values["base"]["HR@10"]))


def test_holm_corrects_the_p_value_over_users_and_seeds(save):
    """One seed far better than the other: the users alone call it a difference, seeds do not."""
    base, lucky = save("base", 100), save("lucky", 100)
    first, second = lucky.evaluations
    better = dataclasses.replace(second, ranks=np.maximum(second.ranks // 3, 1))
    lucky = dataclasses.replace(lucky, evaluations=(first, better))
    (row,) = compare_runs([base, lucky], ("HR@10",), resamples=500).differences
    assert row.p_permutation < 0.01
    assert row.p_holm == row.p_bootstrap > 0.01
    rows = compare_runs([base, lucky, save("other", 100)], ("HR@10",), resamples=500).differences
    assert rows[0].p_holm == pytest.approx(min(1, 2 * row.p_bootstrap))
    header, cells = compare_runs([base, lucky], ("HR@10",), resamples=500).difference_rows()
    assert cells[0][header.index("p Holm")] == f"{row.p_holm:.4f}"


def test_a_leaderboard_sorts_and_tells_what_is_tied(save, tmp_path):
    runs = [save("worst", 100), save("best", 12), save("second", 13)]
    board = rank_runs(runs, ("HR@10", "NDCG@10"))
    assert [entry.name for entry in board.entries] == ["best", "second", "worst"]
    best, second, worst = board.entries
    assert best.tied == ("second",)
    assert second.tied == ("best",)
    assert worst.tied == ()
    for run, entry in zip((runs[1], runs[2], runs[0]), board.entries, strict=True):
        mean = float(np.mean([evaluation.metrics["HR@10"] for evaluation in run.evaluations]))
        assert np.mean(entry.values["HR@10"]) == pytest.approx(mean)
        assert entry.low < mean < entry.high
    _, rows = board.rows()
    assert [row[-1] for row in rows] == ["2", "1", "-"]
    assert "corrected by Holm for all 3 pairs, gives p of .05 or more in HR@10." in board.to_markdown()
    assert "gives p of .2 or more in HR@10." in rank_runs(runs, ("HR@10",), alpha=0.2).to_markdown()
    save_figure(leaderboard_figure(board), tmp_path / "board.png")
    with pytest.raises(DataError, match="same protocol"):
        rank_runs([runs[0], save("kept", 100, remove_seen=False)])
    with pytest.raises(DataError, match="different names"):
        rank_runs([runs[0], runs[0]])


def test_a_long_leaderboard_tells_apart_what_a_short_one_does(save):
    """Fifteen runs are 105 pairs: the smallest p-value must be small enough for Holm's correction of them all."""
    runs = [save(f"run{number}", best) for number, best in enumerate([12, *range(200, 214)])]
    board = rank_runs(runs, ("HR@10",))
    best, *others = board.entries
    assert (best.name, best.tied) == ("run0", ())
    assert all(other.tied for other in others)


def test_warnings_name_the_settings_that_differ():
    packed = {"batches": {"mode": "packed"}, "encoder": {"positions": "learned"}}
    prefix = {"batches": {"mode": "prefix"}, "encoder": {"positions": "learned"}}
    last = {"batches": {"mode": "padded", "targets": "last"}, "encoder": {}}
    facts = {"a": training_facts(packed), "b": training_facts(prefix), "c": training_facts(last)}
    assert setting_warnings({"a": facts["a"], "d": training_facts(dict(packed))}) == ()
    (warning,) = setting_warnings(facts)
    assert "runs differ in training examples" in warning
    assert "packed sequences, every target: a" in warning
    assert "every prefix with its last target: b" in warning
    assert "padded sequences, last target only: c" in warning
    windows = {
        "batches": {"mode": "prefix", "long_histories": "windows"},
        "encoder": {"positions": "learned"},
    }
    assert training_facts(windows) == facts["b"], "prefixes are of whole histories"
    timed = training_facts({"batches": {"mode": "packed"}, "encoder": {"positions": "learned-hstu-time"}})
    (warning,) = setting_warnings({"a": facts["a"], "timed": timed})
    assert "runs differ in time of the question (not read: a; read in training: timed)" in warning
    (warning,) = setting_warnings(
        {"a": facts["a"], "s3": training_facts({**packed, "task": {"name": "masked-item"}})}
    )
    assert "runs differ in task" in warning


def test_tables_say_what_was_measured(save):
    got = compare_runs([save("base", 100), save("one_seed", 50, seeds=1)], ("HR@10",), resamples=200)
    text = got.to_markdown()
    assert "300 users; full corpus; seen items removed" in text
    assert "±" in text
    assert "(1 seed)" in text
    assert "With 300 users you cannot expect to see a difference in HR@10 below 0.0" in text
    assert "(80 % power, 5 % level)." in text
    several = compare_runs([save("base", 100), save("b", 50), save("c", 60)], ("HR@10",), resamples=200)
    assert "(80 % power, 5 % level before correction)." in several.to_markdown()
    assert "One seed only for one_seed" in text
    assert "Fewer than 5 seeds for base: where models vary more by seed" in text
    assert "seeds for" not in compare_runs([save("five", 100, seeds=5)], ("HR@10",)).to_markdown()
    page = rank_runs([save("base", 100), save("alone", 50, seeds=1)], ("HR@10",)).to_markdown()
    assert "One seed only for alone" in page
    assert "Fewer than 5 seeds for base" in page
    assert r"one\_seed - base" in got.to_latex()
    alone = compare_runs([save("base", 100)])
    assert alone.differences == []
    assert "base" in alone.to_markdown()
    assert "toprule" in alone.to_latex()


def test_runs_without_a_difference_have_no_detectable_one(save):
    """Without a spread of differences "cannot see one below 0.0000" would say that every difference is seen."""
    text = compare_runs([save("base", 100), save("copy", 100)], ("HR@10",), resamples=200).to_markdown()
    assert "No user's HR@10 differs between the runs: their spread cannot be estimated." in text
    assert "you cannot expect" not in text
    assert "0.0000 |" not in text.splitlines()[-4]


def test_successive_cases_of_a_user_count_as_one_user(save):
    def of_few_users(run):
        users = np.arange(USERS, dtype=np.int32) // 30
        changed = [dataclasses.replace(each, users=users) for each in run.evaluations]
        return dataclasses.replace(run, evaluations=tuple(changed))

    runs = [save("base", 100), save("better", 50)]
    single = compare_runs(runs, ("HR@10",), resamples=200)
    got = compare_runs([of_few_users(run) for run in runs], ("HR@10",), resamples=200)
    assert (got.users, got.cases) == (10, USERS)
    assert "300 cases of 10 users; full corpus" in got.to_markdown()
    assert "With 10 users you cannot expect" in got.to_markdown()
    assert got.values == single.values
    assert got.differences[0].difference == single.differences[0].difference
    assert got.differences[0].detectable != single.differences[0].detectable
    assert got.differences[0].p_bootstrap != single.differences[0].p_bootstrap
    assert "300 cases of 10 users" in rank_runs([of_few_users(run) for run in runs]).to_markdown()


def test_runs_that_are_not_comparable_are_refused(save):
    base = save("base", 100)
    refused = {
        "same dataset fingerprint, got abc .* and xyz": save("a", 100, meta={"fingerprint": "xyz"}),
        r"same split, got .*leave-one-out.* and .*temporal": save(
            "b", 100, meta={"split": {"protocol": "temporal"}}
        ),
        r'same split, got \{"target": "last"\} \(base2\) and \{"target": "first"\}': save(
            "g", 100, meta={"split": {"strategy": "temporal", "target": "first"}}
        ),
        "same part of the split, got test .* and valid": save("c", 100, meta={"part": "valid"}),
        "same protocol, got 'full corpus; seen items removed": save("d", 100, remove_seen=False),
        r"same users, but base and e differ \(300 and 299 users\)": save("e", 100, users=USERS - 1),
        "same targets, but base and f differ": save("f", 100, shift=1),
        "runs must have different names, got base, base": base,
    }
    temporal = save("base2", 100, meta={"split": {"strategy": "temporal", "target": "last"}})
    for message, run in refused.items():
        with pytest.raises(DataError, match=message):
            compare_runs([temporal if run.name == "g" else base, run])
    with pytest.raises(DataError, match="at least one run to compare, got none"):
        compare_runs([])
    with pytest.raises(DataError, match="run 'x' has no saved ranks"):
        saved_ranks("x", [])


def test_seeds_of_one_run_must_be_of_one_dataset(save, tmp_path):
    save("a", 100, seeds=1)
    save("b", 100, seeds=1, meta={"fingerprint": "xyz"})
    with pytest.raises(
        DataError, match=r"same dataset fingerprint, got abc \(x\) and xyz \(x \(another seed\)\)"
    ):
        saved_ranks("x", [Evaluation.load(tmp_path / name) for name in ("a0.npz", "b0.npz")])


def test_tables():
    header, rows = ["run", "HR"], [["a|b_1", 0.123456], ["c", None], ["d", float("nan")]]
    assert to_markdown(header, rows) == (
        "| run    |     HR |\n| ------ | -----: |\n"
        "| a\\|b_1 | 0.1235 |\n| c      |      - |\n| d      |      - |\n"
    )
    latex = to_latex(header, rows)
    assert latex.startswith(
        "\\begin{tabular}{lr}\n\\toprule\nrun & HR \\\\\n\\midrule\na|b\\_1 & 0.1235 \\\\\n"
    )
    assert mean_and_deviation([0.1, 0.2], 3) == "0.150 ± 0.071"
    assert mean_and_deviation([0.1], 2) == "0.10 (1 seed)"
    assert (cell(3), cell("x"), cell(np.float32(0.5), 1)) == ("3", "x", "0.5")


def test_figures_are_drawn(save, tmp_path):
    runs = [save("base", 100), save("better", 50)]
    save_figure(effect_figure(compare_runs(runs, resamples=100)), tmp_path / "effect.png")
    groups, names = history_length_groups(np.arange(USERS), edges=(10, 100))
    by_run = {run.name: breakdown(run.values("HR@10").mean(axis=0), groups, names) for run in runs}
    save_figure(group_figure(by_run, "HR@10", "history length"), tmp_path / "groups.pdf")
    ranks = np.arange(1, USERS + 1, dtype=np.int32)
    ranks = np.stack([ranks, ranks])
    same = np.full((2, USERS), 0.7)
    one = Stability(Perturbation("drop"), same, same, ranks, ranks, np.arange(USERS + 1), 10)
    other = dataclasses.replace(one, overlap=same + 0.2)
    save_figure(stability_figure({"base": [one], "better": [other]}), tmp_path / "stability.svg")
    for name in ("effect.png", "groups.pdf", "stability.svg"):
        assert (tmp_path / name).stat().st_size > 1000
    # The mean of equal differences and the bounds of its interval differ by rounding, either way.
    for rank in (2, 3, 4, 5):
        alike = [dataclasses.replace(run, evaluations=run.evaluations * 3) for run in runs]
        for run, value in zip(alike, (rank, 2 * rank), strict=True):
            for evaluation in run.evaluations:
                evaluation.ranks[:] = value
        effect_figure(compare_runs(alike, ("NDCG@10",), resamples=100))
    with pytest.raises(DataError, match="at least two runs to draw differences"):
        effect_figure(compare_runs(runs[:1]))
