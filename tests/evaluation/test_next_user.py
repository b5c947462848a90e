"""Scores from the items' side and ensembles, against float64 loops: probabilities, scales, weights, seen items, ties."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.splits import EvaluationCases
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import EncodingOptions
from jaxrec.evaluation.ensemble import (
    EncoderScorer,
    ScoreEnsemble,
    best_weight,
    on_scale,
    weight_curve,
)
from jaxrec.evaluation.evaluate import evaluate_cases
from jaxrec.evaluation.histories import Histories, ranking_cases
from jaxrec.evaluation.next_user import NextUserScorer
from jaxrec.evaluation.ranker import EncoderRanker, ScoreRanker
from jaxrec.evaluation.ranking import candidate_table
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.layers import take_positions
from tests.evaluation import oracle

V, U, WIDTH, LENGTH, TIES = 17, 11, 5, 4, 77


def apply_fn(params, batch, at):
    """The sum of a segment's vectors, the newest counting twice."""
    index = jnp.arange(batch.items.shape[1])
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (index[:, None] >= index[None])[None]
    vectors = params[batch.items]
    return take_positions(jnp.einsum("bij,bjd->bid", same.astype(jnp.float32), vectors) + vectors, at)


def state(table, members):
    """The same of one sequence, cut to its newest members."""
    own = np.asarray(members)[-LENGTH:]
    return table[own].sum(axis=0) + table[own[-1]]


def model(rng, n, biased=True):
    """A ranker of n items, and its table and biases."""
    table = rng.normal(size=(n + 1, WIDTH)).astype(np.float32)
    bias = rng.normal(size=n + 1).astype(np.float32) if biased else None
    ranker = EncoderRanker(
        apply_fn, jnp.asarray(table), candidate_table(ItemTable(table, bias)), EncodingOptions(LENGTH)
    )
    return ranker, table.astype(np.float64), np.zeros(n + 1) if bias is None else bias.astype(np.float64)


class Sides:
    """A log of random histories and its transpose, with a model of each side."""

    def __init__(self, biased=True, seed=0):
        rng = np.random.default_rng(seed)
        self.histories = [rng.integers(1, V - 1, rng.integers(1, 7)) for _ in range(U)]
        self.targets = rng.integers(1, V + 1, U).astype(np.int32)
        self.targets[0] = self.histories[0][0]  # a seen one
        self.sequences = [
            [u + 1 for u, own in enumerate(self.histories) for each in own if each == item]
            for item in range(1, V + 1)
        ]
        assert any(not own for own in self.sequences)
        assert any(len(own) > LENGTH for own in self.sequences)
        self.items, self.item_table, self.item_bias = model(rng, V, biased)
        self.users, self.user_table, self.user_bias = model(rng, U, biased)
        self.counts = np.array([0, *map(len, self.sequences)])
        log = np.concatenate(self.histories).astype(np.int32)
        stops = np.cumsum([len(own) for own in self.histories])
        starts = stops - [len(own) for own in self.histories]
        self.log = log
        self.cases = EvaluationCases(
            np.arange(U, dtype=np.int32), starts, stops, self.targets, np.arange(U + 1)
        )
        members = np.array([u for own in self.sequences for u in own], np.int32)
        ends = np.cumsum(self.counts[1:])
        self.transposed = Histories(members, ends - self.counts[1:], ends)

    def scorer(self, popularity=0.0, **softmax):
        return NextUserScorer.build(self.users, self.transposed, self.counts, popularity, **softmax)

    def expected(self, popularity=0.0, temperature=1.0):
        """float64[U, V+1] by the definition, user by user and item by item."""
        out = np.zeros((U, V + 1))
        of_user = np.array([len(own) for own in self.histories]) + 1.0
        for item in range(1, V + 1):
            own = self.sequences[item - 1]
            if own:
                logits = (self.user_table @ state(self.user_table, own) + self.user_bias) / temperature
                chances = np.exp(logits[1:]) / np.exp(logits[1:]).sum()
            else:
                chances = of_user / of_user.sum()
            prior = (self.counts[item] + 1) / (self.counts[1:] + 1).sum()
            out[:, item] = np.log(chances) + popularity * np.log(prior)
        return out

    def next_item(self):
        """float64[U, V+1] of the next-item model."""
        states = np.stack([state(self.item_table, own) for own in self.histories])
        return states @ self.item_table.T + self.item_bias

    def asked(self):
        return ranking_cases(self.cases, self.log)


