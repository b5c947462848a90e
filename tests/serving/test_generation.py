"""Generated sequences against step-by-step re-encoding in NumPy: choices, windows, filters, beams, ranks."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxrec.attention import MultiItemQueryAttentionConfig, SoftmaxAttentionConfig
from jaxrec.data.batches import BatchConfig
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.metrics import MISSED
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.evaluation.seen import SeenItems
from jaxrec.models import GRU4RecConfig, SRGNNConfig, TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.serving.generation import GenerationConfig, cache_obstacle, generate
from jaxrec.serving.rollout import Steps
from jaxrec.training.feed import RelativeSeconds
from tests.attention.variants import QUICK
from tests.models.cases import batch_of, random_parameters

V, L, G = 9, 6, 4
SOFTMAX = TransformerConfig(
    width=4, layers=2, init_scale=0.5, item_bias=True, attention=SoftmaxAttentionConfig(heads=2)
)
#: Encoder, what positions count from, mask and query token, and whether nothing is computed twice.
MODELS = {
    "softmax": (SOFTMAX, "start", "causal", None, True),
    "from the end": (SOFTMAX, "end", "causal", None, False),
    "masked item": (SOFTMAX, "start", "bidirectional", 0, False),
    "gru4rec": (GRU4RecConfig(width=4, hidden_width=6), "start", "causal", None, True),
    "srgnn": (SRGNNConfig(width=4), "start", "causal", None, False),
    "miq, time": (
        TransformerConfig(
            width=4,
            layers=2,
            positions="time-interval",
            attention=MultiItemQueryAttentionConfig(query_window=2),
        ),
        "start",
        "causal",
        None,
        True,
    ),
}
#: A short, a long, an empty, a full and an overfull history, in one log with a time for each interaction.
HISTORIES = ([3, 1], [2, 8, 2, 7, 8], [], [4, 2, 4, 9, 1, 3], [5, 6, 7, 8, 9, 1, 2, 3, 4])
LOG = np.array([item for history in HISTORIES for item in history], np.int32)
TIMES = np.cumsum(np.random.default_rng(3).integers(1, 5, len(LOG))).astype(np.int32)
COUNTS = np.array([0, 5, 2, 9, 1, 1, 7, 3, 0, 4])


def histories():
    stops = np.cumsum([len(history) for history in HISTORIES])
    return Histories(LOG, stops - [len(h) for h in HISTORIES], stops, TIMES)


@functools.cache
def ranker(name, counts=True):
    config, origin, mask, token, _ = MODELS[name]
    spec = DataSpec(V, L, origin, n_special=int(token is not None), has_timestamps=True)
    encoder = config.build(spec)
    batch = batch_of(type("Spec", (), {"origin": origin}), [[(0, [3, 1, 4])]])._replace(
        timestamps=np.zeros((1, L), np.int32)
    )
    params = random_parameters(encoder, batch)
    data = RankingData("00ff00ff", COUNTS if counts else None)
    config = BatchConfig(max_length=L, position_origin=origin)
    return EncoderRanker.build(Forward(encoder, mask, token), params, config, EvaluationConfig(ks=(5,)), data)


def scores_after(name, items, times, planned=0):
    """Scores of all items float64[V+1] after one history, encoded alone: the slow way. ``planned`` = items to come."""
    if not items:
        return np.log1p(COUNTS.astype(np.float64))
    items = list(items)[-(ranker(name).encoding.longest_history) :]
    return encoded(name, tuple(items), tuple(times)[-len(items) :], planned).copy()


@functools.cache
def compiled(name):
    return jax.jit(ranker(name).forward, compiler_options=QUICK)


@functools.cache
def encoded(name, items, times, planned):
    model, origin = ranker(name), MODELS[name][1]
    if model.forward.query_token is not None:
        items, times = [*items, V + 1], [*times, times[-1]]
    batch = batch_of(type("Spec", (), {"origin": origin}), [[(0, items)]])
    if origin == "end":
        batch.positions[0, : len(items)] += planned
    stamps = np.zeros((1, L), np.int32)
    stamps[0, : len(times)] = times
    at = np.array([[len(items) - 1]], np.int32)
    state = np.asarray(compiled(name)(model.params, batch._replace(timestamps=stamps), at), np.float64)[0, 0]
    table = model.forward.encoder.item_table(model.params)
    bias = 0.0 if table.bias is None else np.asarray(table.bias, np.float64)
    return np.asarray(table.vectors, np.float64) @ state + bias


def roll(name, history, times, choose, steps=G, repeats=False, excluded=(), planned=False):
    """Greedy or chosen sequence of one history, and the softmax over the candidates of each step."""
    items, times = list(history), list(times)
    if planned:
        items = items[-(L - steps + 1) :]
        times = times[-len(items) :] if items else []
    chosen, tables = [], []
    for step in range(steps):
        scores = scores_after(name, items, times, steps - 1 - step if planned else 0)
        blocked = {0, *excluded, *(() if repeats else chosen)}
        scores[list(blocked)] = -np.inf
        tables.append(scores)
        if np.isinf(scores).all():
            chosen.append(0)
            continue
        chosen.append(choose(scores, step))
        items.append(chosen[-1])
        times.append(times[-1] if times else 0)
    return chosen, np.array(tables)


def best(scores, step):
    return int(scores.argmax())


def log_softmax(scores):
    top = scores.max()
    return scores - top - np.log(np.exp(scores - top).sum())


def times_of(number):
    h = histories()
    return TIMES[h.starts[number] : h.stops[number]]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "softmax" else pytest.mark.slow) for name in MODELS]
)
def test_greedy_sequences_equal_re_encoding_step_by_step(name):
    """Of histories of every length, those that outgrow L among them; scores, probabilities and entropies too."""
    model = ranker(name)
    assert (cache_obstacle(model) is None) == MODELS[name][-1]
    out = generate(model, histories(), G)
    for e, history in enumerate(HISTORIES):
        items, tables = roll(name, history, times_of(e), best)
        assert out.items[e, 0].tolist() == items, history
        for s, scores in enumerate(tables):
            logs = log_softmax(scores)
            np.testing.assert_allclose(out.scores[e, 0, s], scores[items[s]], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(out.log_probabilities[e, 0, s], logs[items[s]], rtol=1e-4, atol=1e-5)
            entropy = -(np.exp(logs[1:]) * np.where(np.isinf(logs[1:]), 0, logs[1:])).sum()
            np.testing.assert_allclose(out.entropies[e, 0, s], entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("softmax", marks=pytest.mark.slow), "from the end"])
def test_planned_window_lays_the_sequence_out_ahead(name):
    config = GenerationConfig(window="planned")
    assert cache_obstacle(ranker(name), config) is None
    out = generate(ranker(name), histories(), G, config)
    again = generate(ranker(name), histories(), G, GenerationConfig(window="planned", cache="off"))
    np.testing.assert_array_equal(out.items, again.items)
    np.testing.assert_allclose(out.scores, again.scores, rtol=1e-5, atol=1e-5)
    for e, history in enumerate(HISTORIES):
        items, tables = roll(name, history, times_of(e), best, planned=True)
        assert out.items[e, 0].tolist() == items, history
        np.testing.assert_allclose(out.scores[e, 0], tables[np.arange(G), items], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_cache_changes_nothing_but_the_work():
    kept, again = (
        generate(ranker("softmax"), histories(), G, GenerationConfig(cache=cache))
        for cache in ("auto", "off")
    )
    np.testing.assert_array_equal(kept.items, again.items)
    np.testing.assert_allclose(kept.scores, again.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_many_batches_answer_as_one_does(method):
    """Histories in several calls of several batches each, the last of them empty, and in several widths."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(0, 5, 45)
    stops = np.cumsum(lengths)
    many = Histories(
        rng.integers(1, V + 1, stops[-1]).astype(np.int32),
        stops - lengths,
        stops,
        np.sort(TIMES[:1].repeat(stops[-1])),
    )
    model = ranker("softmax")
    config = GenerationConfig(method, **({"beams": 2} if method == "beam" else {}))
    whole = generate(model, many, 3, config)
    few = dataclasses.replace(model.encoding, tokens_per_batch=2 * L)
    parts = generate(dataclasses.replace(model, encoding=few), many, 3, config)
    np.testing.assert_array_equal(parts.items, whole.items)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "from the end"])
