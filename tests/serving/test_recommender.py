"""Recommendations agree with the evaluation's ranks, since one scorer serves both."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.analysis.attention_maps import draw_attention
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.dataset import open_dataset
from jaxrec.errors import CheckpointError, ConfigError, DataError
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.reporting.results import format_metrics
from jaxrec.runs import CATALOGUE, ITEM_COUNTS
from jaxrec.serving import Recommender, generation
from jaxrec.serving import requests as requests_module
from jaxrec.serving.recommender import save_catalogue
from jaxrec.serving.requests import Request, RequestReader, requests_of
from tests.helpers import small_config, small_dataset
from tests.runs import jaxrec as command

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = small_dataset()


@pytest.fixture(scope="module")
def run(two_seeds):
    return two_seeds


@pytest.fixture(scope="module")
def loaded(run):
    return Recommender.load(run.workdir)


def histories_of(cases, dataset):
    ids = np.asarray(dataset.item_ids)
    return [
        list(ids[dataset.items[a:b] - 1])
        for a, b in zip(cases.history_starts, cases.history_stops, strict=True)
    ]


def assert_lists_agree_with_ranks(lists, ranks, targets, dataset, k):
    """The target has rank r <= k if, and only if, it stands at place r of the list."""
    assert len(lists) == len(ranks)
    inside = 0
    for answer, rank, target in zip(lists, ranks, targets, strict=True):
        name = dataset.item_ids[target - 1]
        place = answer.items.index(name) + 1 if name in answer.items else None
        assert place == (rank if rank <= k else None)
        inside += place is not None
    assert inside > 0, "a test that no target reaches would prove nothing"


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("seed", [3, 1])
def test_a_target_of_rank_r_stands_at_place_r(run, part, seed):
    cases = run.fit.setup.split.cases(part)
    evaluation, meta = Evaluation.load(run.workdir / "ranks" / f"{part}_seed{seed}.npz")
    assert meta["seed"] == seed
    lists = Recommender.load(run.workdir, seed).recommend(histories_of(cases, DATASET), k=12)
    assert_lists_agree_with_ranks(lists, evaluation.ranks, cases.targets, DATASET, 12)


@pytest.mark.slow
def test_agreement_on_the_bundled_data(tmp_path):
    """Every user of the real dataset, with seen items kept as well as removed."""
    dataset = jaxrec.load_dataset("movietweetings")
    config = jaxrec.PRESETS["smoke"]()
    for remove_seen in (True, False):
        evaluation = dataclasses.replace(config.evaluation, remove_seen=remove_seen)
        training = dataclasses.replace(config.training, epochs=1)
        changed = dataclasses.replace(config, evaluation=evaluation, training=training)
        done = jaxrec.fit(dataset, changed, tmp_path / str(remove_seen), progress=False)
        cases = done.fit.setup.split.test
        lists = Recommender.load(done.workdir).recommend(histories_of(cases, dataset), k=20)
        assert_lists_agree_with_ranks(lists, done.fit.test[0].ranks, cases.targets, dataset, 20)


def test_one_history_or_many_give_the_same_list(run):
    recommender = Recommender.load(run.workdir)
    histories = [["i1", "i3"], ["i7"], ["i2"] * 30, []]
    together = recommender.recommend(histories, k=8)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend([history], k=8)[0]
        assert alone.items == answer.items
        np.testing.assert_allclose(alone.scores, answer.scores, rtol=1e-5, atol=1e-5)
        assert not set(history) & set(answer.items)
    assert recommender.recommend([], k=8) == []


def test_answer_in_original_ids_with_titles(run):
    answer = Recommender.load(run.workdir).recommend([("i1", "i3")], k=5)[0]
    assert answer.titles == [f"Item {item[1:]}" for item in answer.items]
    assert len(set(answer.items)) == 5
    assert all(isinstance(score, float) for score in answer.scores)
    assert Recommender.load(run.workdir).recommend([["i1", "i3"]], k=5)[0] == answer


def test_unknown_items_are_ignored_and_empty_histories_get_what_is_popular(run):
    recommender = Recommender.load(run.workdir)
    mixed, known, strangers, nobody = recommender.recommend(
        [["i1", "?", 7, "i3"], ["i1", "i3"], ["?"], []], k=5
    )
    assert mixed.unknown == ["?", "7"]
    assert mixed.items == known.items
    assert known.unknown == []
    assert strangers.unknown == ["?"]
    assert strangers.items == nobody.items
    assert [answer.popular for answer in (mixed, known, strangers, nobody)] == [False, False, True, True]
    counts = run.fit.setup.split.item_counts
    assert nobody.scores == sorted(counts[1:].tolist(), reverse=True)[:5]
    assert nobody.scores == [counts[int(item[1:]) + 1] for item in nobody.items]


def repeating_dataset():
    """Users who come back to a few items of their own: most targets are in their history."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 25, 60)
    items = [generator.choice(generator.integers(1, 41, 5), length) for length in lengths]
    return dataclasses.replace(
        small_dataset(times=False),
        items=np.concatenate(items).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


@pytest.mark.parametrize("remove_seen", [True, False])
def test_reported_metrics_are_those_of_the_served_lists(tmp_path, remove_seen):
    """On a log where most targets are repeats: HR, NDCG and MRR of the lists that `recommend` serves."""
    dataset = repeating_dataset()
    config = small_config(training={"epochs": 2}, evaluation={"remove_seen": remove_seen})
    trained = jaxrec.fit(dataset, config, tmp_path / "run", progress=False)
    cases, results = trained.fit.setup.split.test, trained.results
    assert results["counts"]["targets_in_history"] > 40
    assert (
        results["counts"]["targets_missed_as_seen"] == remove_seen * results["counts"]["targets_in_history"]
    )
    assert ("targets among them missed" in results["protocol"]) == remove_seen
    lists = Recommender.load(trained.workdir).recommend(histories_of(cases, dataset), k=10)
    names = [dataset.item_ids[target - 1] for target in cases.targets]
    places = [
        answer.items.index(name) + 1 if name in answer.items else np.inf
        for answer, name in zip(lists, names, strict=True)
    ]
    for k in (5, 10):
        inside = np.array(places) <= k
        assert trained.metrics[f"HR@{k}"] == pytest.approx(inside.mean())
        gains = np.where(inside, 1 / np.log2(1 + np.array(places)), 0)
        assert trained.metrics[f"NDCG@{k}"] == pytest.approx(gains.mean())
    if remove_seen:
        message = format_metrics(results)
        assert re.search(r"\d+ of 60 targets \(\d+\.\d%\) are in the history of their own case", message)


def test_the_whole_catalogue_without_the_history(run):
    recommender = Recommender.load(run.workdir)
    rest = recommender.recommend([["i1", "i2"]], k=40)[0]
    assert set(rest.items) == {f"i{i}" for i in range(40)} - {"i1", "i2"}
    everything = recommender.recommend([["i1", "i2"]], k=40, remove_seen=False)[0]
    assert len(everything.items) == 40
    assert [item for item in everything.items if item not in ("i1", "i2")] == rest.items


def test_refusals(run, tmp_path):
    recommender = Recommender.load(run.workdir)
    for k in (0, 41):
        with pytest.raises(
            ConfigError, match=f"k must be an integer from 1 to the catalogue's 40 items, got {k}"
        ):
            recommender.recommend([["i1"]], k=k)
    for wrong in ("i1", ["i1", "i2"]):
        with pytest.raises(DataError, match="histories must be a list of lists of item ids"):
            recommender.recommend(wrong)
    with pytest.raises(DataError, match="timestamps must have one entry for each interaction"):
        recommender.recommend([["i1", "i2"]], timestamps=[[1]])
    with pytest.raises(ConfigError, match=r"seed must be one of the run's \(3, 1\), got 0"):
        Recommender.load(run.workdir, seed=0)
    with pytest.raises(ConfigError, match=r"config\.json not found: expected the config\.json of a run"):
        Recommender.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"histories": None}, DataError, "histories must be a list of lists"),
        ({"histories": [None]}, DataError, "got None as a history"),
        ({"histories": [5]}, DataError, "got 5 as a history"),
        ({"histories": [b"i1"]}, DataError, "got b'i1' as a history"),
        ({"histories": [[None]]}, DataError, "got None as an item id"),
        *(
            ({"k": k}, ConfigError, "k must be an integer from 1")
            for k in (2.5, "5", None, True, 3.0, [5, 0], 0)
        ),
        ({"k": [5]}, ConfigError, "one number for each of the 2 histories, got 1"),
        ({"remove_seen": "no"}, DataError, "remove_seen must be True or False"),
        *(
            ({"timestamps": [times, [1]]}, DataError, "whole seconds since 1970")
            for times in (["a", "b"], [1, float("nan")], [None, 1], [1, 10**30], [2, 1])
        ),
        ({"exclude": ["i1", "?"]}, DataError, r"exclude must hold ids of the catalogue, got '\?'"),
        ({"allow": "i1"}, DataError, "allow must be a list of item ids"),
        ({"allow": [["i1"]]}, DataError, "one list for each of the 2 histories, got 1"),
    ],
)
def test_arguments_of_the_wrong_form_are_one_clear_error(loaded, arguments, kind, message):
    given = {"histories": [["i1", "i2"], ["i3"]], "k": 5, **arguments}
    with pytest.raises(kind, match=message):
        loaded.recommend(**given)