def scaled(scores, scale):
    out = np.zeros_like(scores)
    for row in range(len(scores)):
        own = scores[row, 1:]
        if scale == "z-score":
            out[row, 1:] = (own - own.mean()) / own.std()
        else:
            out[row, 1:] = own - np.log(np.exp(own).sum())
    return out


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("popularity", [0.0, 1.0])
def test_next_user_scores_are_log_probabilities(biased, popularity):
    sides = Sides(biased)
    found = sides.scorer(popularity).scores(sides.asked().histories)
    np.testing.assert_allclose(found[:, 1:], sides.expected(popularity)[:, 1:], rtol=1e-4, atol=1e-4)


def test_probabilities_are_those_of_the_softmax_of_training():
    sides = Sides()
    got = sides.scorer(temperature=0.3).scores(sides.asked().histories)
    np.testing.assert_allclose(got[:, 1:], sides.expected(temperature=0.3)[:, 1:], atol=2e-4)
    plain, over = EncoderScorer(sides.items), EncoderScorer(sides.items, 0.25)
    histories = sides.asked().histories
    np.testing.assert_allclose(over.scores(histories), 4 * plain.scores(histories), rtol=1e-6)


def test_probabilities_of_all_users_add_up():
    sides = Sides()
    everyone = Histories(sides.log, np.zeros(U, np.int64), np.zeros(U, np.int64), None, np.arange(U))
    chances = np.exp(sides.scorer().scores(everyone).astype(np.float64))
    np.testing.assert_allclose(chances[:, 1:].sum(axis=0), 1.0, rtol=1e-4)


def test_ranks_remove_seen_items_and_lists_agree():
    sides = Sides()
    ranker = ScoreRanker(sides.scorer(), tie_seed=TIES)
    cases = sides.asked()
    exact = oracle.strike(sides.expected(), sides.histories)
    np.testing.assert_array_equal(ranker.rank(cases), oracle.ranks(exact, sides.targets, TIES))
    assert ranker.rank(cases)[0] == 2**31 - 1, "seen"
    lists = ranker.top_k(cases.histories, 5, cases.exclude)
    np.testing.assert_array_equal(lists.items, oracle.order(exact, TIES)[:, :5])


def test_scores_of_an_encoder_are_its_products():
    sides = Sides()
    scorer, cases = EncoderScorer(sides.items), sides.asked()
    np.testing.assert_allclose(
        scorer.scores(cases.histories)[:, 1:], sides.next_item()[:, 1:], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(ScoreRanker(scorer).rank(cases), sides.items.rank(cases))


def test_empty_histories_are_answered_by_popularity():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(V + 1, WIDTH)).astype(np.float32)
    counts = rng.permutation(V + 1)
    ranker = EncoderRanker(
        apply_fn, jnp.asarray(table), candidate_table(ItemTable(table)), EncodingOptions(LENGTH), counts
    )
    nothing = Histories(np.ones(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))
    (scores,) = EncoderScorer(ranker).scores(nothing)
    assert np.argsort(scores[1:]).tolist() == np.argsort(counts[1:]).tolist()


