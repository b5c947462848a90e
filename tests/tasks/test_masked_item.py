"""Masked items: the distribution of masks, the loss against an oracle, ranking with an appended token."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.attention import KernelAttentionConfig, SoftmaxAttentionConfig
from jaxrec.data.batches import BatchConfig
from jaxrec.errors import ConfigError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.encode import Forward
from jaxrec.evaluation.histories import Histories
from jaxrec.evaluation.ranker import EncoderRanker, RankingData
from jaxrec.models import GRU4RecConfig, SRGNNConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.objectives import CrossEntropyConfig
from jaxrec.tasks import MaskedItemConfig, Resources
from tests.models.cases import random_parameters
from tests.models.oracles import float64, transformer
from tests.tasks.data import L, V, toy_batch, toy_encoder

HISTORIES = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5], [8]]
ROWS = [[0], [1, 2], [3]]


def task(**options):
    return MaskedItemConfig(**options).build(toy_encoder(), CrossEntropyConfig())


def draws(prepare, batch, n=4000):
    """What ``prepare`` gives for many keys."""
    keys = jax.random.split(jax.random.key(7), n)
    return jax.device_get(jax.jit(jax.vmap(lambda key: prepare(batch, key, Resources())))(keys))


def test_masks_replace_items_and_become_targets():
    batch = toy_batch(HISTORIES, ROWS)
    out = draws(task(mask_rate=0.3).prepare, batch, 50)
    masked = out.weights > 0
    assert (out.items[masked] == V + 1).all()
    items = np.broadcast_to(batch.items, masked.shape)
    np.testing.assert_array_equal(out.targets, np.where(masked, items, 0))
    np.testing.assert_array_equal(out.items[~masked], items[~masked])
    for segment in (1, 2):
        inside = np.asarray(batch.segments) == segment
        rows = inside.any(axis=1)
        assert (masked & inside).any(axis=2)[:, rows].all(), "every sequence has a masked position"


@pytest.mark.parametrize(("rate", "last_only"), [(0.3, 0.0), (0.2, 0.25), (0.5, 1.0)])
def test_distribution_of_masks(rate, last_only):
    batch, n = toy_batch(HISTORIES, ROWS), 4000
    share = (draws(task(mask_rate=rate, last_only_rate=last_only).prepare, batch, n).weights > 0).mean(axis=0)
    expected = np.zeros(share.shape)
    for row, members in enumerate(ROWS):
        column = 0
        for member in members:
            size = len(HISTORIES[member])
            expected[row, column : column + size] = (1 - last_only) * rate
            column += size
            expected[row, column - 1] += (1 - last_only) * (1 - rate) ** size + last_only
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / n**0.5)
    assert (share[expected == 0] == 0).all()


def test_sequences_of_a_row_are_masked_independently():
    out = draws(task(mask_rate=0.5, last_only_rate=0.5).prepare, toy_batch([[1, 2, 3], [4, 5, 6]], [[0, 1]]))
    first, second = out.weights[:, 0, 1], out.weights[:, 0, 4]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_loss_is_the_cross_entropy_of_masked_items_over_the_catalogue():
    masked_task = task(mask_rate=0.4)
    batch = toy_batch(HISTORIES, ROWS)
    prepared = masked_task.prepare(batch, jax.random.key(3), Resources())
    encoder = masked_task.encoder
    params = random_parameters(encoder, batch)
    total, weight = jax.jit(masked_task.loss)(params, prepared, jax.random.key(0), Resources())
    exact, expected = float64(params), 0.0
    for row, members in enumerate(ROWS):
        for number in range(len(members)):
            columns = np.flatnonzero(np.asarray(batch.segments)[row] == number + 1)
            hidden = transformer(encoder, exact, np.asarray(prepared.items)[row, columns], "bidirectional")
            for state, column in zip(hidden, columns, strict=True):
                if prepared.weights[row, column]:
                    logits = exact["items"]["table"][1:] @ state
                    expected += np.log(np.exp(logits).sum()) - logits[batch.items[row, column] - 1]
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(weight) == float((prepared.weights > 0).sum())


@pytest.mark.parametrize("resident", [True, False])
def test_ranking_appends_the_mask_token_and_reads_no_held_out_item(resident):
    encoder = toy_encoder()
    params = random_parameters(encoder, toy_batch(HISTORIES))
    log = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)
    starts, stops = np.array([0, 1, 2, 5, 9]), np.array([9, 4, 2, 6, 11])

    def encode(log):
        ranker = EncoderRanker.build(
            Forward(encoder, "bidirectional", query_token=0),
            params,
            BatchConfig(max_length=L),
            EvaluationConfig(ks=(5,)),
            RankingData(resident=resident),
        )
        return np.asarray(ranker.encode(Histories(log, starts, stops)))

    states = encode(log)
    for state, start, stop in zip(states, starts, stops, strict=True):
        if start == stop:
            assert not state.any()
            continue
        history = [*log[start:stop][-(L - 1) :], V + 1]
        expected = transformer(encoder, float64(params), history, "bidirectional")[-1]
        np.testing.assert_allclose(state, expected, rtol=1e-4, atol=1e-5)
    alone = np.array([0, 1, 2, 5, 9])  # the item after each history is not read
    for e, stop in zip(alone, stops, strict=True):
        if stop < len(log):
            other = log.copy()
            other[stop] = other[stop] % V + 1
            place = np.flatnonzero(starts == e)[0]
            np.testing.assert_array_equal(encode(other)[place], states[place])


def test_time_of_the_query_is_that_of_the_newest_interaction():
    config = dataclasses.replace(toy_encoder().config, positions="time-interval")
    encoder = config.build(DataSpec(V, L, n_special=1, has_timestamps=True))
    batch = toy_batch(HISTORIES)
    params = random_parameters(encoder, batch._replace(timestamps=batch.items))
    log, times = np.arange(1, 7, dtype=np.int32), np.array([0, 5, 9, 100, 1000, 9000], np.int32)

    def encode(times):
        ranker = EncoderRanker.build(
            Forward(encoder, "bidirectional", query_token=0),
            params,
            BatchConfig(max_length=L),
            EvaluationConfig(ks=(5,)),
            RankingData(),
        )
        return np.asarray(ranker.encode(Histories(log, np.array([0]), np.array([3]), times)))

    late = times.copy()
    late[3] = 5000
    np.testing.assert_array_equal(encode(times), encode(late))


@pytest.mark.parametrize("config", [GRU4RecConfig(width=4), SRGNNConfig(width=4)])
def test_encoders_of_one_direction_are_refused(config):
    encoder = config.build(DataSpec(V, L, n_special=1))
    with pytest.raises(
        ConfigError, match=r"--task masked-item reads histories in both directions.*transformer"
    ):
        MaskedItemConfig().build(encoder, CrossEntropyConfig())


def test_refusals():
    with pytest.raises(ConfigError, match=r"--task\.mask-rate must be a finite number in \(0, 1\]; got 0"):
        MaskedItemConfig(mask_rate=0.0)
    # Arrays of the positional kernel have as many entries as the longest row.
    for attention in (SoftmaxAttentionConfig(), KernelAttentionConfig(lower="toeplitz")):
        options = dataclasses.replace(toy_encoder().config, attention=attention, positions="none")
        short = options.build(DataSpec(V, 1, n_special=1))
        with pytest.raises(ConfigError, match=r"--batches\.max-length must be at least 2 .* got 1"):
            MaskedItemConfig().build(short, CrossEntropyConfig())