@pytest.fixture(params=[1 << 14, 3])
def many_items(request, monkeypatch):
    """Filters that leave out more items than this become part of the table."""
    monkeypatch.setattr(requests_module, "MANY_ITEMS", request.param)
    return request.param


def test_filters_per_request_equal_brute_force(run, many_items, monkeypatch):
    """Every combination against the whole list of scores with the filtered items struck out by hand."""
    recommender = Recommender.load(run.workdir)
    histories = [["i1", "i3"], ["i7"], ["i2", "i5"], []]
    whole = recommender.recommend(histories, k=40, remove_seen=False)
    lengths, seen = [3, 7, 40, 4], [True, False, True, False]
    exclude = [["i4", "i8"], [], ["i9"], ["i1"]]
    allow = [[f"i{i}" for i in range(20)], ["i7", "i11", "i12"], [f"i{i}" for i in range(40)], ["i5", "i6"]]
    got = recommender.recommend(histories, lengths, remove_seen=seen, exclude=exclude, allow=allow)
    for row, answer in enumerate(got):
        want = [
            item
            for item in whole[row].items
            if item not in exclude[row] and item in allow[row] and not (seen[row] and item in histories[row])
        ]
        assert answer.items == want[: lengths[row]]
    assert [len(answer.items) for answer in got] == [3, 3, 37, 2]
    most = [f"i{i}" for i in range(33)]
    for row, answer in enumerate(recommender.recommend(histories, 40, exclude=most, remove_seen=False)):
        assert answer.items == [item for item in whole[row].items if item not in most]
    removed, _ = recommender.filters(recommender.prepare([Request(["i1"], exclude=most)]))
    assert len(removed.items) == (1 if many_items == 3 else 34), "what is excluded becomes part of the table"
    everywhere = recommender.recommend(histories, 5, exclude=["i4"], allow={"i4", "i6", "i10"})
    assert all(set(answer.items) <= {"i6", "i10"} for answer in everywhere)
    removed, _ = recommender.filters(recommender.prepare([Request(["i1"], allow=["i4"])] * 50))
    assert len(removed.items) == 50 * (1 if many_items == 3 else 39), "what is not allowed takes no memory"
    monkeypatch.setattr(requests_module, "MOST_REMOVED", 3)
    for row, answer in enumerate(
        recommender.recommend(histories, 40, exclude=["i4", "i30"], remove_seen=False)
    ):
        assert answer.items == [item for item in whole[row].items if item not in ("i4", "i30")]
    for allow in (None, {f"i{i}" for i in range(38)}):
        shared = requests_of(histories, k=40, exclude=["i4", "i30"], remove_seen=False, allow=allow)
        removed, allowed = recommender.filters(recommender.prepare(shared))
        assert (len(removed.items), len({id(each) for each in allowed})) == (0, 1), "what many leave out, too"