def test_calls_of_many_sizes_share_few_programs(name, monkeypatch):
    """Rows were as many as the histories of a call: each call of another size compiled a program of its own."""
    programs = set()

    def record(program, params, prompts, scoring):
        programs.add((program, str(jax.tree.map(np.shape, prompts))))
        zeros = np.zeros((*prompts.lengths.shape, program.beams, program.steps), np.float32)
        return Steps(zeros.astype(np.int32), zeros, zeros, zeros)

    monkeypatch.setattr("jaxrec.serving.generation.roll_out", record)
    drawn = np.random.default_rng(0)
    for count in range(1, 65):
        stops = np.cumsum(drawn.integers(0, 2 * L, count))
        log = drawn.integers(1, V + 1, max(1, stops[-1])).astype(np.int32)
        generate(ranker(name), Histories(log, np.append(0, stops[:-1]), stops), G)
    assert len(programs) <= 32, "sizes are powers of two: 64 sizes of calls, and several programs for some"


def test_times_that_stay_in_their_file_are_read_where_asked():
    """A streamed run has no array of times but what is indexed like one."""
    own = histories()
    seconds = RelativeSeconds(TIMES.astype(np.int64) + 10**9, np.array([0, len(TIMES)]))
    streamed = dataclasses.replace(own, timestamps=seconds)
    relative = dataclasses.replace(own, timestamps=TIMES - TIMES.min())
    one, other = (generate(ranker("miq, time"), each, G) for each in (relative, streamed))
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_filters_and_repeats_of_each_history():
    """Excluded items are out at every step; a generated item is, unless that history may repeat."""
    excluded = [[1], [2, 7, 8], [3], [], list(range(1, V - 1))]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in excluded])])
    seen = SeenItems(offsets, np.array([i for each in excluded for i in each], np.int32))
    repeats = np.array([True, False, True, True, False])
    out = generate(ranker("softmax"), histories(), G, exclude=seen, repeats=repeats)
    for e, history in enumerate(HISTORIES):
        items, _ = roll("softmax", history, times_of(e), best, repeats=repeats[e], excluded=excluded[e])
        assert out.items[e, 0].tolist() == items
    assert (out.items[4, 0] > 0).sum() == 2, "two candidates, then none"
    assert np.isneginf(out.scores[4, 0, 2:]).all()
    assert (out.log_probabilities[4, 0, 2:] == 0).all()


