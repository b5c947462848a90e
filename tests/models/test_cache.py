"""Rows that grow by one position at a time have the states of the whole rows, for every encoder that allows it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.attention.cache import GROWN, KNOWN, CacheStep, rows_of_sequences, with_room
from jaxrec.models import ENCODERS
from tests.attention.variants import QUICK, VARIANTS
from tests.models.cases import CASES, L, batch_of, random_parameters, transformer

#: Encoders of the shared table and mechanisms of the attention table, each in a transformer of two layers.
TABLE = (
    *(case for case in CASES if case.mask == "causal"),
    *(
        transformer(
            f"{line}",
            origin=line.origin,
            attention=dataclasses.replace(line.config),
            positions=line.positions,
            block="original" if line.separate_queries else "pre-norm",
        )
        for line in VARIANTS
        if line.mask == "causal" and "rows_per_group" not in dict(line.options)
    ),
)
#: One case of each way of growing; the others of `TABLE` are slow.
FAST = {
    "pre-norm",
    "gru4rec-deep",
    "stosa",
    "kernel-upper=full,lower=banded,bandwidth=2,per_head=True-none-start",
    "miq-query_window=3,query_level=sum,dummies_as_keys=True,share_dummies=True-rotary-start",
}
#: Histories of 6, 5, 4 and 3 items, of which the last three come one by one: two of the rows begin with padding, and
#: one with nothing else.
HISTORIES = ((3, 1, 3, 3, 1, 5), (2, 8, 2, 7, 8), (4, 2, 4, 9), (6, 6, 1))
STEPS = 3


def grows(case):
    return case.config.build(spec(case)).cache_obstacle() is None


def spec(case):
    return dataclasses.replace(case.spec, has_timestamps=True)


def rows(case):
    """The histories, each ending at the last column, with times."""
    batch = batch_of(case, [[(L - len(items), items)] for items in HISTORIES])
    times = np.cumsum(np.random.default_rng(0).integers(0, 9, batch.items.shape), axis=1)
    # New interactions have no time of their own: they share that of the newest one that is known.
    times[:, L - STEPS :] = times[:, L - STEPS - 1 : L - STEPS]
    return batch._replace(timestamps=times.astype(np.int32))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case.name in FAST else pytest.mark.slow, id=case.name)
        for case in TABLE
        if grows(case)
    ],
)
def test_new_positions_have_the_states_of_whole_rows(case):
    encoder, batch = case.config.build(spec(case)), rows(case)
    params = random_parameters(encoder, batch)
    known = L - STEPS

    @functools.partial(jax.jit, compiler_options=QUICK)
    def grown(params, batch):
        whole = encoder.apply({"params": params}, batch)
        first = jax.tree.map(lambda x: x[:, :known], batch)
        last = jnp.full((len(HISTORIES), 1), known - 1, jnp.int32)
        hidden, stored = encoder.apply(
            {"params": params}, first, False, last, cache=CacheStep(), mutable=[KNOWN]
        )
        stays, grown = with_room(stored, STEPS)

        def step(grown, column):
            # Columns to come are not known, so that they must not be read.
            unknown = jnp.arange(L)[None] > column
            so_far = batch._replace(
                items=jnp.where(unknown, 7, batch.items), segments=jnp.where(unknown, 0, batch.segments)
            )
            hidden, grown = encoder.apply(
                {"params": params, **stays, **grown}, so_far, False, cache=CacheStep(column), mutable=[GROWN]
            )
            return grown, hidden[:, 0]

        _, others = jax.lax.scan(step, grown, jnp.arange(known, L, dtype=jnp.int32))
        return whole, jnp.concatenate([hidden[:, 0][None], others])

    whole, states = jax.device_get(grown(params, batch))
    expected = whole[:, known - 1 :].swapaxes(0, 1)
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(states[1:]).max() > 0.1


#: Cases of each way in which stored arrays depend on columns or on sequences.
PACKED = (
    "softmax--rotary-start",
    "gru4rec-deep",
    "miq-query_window=3,query_level=sum,dummies_as_keys=True,share_dummies=True-rotary-start",
    "kernel-upper=full,lower=banded,bandwidth=2,per_head=True-none-start",
    "stosa",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "rotary" in name[:16] else pytest.mark.slow) for name in PACKED]
)
def test_packed_histories_grow_in_rows_of_their_own(name):
    """Two histories share a row as long as they are known."""
    case = next(case for case in TABLE if case.name == name)
    encoder, alone = case.config.build(spec(case)), jax.tree.map(lambda x: x[:3], rows(case))
    params = random_parameters(encoder, alone)
    known = L - STEPS
    sizes = [len(items) - STEPS for items in HISTORIES[:3]]
    places = [(0, 0), (0, sizes[0]), (1, 0)]
    packed = batch_of(
        case,
        [
            [(place[1], HISTORIES[h][: sizes[h]]) for h, place in enumerate(places) if place[0] == row]
            for row in (0, 1)
        ],
    )
    times = np.zeros_like(packed.items)
    for h, (row, column) in enumerate(places):
        times[row, column : column + sizes[h]] = alone.timestamps[h, known - sizes[h] : known]
    packed = packed._replace(timestamps=times)
    ends = np.array([[sizes[0] - 1, sizes[0] + sizes[1] - 1], [sizes[2] - 1, 0]], np.int32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def grown(params, packed, batch):
        variables, index = {"params": params}, jnp.arange(3)
        states, stored = encoder.apply(variables, packed, False, ends, cache=CacheStep(), mutable=[KNOWN])
        stays, grown = with_room(rows_of_sequences(stored, jnp.asarray(ends), index, known), STEPS)
        out = [states.reshape(-1, states.shape[-1])[index]]
        for column in range(known, L):
            hidden, grown = encoder.apply(
                {**variables, **stays, **grown}, batch, cache=CacheStep(jnp.int32(column)), mutable=[GROWN]
            )
            out.append(hidden[:, 0])
        return jnp.stack(out), encoder.apply(variables, batch)[:, known - 1 :].swapaxes(0, 1)

    np.testing.assert_allclose(*jax.device_get(grown(params, packed, alone)), rtol=1e-4, atol=1e-5)


def test_what_grows_and_what_does_not():
    by_name = {case.name: case.config.build(spec(case)) for case in TABLE}
    reasons = {name: encoder.cache_obstacle() for name, encoder in by_name.items()}
    assert sum(reason is None for reason in reasons.values()) > 25
    assert "count from the newest" in reasons["post-norm"]
    assert by_name["post-norm"].cache_obstacle(planned=True) is None
    assert "computes all positions" in reasons["srgnn"]
    assert reasons["gru4rec"] is None
    kernel = "kernel-upper=full,lower=full-none-end"
    assert "full factor count from the newest" in reasons[kernel]
    assert by_name[kernel].cache_obstacle(planned=True) is None
    assert "RefinedAttentionConfig" in reasons["awrsr--none-start"]
    assert "RefinedAttentionConfig" in by_name["awrsr--none-start"].cache_obstacle(planned=True)
    assert {ENCODERS[case.encoder] for case in TABLE} == set(ENCODERS.values())
    assert {line.mechanism for line in VARIANTS} == set(ATTENTION)


@pytest.mark.slow
def test_planned_positions_from_the_end_grow_as_whole_rows_do():
    """With the end fixed in advance, the positions of the whole row are those of the plan."""
    case = next(case for case in CASES if case.name == "post-norm")
    encoder, batch = case.config.build(spec(case)), rows(case)
    params = random_parameters(encoder, batch)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def last_states(params, batch):
        variables, first = {"params": params}, jax.tree.map(lambda x: x[:, : L - 1], batch)
        _, stored = encoder.apply(variables, first, cache=CacheStep(), mutable=[KNOWN])
        known, grown = with_room(stored, 1)
        state, _ = encoder.apply(
            {**variables, **known, **grown}, batch, cache=CacheStep(jnp.int32(L - 1)), mutable=[GROWN]
        )
        return state[:, 0], encoder.apply(variables, batch)[:, -1]

    np.testing.assert_allclose(*last_states(params, batch), rtol=1e-4, atol=1e-5)