def with_attributes(dataset):
    """Item i has the attributes "even" or "odd", and "third" where 3 divides i."""
    names = [["odd" if i % 2 else "even", *(["third"] if i % 3 == 0 else [])] for i in range(dataset.n_items)]
    return dataclasses.replace(dataset, attributes=AttributeTable.from_lists(names))


def test_filters_by_attribute(run, many_items):
    """Against the whole list, filtered by hand; requests of one batch differ in every field."""
    recommender = Recommender.load(run.workdir)
    recommender.items = with_attributes(recommender.items)
    recommender._reader = RequestReader(recommender.items, True, False)
    histories = [["i1", "i3"], ["i7"], ["i2"], [], ["i5"]]
    whole = recommender.recommend(histories, k=40, remove_seen=False)
    got = recommender.answer(
        [
            Request(histories[0], 30, exclude_attributes=["even"]),
            Request(histories[1], 5, False, allow_attributes=["third"], exclude=["i3"]),
            Request(histories[2], 7, allow_attributes=["third", "odd"], exclude_attributes=["third"]),
            Request(histories[3], 3, allow_attributes=["even"], allow=["i4", "i5", "i6"]),
            Request(histories[4], 4, allow_attributes=[]),
        ]
    )

    def number(item):
        return int(item[1:])

    keep = [
        lambda i: number(i) % 2 == 1 and i not in histories[0],
        lambda i: number(i) % 3 == 0 and i != "i3",
        lambda i: number(i) % 2 == 1 and number(i) % 3,
        lambda i: i in ("i4", "i6"),
        lambda i: False,
    ]
    for row, k in enumerate((30, 5, 7, 3, 4)):
        assert got[row].items == [item for item in whole[row].items if keep[row](item)][:k]
    with pytest.raises(
        DataError, match=r"allow_attributes must hold attributes of the catalogue, got 'blue'"
    ):
        recommender.recommend([["i1"]], allow_attributes=["blue"])
    with pytest.raises(DataError, match=r"exclude_attributes needs items with attributes"):
        Recommender.load(run.workdir).recommend([["i1"]], exclude_attributes=["even"])