@pytest.mark.slow
def test_ranks_of_targets_along_own_and_along_true_histories():
    model = ranker("softmax")
    targets = np.random.default_rng(5).permuted(np.tile(np.arange(1, V + 1), (5, 1)), axis=1)[:, :G]
    for forced in (False, True):
        out = generate(model, histories(), G, targets=targets, forced=forced)
        missed = 0
        for e, history in enumerate(HISTORIES):
            truth = targets[e]
            choose = (lambda _, step, truth=truth: int(truth[step])) if forced else best
            _, tables = roll("softmax", history, times_of(e), choose)
            for s, scores in enumerate(tables):
                target = scores[truth[s]]
                expected = MISSED if np.isinf(target) else 1 + (scores > target).sum()
                assert out.ranks[e, s] == expected
                missed += expected == MISSED
        assert (missed > 0) == (not forced), "own items may include the target of a later step"


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "temperature"), [(0, 0.7), (3, 2.0)])
def test_draws_follow_the_softmax(top_k, temperature):
    """Frequencies of the first item and of pairs over many copies of one history."""
    copies = 2000
    history = HISTORIES[1]
    many = Histories(np.array(history, np.int32), np.zeros(copies, np.int64), np.full(copies, len(history)))
    config = GenerationConfig("sample", temperature, top_k)
    out = generate(ranker("softmax"), many, 2, config, repeats=True).items[:, 0]

    def probabilities(items):
        scores = scores_after("softmax", items, [0] * len(items))
        scores[0] = -np.inf
        if top_k:
            scores[scores < np.sort(scores)[-top_k]] = -np.inf
        return np.exp(log_softmax(scores / temperature))

    first = probabilities(history)
    pairs = np.array([first[i] * probabilities([*history, i]) for i in range(1, V + 1)])
    counts = np.zeros((V, V + 1))
    np.add.at(counts, (out[:, 0] - 1, out[:, 1]), 1)
    deviation = np.sqrt(np.maximum(pairs * (1 - pairs), 1e-9) / copies)
    assert (np.abs(counts / copies - pairs) < 5 * deviation + 1e-4).all()
    assert (counts[pairs == 0] == 0).all()