@pytest.mark.parametrize("scale", ["z-score", "log-softmax"])
def test_scales(scale):
    scores = np.random.default_rng(2).normal(3.0, 2.0, (6, V + 1)).astype(np.float32)
    found = on_scale(scores, scale)
    np.testing.assert_allclose(found, scaled(scores.astype(np.float64), scale), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(on_scale(np.full((1, V + 1), 4, np.float32), "z-score"), 0.0)


@pytest.mark.parametrize("scale", ["z-score", "log-softmax"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_ensemble_is_the_weighted_sum(scale, weight):
    sides = Sides(seed=4)
    ensemble = ScoreEnsemble(EncoderScorer(sides.items), sides.scorer(), weight, scale)
    exact = (1 - weight) * scaled(sides.next_item(), scale) + weight * scaled(sides.expected(), scale)
    found = ensemble.scores(sides.asked().histories)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    ranks = ScoreRanker(ensemble, tie_seed=TIES).rank(sides.asked())
    np.testing.assert_array_equal(
        ranks, oracle.ranks(oracle.strike(exact, sides.histories), sides.targets, TIES)
    )


def test_equal_scores_are_ordered_by_the_rule_of_the_dataset():
    class Flat:
        n_items = V

        def scores(self, histories):
            return np.tile(np.repeat([0.0, 1.0], V // 2 + 1)[: V + 1], (len(histories), 1)).astype(np.float32)

    sides = Sides()
    exact = oracle.strike(
        scaled(Flat().scores(sides.asked().histories).astype(float), "z-score"), sides.histories
    )
    ranks = ScoreRanker(ScoreEnsemble(Flat(), Flat(), 0.4), tie_seed=TIES).rank(sides.asked())
    np.testing.assert_array_equal(ranks, oracle.ranks(exact, sides.targets, TIES))


@pytest.mark.parametrize("targets", [1, 2])
def test_curve_has_the_metric_of_every_weight(targets):
    sides = Sides(seed=6)
    several = np.concatenate([sides.targets, sides.targets % V + 1]).reshape(2, U)[:targets].T.reshape(-1)
    offsets = targets * np.arange(U + 1)
    sides.cases = dataclasses.replace(sides.cases, targets=several, target_offsets=offsets)
    first, second, config = EncoderScorer(sides.items), sides.scorer(), EvaluationConfig(ks=(3,))
    weights = (0.0, 0.25, 1.0)
    curve = weight_curve(
        first, second, sides.cases, sides.log, config, "NDCG@3", weights=weights, tie_seed=TIES
    )
    for weight in weights:
        ranker = ScoreRanker(ScoreEnsemble(first, second, weight), tie_seed=TIES)
        found = evaluate_cases(ranker, sides.cases, sides.log, config).metrics["NDCG@3"]
        assert curve[weight] == pytest.approx(found)
    assert len(set(curve.values())) > 1
    assert best_weight({0.0: 0.1, 0.5: 0.3, 0.2: 0.3}) == 0.2


def test_refusals():
    sides = Sides()
    scorer = sides.scorer()
    unnamed = Histories(sides.log, np.zeros(1, np.int64), np.ones(1, np.int64))
    with pytest.raises(DataError, match=r"these histories name none"):
        scorer.scores(unnamed)
    with pytest.raises(DataError, match=rf"indices from 0 to {U - 1}, got {U} to {U}"):
        scorer.scores(Histories(sides.log, np.zeros(1, np.int64), np.ones(1, np.int64), None, np.array([U])))
    with pytest.raises(DataError, match=rf"each of the {V + 1} items, got {V} sequences"):
        NextUserScorer.build(sides.users, sides.transposed, np.append(sides.counts, 1))
    with pytest.raises(ConfigError, match=r"popularity must be a finite number, at least 0; got -1"):
        sides.scorer(popularity=-1.0)
    with pytest.raises(ConfigError, match=r"from 0 to 1, got \(1.5,\)"):
        ScoreEnsemble(scorer, scorer, 1.5)
    with pytest.raises(ConfigError, match=rf"got {V} and {U} items"):
        ScoreEnsemble(scorer, EncoderScorer(sides.users), 0.5)