compiled_programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
        compiled_programs.append(event) if event.endswith("backend_compile_duration") else None
    )
)


@pytest.mark.slow  # compiles anew what other tests have compiled
def test_a_day_of_mixed_requests_compiles_a_handful_of_programs(run, many_items):
    """The programs of calls of 1 to 64 requests with histories, lists and filters of many sizes."""
    recommender = Recommender.load(run.workdir)
    generator = np.random.default_rng(0)

    def some(most):
        return [f"i{i}" for i in generator.integers(0, 40, generator.integers(0, most + 1))]

    def day():
        for call in range(40):
            count = (1, 8, 64, int(generator.integers(1, 65)))[call % 4]
            recommender.answer(
                [
                    Request(
                        some(30),
                        k=int(generator.integers(1, 41)),
                        remove_seen=bool(generator.integers(2)),
                        exclude=some(10),
                        allow=some(40) if generator.integers(4) == 0 else None,
                    )
                    for _ in range(count)
                ]
            )

    jax.clear_caches()
    compiled_programs.clear()
    recommender.lists.warm_up()
    first = len(compiled_programs)
    assert 10 <= first <= 40
    for count in (9, 64):  # more histories than a row holds positions, some of them empty
        recommender.answer([Request(["i1"])] * 9 + [Request([])] * (count - 9))
    assert len(compiled_programs) == first
    day()
    assert len(compiled_programs) <= first + 2, "a day finds its programs, but for rare sizes"


def test_unfinished_and_mixed_up_runs(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run.workdir, copy)
    shutil.rmtree(copy / CATALOGUE)
    with pytest.raises(
        ConfigError, match=r"is not finished: finish it with jaxrec train --workdir .*copy --resume"
    ):
        Recommender.load(copy)
    save_catalogue(small_dataset(seed=5), copy, np.ones(41))
    with pytest.raises(CheckpointError, match="trained on a dataset with fingerprint"):
        Recommender.load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoints in .*copy"):
        Recommender.load(copy)


def test_time_interval_models_need_times(tmp_path):
    config = small_config(training={"epochs": 1}, encoder={"positions": "time-interval"})
    done = jaxrec.fit(DATASET, config, tmp_path / "run", progress=False)
    recommender = Recommender.load(done.workdir)
    with pytest.raises(DataError, match=r"needs the time of each interaction.*--timestamps .*timestamps="):
        recommender.recommend([["i1"]], k=3)
    with pytest.raises(DataError, match=r"needs the time of each interaction.*build a Batch"):
        draw_attention(done.workdir, ["i1"], tmp_path / "figures")
    cases = done.fit.setup.split.test
    spans = list(zip(cases.history_starts, cases.history_stops, strict=True))
    times = [[int(t) for t in DATASET.timestamps[a:b]] for a, b in spans]
    lists = recommender.recommend(histories_of(cases, DATASET), k=12, timestamps=times)
    assert_lists_agree_with_ranks(lists, done.fit.test[0].ranks, cases.targets, DATASET, 12)
    shifted = [[t + 10**9 for t in history] for history in times]
    assert recommender.recommend(histories_of(cases, DATASET), k=12, timestamps=shifted) == lists, (
        "only intervals matter"
    )


