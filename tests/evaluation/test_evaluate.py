"""From histories to metrics: packing changes nothing, what is left out is counted, files come back."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import stretches
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation import encode as encode_module
from jaxrec.evaluation import parallel
from jaxrec.evaluation import seen as seen_module
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import EncodingOptions, encode_histories
from jaxrec.evaluation.evaluate import Evaluation, evaluate_cases
from jaxrec.evaluation.histories import Histories, RankingCases, distinct_targets, ranking_cases
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.ranker import EncoderRanker
from jaxrec.evaluation.ranking import candidate_table, rank_targets
from jaxrec.evaluation.seen import SeenHistories, SeenItems, as_seen
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import take_positions
from tests.evaluation import oracle

N_ITEMS, WIDTH, LENGTH = 40, 6, 8


def apply_fn(params, batch, at):
    """A causal running sum inside each segment, so that a state depends on the whole history and on nothing
    else.
    """
    vectors = params[batch.items] * (1 + batch.positions[..., None].astype(jnp.float32))
    if batch.timestamps is not None:
        vectors = vectors + batch.timestamps[..., None].astype(jnp.float32)
    index = jnp.arange(batch.items.shape[1])
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (index[:, None] >= index[None])[None]
    return take_positions(jnp.einsum("bij,bjd->bid", same.astype(jnp.float32), vectors), at)


def encode(params, items, starts, stops, times=None, **options):
    histories = Histories(items, np.asarray(starts), np.asarray(stops), times)
    return encode_histories(apply_fn, params, histories, EncodingOptions(LENGTH, **options))


def ranker(params):
    return EncoderRanker(apply_fn, params, candidate_table(ItemTable(params)), EncodingOptions(LENGTH))


def expected(params, items, starts, stops, origin="start", times=None):
    states = np.zeros((len(starts), WIDTH))
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        first = max(start, stop - LENGTH)
        for place, i in enumerate(range(first, stop)):
            position = place if origin == "start" else stop - 1 - i
            states[row] += params[items[i]] * (1 + position) + (0 if times is None else times[i])
    return states


@pytest.fixture
def data():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 14, 25)
    lengths[[3, 7]] = 0, 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, N_ITEMS + 1, offsets[-1]).astype(np.int32)
    return rng.normal(size=(N_ITEMS + 1, WIDTH)).astype(np.float32), items, offsets[:-1], offsets[1:]


def test_calls_of_about_as_many_batches_share_a_program(data):
    """A bulk job has another number of batches in each part."""
    params, items, *_ = data
    before = encode_module._placed._cache_size()
    for batches in range(33, 41):
        starts = np.zeros(50, np.int64)
        stops = np.where(np.arange(50) < batches, LENGTH, 0)  # a row each
        got = encode(params, items, starts, stops, tokens_per_batch=LENGTH)
        np.testing.assert_allclose(got, expected(params, items, starts, stops), rtol=1e-5, atol=1e-5)
    assert encode_module._placed._cache_size() == before + 1


@pytest.mark.parametrize("origin", ["start", "end"])
@pytest.mark.parametrize("tokens", [LENGTH, 3 * LENGTH + 2, 1000])
def test_states_are_those_of_each_history_alone(data, origin, tokens):
    params, items, starts, stops = data
    times = np.arange(len(items), dtype=np.int32)
    options = {"position_origin": origin, "tokens_per_batch": tokens}
    got = encode(params, items, starts, stops, times, **options)
    np.testing.assert_allclose(
        got, expected(params, items, starts, stops, origin, times), rtol=1e-5, atol=1e-5
    )
    got = encode(params, jnp.asarray(items), starts, stops, **options)
    np.testing.assert_allclose(got, expected(params, items, starts, stops, origin), rtol=1e-5, atol=1e-5)


def test_states_of_a_batch_are_not_kept_with_its_unused_slots(data, monkeypatch):
    """One row has a slot for each of eight histories, and so have all others, which hold one history each."""
    params, items, *_ = data
    lengths = np.array([LENGTH] * 40 + [1] * 8)
    batches, shape, alive = 41, (LENGTH, WIDTH), []
    last_states = encode_module._last_states

    def watched(*arguments):
        alive.append(sum(x.shape == shape for x in jax.live_arrays()))
        return last_states(*arguments)

    monkeypatch.setattr(encode_module, "_last_states", watched)
    encode(params, items, np.zeros(48, np.int64), lengths, tokens_per_batch=LENGTH)
    assert len(alive) == batches
    assert max(alive) <= alive[0] + parallel.workers(waiting=1) + 1


def test_empty_histories_have_the_zero_state(data):
    params, items, starts, _ = data
    got = encode(params, items, starts[:4], starts[:4])
    np.testing.assert_array_equal(got, np.zeros((4, WIDTH), np.float32))
    got = encode(params, np.zeros(0, np.int32), [0, 0], [0, 0])
    assert got.shape == (2, WIDTH)


def test_calls_of_many_sizes_share_few_programs(data):
    params, items, starts, stops = data
    encode(params, items, starts, stops)
    before = encode_module._last_states._cache_size()
    for n in (25, 24, 22):
        encode(params, items[: stops[n - 1]], starts[:n], stops[:n])
    assert encode_module._last_states._cache_size() <= before + 1


def test_bad_histories_are_refused(data):
    params, items, starts, stops = data
    with pytest.raises(
        ConfigError, match=r"tokens_per_batch must be at least max_length .* got 7 for max_length 8"
    ):
        encode(params, items, starts, stops, tokens_per_batch=7)
    with pytest.raises(DataError, match=r"histories must lie inside the log of \d+ interactions"):
        encode(params, items, starts, stops + 1)


def test_batches_under_way_at_once_keep_their_order(data, monkeypatch):
    """On a CPU with one device; the tests have eight."""
    params, items, starts, stops = data
    assert parallel.workers() == 1
    monkeypatch.setattr(parallel, "workers", lambda waiting=0: 3)
    for tokens in (LENGTH, 3 * LENGTH, 1000):
        got = encode(params, items, starts, stops, tokens_per_batch=tokens)
        np.testing.assert_allclose(got, expected(params, items, starts, stops), rtol=1e-5, atol=1e-5)
    called = []

    def fails_late(batch):
        called.append(batch)
        if batch == 3:
            raise ConfigError("batch 3")
        return jnp.zeros(1)

    with pytest.raises(ConfigError, match="batch 3"):
        parallel.map_batches(fails_late, list(range(6)), 3)
    assert called[0] == 0


@pytest.mark.parametrize("remove_seen", [True, False])
@pytest.mark.parametrize("several", [False, True])
def test_evaluation_equals_the_oracle(data, make_cases, remove_seen, several):
    params, items, starts, stops = data
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 4, len(starts)) if several else np.ones(len(starts), int)
    targets = [rng.choice(np.arange(1, N_ITEMS + 1), n, replace=False) for n in sizes]
    cases = make_cases(starts, stops, targets)
    known = np.arange(N_ITEMS + 1) % 5 != 0
    got = evaluate_cases(
        ranker(params), cases, items, EvaluationConfig(remove_seen=remove_seen), known_items=known
    )
    # Values of the same float32 states: what is under test here is who is ranked among whom.
    states = np.asarray(encode(params, items, starts, stops))
    want = []
    for row, own in enumerate(targets):
        struck = items[starts[row] : stops[row]] if remove_seen else []
        scores = oracle.strike(oracle.score_matrix(states[row : row + 1], params), [struck])
        want += [oracle.ranks(scores, [target])[0] for target in own]
    np.testing.assert_array_equal(got.ranks, want)
    assert got.ranks.dtype == np.int32
    assert got.counts["cases"] == (sizes > 0).sum() == len(got.users)
    assert got.counts["targets"] == len(want)
    assert got.counts["users_without_targets"] == (sizes == 0).sum()
    assert got.counts["targets_unseen_in_training"] == sum(t % 5 == 0 for own in targets for t in own)
    repeats = sum(t in items[a:b] for a, b, own in zip(starts, stops, targets, strict=True) for t in own)
    assert got.counts["targets_in_history"] == repeats > 0
    assert got.counts["targets_missed_as_seen"] == (repeats if remove_seen else 0)
    assert (got.ranks == MISSED).sum() == got.counts["targets_missed_as_seen"]
    assert got.protocol.startswith("full corpus; seen items " + ("removed" if remove_seen else "kept"))
    assert got.metrics["HR@5"] == pytest.approx(got.values("HR@5").mean())
    assert ("Precision@5" in got.metrics) == several


def test_as_many_targets_as_cases_need_not_be_one_each(data):
    """A case without a target beside one with two: the state of each target is that of its own case."""
    params, items, starts, stops = data
    histories = Histories(items, starts[:4], stops[:4])
    targets = np.array([7, 9, 11, 13], np.int32)
    got = ranker(params).rank(RankingCases(histories, targets, np.array([0, 0, 2, 3, 4])))
    rows = np.array([1, 1, 2, 3])
    alone = RankingCases(histories.select(rows), targets, np.arange(5))
    np.testing.assert_array_equal(got, ranker(params).rank(alone))


def test_an_item_that_a_case_holds_out_twice_is_one_target(data, make_cases):
    params, items, starts, stops = data
    config = EvaluationConfig(remove_seen=False)
    twice = make_cases(starts, stops, [[7, 9, 7, 7], [3, 3]] + [[5]] * (len(starts) - 2))
    once = make_cases(starts, stops, [[7, 9], [3]] + [[5]] * (len(starts) - 2))
    got, want = (evaluate_cases(ranker(params), cases, items, config) for cases in (twice, once))
    assert (got.metrics, got.counts) == (want.metrics, want.counts)
    np.testing.assert_array_equal(got.targets, want.targets)
    asked = ranking_cases(twice, items)
    np.testing.assert_array_equal(asked.target_offsets, want.target_offsets)
    # Counted once for each time, the best list would have an NDCG of 2 / 1.63.
    assert distinct_targets(once) is once


def test_what_is_saved_comes_back(data, make_cases, tmp_path):
    params, items, starts, stops = data
    cases = make_cases(starts, stops, [[1]] * len(starts))
    saved = evaluate_cases(ranker(params), cases, items)
    saved.save(tmp_path / "ranks.npz", {"fingerprint": "f", "split": {"protocol": "leave-one-out"}})
    loaded, meta = Evaluation.load(tmp_path / "ranks.npz")
    assert meta == {"fingerprint": "f", "split": {"protocol": "leave-one-out"}}
    np.testing.assert_array_equal(loaded.ranks, saved.ranks)
    assert (loaded.metrics, loaded.counts, loaded.protocol) == (saved.metrics, saved.counts, saved.protocol)
    (tmp_path / "bad.npz").write_bytes(b"not ranks")
    with pytest.raises(DataError, match="expected per-user ranks that a run saved"):
        Evaluation.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="expected per-user ranks that a run saved"):
        Evaluation.load(tmp_path / "absent.npz")


def test_bad_requests_are_refused(data, make_cases):
    params, items, starts, stops = data
    cases = make_cases(starts, stops, [[1]] * len(starts))
    with pytest.raises(ConfigError, match="ks must be cutoffs from 1 to the catalogue's 40 items, got 41"):
        evaluate_cases(ranker(params), cases, items, EvaluationConfig(ks=(5, 41)))
    empty = make_cases(starts, stops, [[]] * len(starts))
    with pytest.raises(DataError, match="cases must have a target to rank, got 25 cases and none has one"):
        evaluate_cases(ranker(params), empty, items)


def test_histories_that_are_laid_out_in_blocks_are_seen_items(monkeypatch):
    monkeypatch.setattr(stretches, "BLOCK", 7)
    rng = np.random.default_rng(4)
    log = rng.integers(1, 9, 60).astype(np.int32)
    starts = rng.integers(0, 40, 30)
    stops = starts + rng.integers(0, 20, 30) * (rng.random(30) < 0.8)
    for rows in (np.arange(30), rng.integers(0, 30, 50), np.arange(0), np.flatnonzero(starts == stops)):
        lazy = SeenHistories(log, starts, stops).select(rows)
        lists = [log[a:b] for a, b in zip(starts[rows], stops[rows], strict=True)]
        offsets = np.cumsum([0, *map(len, lists)])
        whole = SeenItems(offsets, np.concatenate([*lists, log[:0]]))
        items = rng.integers(1, 9, len(rows))
        held = [item in own for item, own in zip(items, lists, strict=True)]
        for seen in (lazy, whole):
            assert seen.holds(items).tolist() == held
            assert seen.bounds() == ((whole.items.min(), whole.items.max()) if offsets[-1] else None)
            np.testing.assert_array_equal(seen.offsets, offsets)
            np.testing.assert_array_equal(seen.items, whole.items)
            np.testing.assert_array_equal(seen.row_numbers(), whole.row_numbers())


def test_successive_targets_do_not_take_the_square_of_the_log(make_cases, monkeypatch):
    """Each of a user's fifty targets has nearly the whole history, a million interactions of a log of 20,000."""
    monkeypatch.setattr(stretches, "BLOCK", 1 << 14)
    users, length, last = 20, 1000, 50
    log = np.random.default_rng(0).integers(1, 51, users * length).astype(np.int32)
    starts = np.repeat(np.arange(users) * length, last)
    stops = starts + np.tile(np.arange(length - last, length), users)
    cases = make_cases(starts, stops, log[stops][:, None].tolist())

    class Rows:
        """Reads the seen items as `rank_targets` does."""

        n_items = 50

        def rank(self, cases):
            seen = as_seen(cases.exclude, len(cases), self.n_items)
            ranks = np.where(seen.holds(cases.targets), MISSED, 1)
            for first in range(0, len(cases), 20):
                part = seen.select(np.arange(first, first + 20))
                assert len(part.row_numbers()) == len(part.items) > 20 * 900
            return ranks

    tracemalloc.start()
    try:
        found = evaluate_cases(Rows(), cases, log, EvaluationConfig())
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert found.counts["targets_missed_as_seen"] == (found.ranks == MISSED).sum() > 0.99 * len(stops)