@pytest.mark.slow
def test_draws_depend_on_the_seed_and_on_nothing_else():
    def draw(seed, rows=slice(None), cache="auto"):
        config = GenerationConfig("sample", seed=seed, cache=cache)
        return generate(ranker("softmax"), histories().select(np.arange(5)[rows]), G, config).items

    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(1)[:3], draw(1, slice(3)))
    np.testing.assert_array_equal(draw(1), draw(1, cache="off"))
    assert not np.array_equal(draw(1), draw(2))
    nearly_greedy = GenerationConfig("sample", temperature=1e-4)
    np.testing.assert_array_equal(
        generate(ranker("softmax"), histories(), G, nearly_greedy).items,
        generate(ranker("softmax"), histories(), G).items,
    )


def beam_search(name, history, times, steps, beams, divisor=1.0):
    """Beams by their definition: [(log-probability, items)], best first."""
    paths = [(0.0, [])]
    for _ in range(steps):
        longer = []
        for total, items in paths:
            all_times = [*times, *[times[-1] if len(times) else 0] * len(items)]
            scores = scores_after(name, [*history, *items], all_times)
            if history or items:
                scores = scores / divisor
            scores[[0, *items]] = -np.inf
            logs = log_softmax(scores)
            longer += [(total + logs[i], [*items, i]) for i in range(1, V + 1) if i not in items]
        paths = sorted(longer, key=lambda path: -path[0])[:beams]
    return paths