def test_candidates_are_listed_for_the_histories_of_a_batch_alone(recommender, monkeypatch):
    """Beside an allowed item all others are removed, for each history: a catalogue each."""
    asked, removed = [], Recommender.removed

    def watched(self, prepared):
        asked.append(len(prepared))
        return removed(self, prepared)

    histories, allow = [[f"i{i}"] for i in range(30)], [[f"i{(i + 7) % 40}"] for i in range(30)]
    whole = recommender.generate(histories, 1, allow=allow)
    monkeypatch.setattr(Recommender, "removed", watched)
    monkeypatch.setattr(generation, "ROWS", 4)
    parts = recommender.generate(histories, 1, allow=allow)
    assert sum(asked) == 30
    assert max(asked) <= 8
    assert [one.items for one in parts] == [one.items for one in whole] == allow


def test_catalogue_holds_items_and_no_users(tmp_path):
    (tmp_path / CATALOGUE).mkdir()
    (tmp_path / CATALOGUE / "items.npy").write_bytes(b"half")
    save_catalogue(DATASET, tmp_path, np.ones(41))
    kept = open_dataset(tmp_path / CATALOGUE)
    assert (kept.n_users, kept.n_items, len(kept.items)) == (0, 40, 0)
    assert list(kept.item_ids) == list(DATASET.item_ids)
    assert kept.meta["source_fingerprint"] == DATASET.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [CATALOGUE, ITEM_COUNTS]


def test_generated_sequences_are_recommendations_asked_again(run, tmp_path):
    """Each item is the best of `recommend` after what was generated before it, under the same filters."""
    recommender = Recommender.load(run.workdir)
    histories = [["i1", "?", "i3"], ["i7"], []]
    exclude, allow = ["i2", "i9"], [f"i{i}" for i in range(1, 30)]
    answers = recommender.generate(histories, 3, exclude=exclude, allow=allow)
    for history, answer in zip(histories, answers, strict=True):
        grown = list(history)
        for step, item in enumerate(answer.items):
            again = recommender.recommend([grown], k=1, exclude=exclude, allow=allow)[0]
            assert again.items == [item]
            if not (answer.popular and step == 0):
                assert again.scores[0] == pytest.approx(answer.scores[step], rel=1e-5, abs=1e-5)
            grown.append(item)
        assert len(answer.items) == 3
        assert answer.titles == [f"Item {item[1:]}" for item in answer.items]
    assert [answer.unknown for answer in answers] == [["?"], [], []]
    assert [answer.popular for answer in answers] == [False, False, True]
    few = recommender.generate([["i1"]], 3, allow=["i4", "i5"])[0]
    assert sorted(few.items) == ["i4", "i5"]
    same = recommender.generate([["i1"]], 3, allow=["i4"], remove_seen=False)[0]
    assert same.items == ["i4"] * 3
    once = recommender.generate([["i1"]], 3, allow=["i4"], remove_seen=False, repeats=False)[0]
    assert once.items == ["i4"]
    (tmp_path / "allow").write_text("i4\ni5\ni6\n")
    line = ("recommend", run.workdir, "--history", "i1", "--steps", 3, "--allow", tmp_path / "allow")
    beams = command(*line, "--generation.method", "beam", "--generation.beams", 2, "--json").json
    assert len(beams["beams"]) == 2
    assert beams["beams"][0]["items"] == beams["items"]
    assert beams["beams"][0]["log_probability"] >= beams["beams"][1]["log_probability"]
    assert beams["beams"][0]["log_probability"] == pytest.approx(sum(beams["log_probabilities"]), abs=1e-5)
    whole = command(*line)
    assert len(whole.out.splitlines()) == 3
    assert "fewer" not in whole.err
    (tmp_path / "allow").write_text("i4\ni5\n")
    short = command(*line)
    assert len(short.out.splitlines()) == 2
    assert "2 items, fewer than --steps 3: the filters leave no more" in short.err
    for options, message in (
        (("-k", 3), "-k is the length of a list"),
        (("--steps", -1), "--steps must be an integer of at least 1, got -1"),
        (("--steps", 0, "--generation.window", "planned"), "--generation.* chooses the items of --steps"),
    ):
        outcome = command(*line, *options)
        assert outcome.status == 1
        assert message in outcome.err
    with pytest.raises(TypeError, match="unexpected keyword argument 'top'"):
        recommender.generate([["i1"]], 2, top=3)
    with pytest.raises(DataError, match="repeats must have one value for each of the 1 histories, got 2"):
        recommender.generate([["i1"]], 2, repeats=[True, False])
    with pytest.raises(
        DataError, match="repeats must be True or False, or one of them per history, got 'no'"
    ):
        recommender.generate([["i1"]], 2, repeats="no")