def test_long_histories_are_excluded_without_being_laid_out(monkeypatch):
    """Successive targets of a user repeat its history: laid out for each they would be the square of it."""
    monkeypatch.setattr(stretches, "LONG", 20)
    rng = np.random.default_rng(3)
    log = rng.integers(1, 9, 400).astype(np.int32)
    stops = np.arange(400, 380, -1)
    starts = np.where(np.arange(20) % 5, 0, stops - np.arange(20))
    wanted = rng.integers(1, 12, 20)
    histories = [set(log[a:b].tolist()) for a, b in zip(starts, stops, strict=True)]
    targets = np.full(20, 9)
    hidden, table = rng.normal(size=(20, 4)), ItemTable(rng.normal(size=(12, 4)).astype(np.float32), None)
    scores = hidden @ np.asarray(table.vectors, np.float64).T
    left = [[i for i in range(1, 12) if i not in own] for own in histories]
    want = [1 + sum(scores[row, i] > scores[row, 9] for i in own) for row, own in enumerate(left)]
    laid_out = []
    ranges = stretches.ranges
    for module in (stretches, seen_module):
        monkeypatch.setattr(module, "ranges", lambda *bounds: laid_out.append(bounds[1]) or ranges(*bounds))
    seen = SeenHistories(log, starts, stops)
    assert seen.holds(wanted).tolist() == [w in own for w, own in zip(wanted, histories, strict=True)]
    rows, items = seen.distinct(11)
    assert set(zip(rows.tolist(), items.tolist(), strict=True)) == {
        (row, i) for row, own in enumerate(histories) for i in own
    }
    laid = np.concatenate([log[a:b] for a, b in zip(starts, stops, strict=True)])
    rows, items = SeenItems(seen.offsets, laid).distinct(11)
    assert len(rows) == sum(map(len, histories))
    monkeypatch.setattr(SeenHistories, "bounds", lambda _: (1, 8))  # reads every history once
    np.testing.assert_array_equal(rank_targets(hidden, table, targets, seen), want)
    assert max((int(sizes.max(initial=0)) for sizes in laid_out), default=0) <= 20