@pytest.mark.parametrize(
    "name",
    ["softmax", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gru4rec", "from the end"))],
)
def test_beams_are_those_of_the_definition(name):
    config = GenerationConfig("beam", beams=3)
    out = generate(ranker(name), histories(), 3, config)
    for e, history in enumerate(HISTORIES):
        expected = beam_search(name, history, list(times_of(e)), 3, 3)
        for w, (total, items) in enumerate(expected):
            assert out.items[e, w].tolist() == items
            np.testing.assert_allclose(out.log_probabilities[e, w].sum(), total, rtol=1e-4, atol=1e-5)


def test_probabilities_are_those_of_an_objective_with_a_temperature():
    """Cosines over 0.05, for one: their own softmax is nearly uniform, and beams of it are other ones."""
    model, divisor = ranker("softmax"), 0.2
    out = generate(model, histories(), 3, GenerationConfig("beam", beams=3), divisor=divisor)
    for e, history in enumerate(HISTORIES):
        for w, (total, items) in enumerate(beam_search("softmax", history, list(times_of(e)), 3, 3, divisor)):
            assert out.items[e, w].tolist() == items
            np.testing.assert_allclose(out.log_probabilities[e, w].sum(), total, rtol=1e-4, atol=1e-4)
    plain, scaled = generate(model, histories(), G), generate(model, histories(), G, divisor=divisor)
    np.testing.assert_array_equal(plain.items, scaled.items)
    np.testing.assert_array_equal(plain.scores, scaled.scores)
    full = np.array([len(history) > 0 for history in HISTORIES])
    assert (scaled.entropies[full] < plain.entropies[full]).all()
    np.testing.assert_array_equal(scaled.entropies[~full, :, 0], plain.entropies[~full, :, 0])
    hot, cold = (GenerationConfig("sample", temperature=temperature) for temperature in (1.5, 0.3))
    np.testing.assert_array_equal(
        generate(model, histories(), G, hot, divisor=divisor).items[full],
        generate(model, histories(), G, cold).items[full],
    )


@pytest.mark.slow
def test_a_wide_beam_finds_the_most_probable_sequence():
    """As many beams as prefixes: nothing is pruned."""
    allowed = (1, 4, 6)
    excluded = [i for i in range(1, V + 1) if i not in allowed]
    seen = SeenItems(np.arange(6) * len(excluded), np.array(excluded * 5, np.int32))
    out = generate(ranker("softmax"), histories(), 3, GenerationConfig("beam", beams=6), exclude=seen)
    for e, history in enumerate(HISTORIES):
        totals = {}
        for order in itertools.permutations(allowed):
            steps = iter(order)
            _, tables = roll(
                "softmax", history, times_of(e), lambda _, s, o=order: o[s], 3, excluded=excluded
            )
            totals[order] = sum(log_softmax(t)[i] for t, i in zip(tables, steps, strict=True))
        ranked = sorted(totals, key=totals.get, reverse=True)
        assert [tuple(row) for row in out.items[e]] == ranked
    longer = generate(ranker("softmax"), histories(), 4, GenerationConfig("beam", beams=6), exclude=seen)
    np.testing.assert_array_equal(longer.items[..., :3], out.items)
    assert (longer.items[..., 3] == 0).all(), "no candidate is left"
    few = generate(ranker("softmax"), histories(), 1, GenerationConfig("beam", beams=6), exclude=seen)
    assert ((few.items > 0).sum(axis=1) == 3).all()


@pytest.mark.slow
def test_one_step_is_recommend():
    """Lists of one item, empty histories and ties included."""
    for name in ("softmax", "from the end", "srgnn"):
        expected = ranker(name).top_k(histories(), 1).items[:, 0]
        np.testing.assert_array_equal(generate(ranker(name), histories(), 1).items[:, 0, 0], expected)


@pytest.mark.slow
def test_equal_scores_follow_the_tie_rule():
    model = ranker("softmax")
    flat = jax.tree.map(np.zeros_like, jax.device_get(model.params))
    tied = EncoderRanker.build(
        model.forward, flat, BatchConfig(max_length=L), EvaluationConfig(ks=(5,)), RankingData("00ff00ff")
    )
    order = tied.top_k(histories(), V).items
    np.testing.assert_array_equal(generate(tied, histories(), V).items[:, 0], order)
    targets = np.tile(order[0, ::-1], (5, 1))
    ranks = generate(tied, histories(), V, targets=targets, forced=True).ranks
    np.testing.assert_array_equal(ranks, np.tile(np.arange(V, 0, -1), (5, 1)))


def test_refusals():
    model = ranker("softmax")
    for options, message in (
        ({"temperature": 0.0}, r"--generation\.temperature must be a finite number above 0; got 0"),
        ({"top_k": 3}, r"--generation\.top-k 3 belongs to --generation\.method sample, got greedy"),
        ({"beams": 2, "method": "sample"}, r"--generation\.beams 2 belongs to --generation\.method beam"),
        ({"method": "best"}, r"--generation\.method must be one of greedy, sample, beam"),
    ):
        with pytest.raises(ConfigError, match=message):
            GenerationConfig(**options)
    for steps in (0, 2.0, True):
        with pytest.raises(ConfigError, match="--steps must be an integer of at least 1"):
            generate(model, histories(), steps)
    with pytest.raises(ConfigError, match=r"--generation\.window planned needs room .* at most 6 steps"):
        generate(model, histories(), 7, GenerationConfig(window="planned"))
    with pytest.raises(ConfigError, match=r"--generation\.beams must be at most the catalogue's 9 items"):
        generate(model, histories(), 2, GenerationConfig("beam", beams=10))
    with pytest.raises(ConfigError, match="forced needs targets"):
        generate(model, histories(), 2, forced=True)
    with pytest.raises(ConfigError, match="targets are ranked along one sequence"):
        generate(model, histories(), 2, GenerationConfig("beam"), targets=np.ones((5, 2)))
    with pytest.raises(
        DataError, match=r"targets must be items from 1 to 9 of shape \(5, 2\), got shape \(5, 3\)"
    ):
        generate(model, histories(), 2, targets=np.ones((5, 3)))
    assert generate(model, histories().select(np.arange(0)), 2).items.shape == (0, 1, 2)
