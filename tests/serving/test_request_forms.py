"""Forms in which callers give requests: columns of tables, None for some histories, dates, histories without items."""

import dataclasses

import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxrec.data import load_dataset
from jaxrec.data.catalogue import AttributeTable
from jaxrec.errors import DataError
from jaxrec.serving.explain import explain
from jaxrec.serving.requests import Request, RequestReader, relative_times, requests_of
from jaxrec.serving.runtime import ArtefactError, _check_times
from tests.helpers import small_dataset

DATASET = small_dataset()
HISTORIES = [["i1", "i2"], ["i3"]]


@pytest.mark.parametrize("column", [pd.Series, pl.Series, np.array, tuple, iter])
def test_a_column_has_a_value_for_each_history(column):
    """A column of users was the id of one unknown user, and each was answered as a new one."""
    requests = requests_of(HISTORIES, user=column(["u1", "u2"]), k=column([3, 4]))
    assert [str(request.user) for request in requests] == ["u1", "u2"]
    prepared = RequestReader(DATASET, True, needs_times=False, needs_users=True).read(requests)
    assert [request.user for request in prepared] == [1, 2]
    assert [request.k for request in prepared] == [3, 4]
    with pytest.raises(DataError, match="user must have one id for each of the 2 histories, got 1"):
        requests_of(HISTORIES, user=column(["u1"]))


def test_a_history_may_have_no_filter_beside_others_that_have_one():
    requests = requests_of(HISTORIES, exclude=[None, ["i4"]], allow=[["i5", "i4"], None])
    first, second = RequestReader(DATASET, True, needs_times=False).read(requests)
    assert (first.removed.tolist(), first.allowed.tolist()) == ([2, 3], [5, 6])
    assert (second.removed.tolist(), second.allowed) == ([4, 5], None)
    with pytest.raises(DataError, match="exclude must hold ids of the catalogue, got 'None'"):
        RequestReader(DATASET, True, needs_times=False).read(requests_of(HISTORIES, exclude=[None, "i4"]))


@pytest.mark.parametrize("column", [pd.Series, np.float32, list])
def test_whole_numbers_that_come_as_floats_are_the_integers_that_they_are(column):
    """pandas reads integers beside a missing value as floats, and each was an unknown item."""
    data = load_dataset({"user": [1, 1, 2, 2], "item": [101, 102, 103, 101]})
    reader = RequestReader(data, True, needs_times=False)
    history, others = column([102.0, 101.0, 7.0, 101.5]), column([103.0])
    (prepared,) = reader.read(requests_of([history], k=2, exclude=list(others)))
    assert (prepared.known.tolist(), prepared.unknown) == ([2, 1], ["7", "101.5"])
    assert prepared.removed.tolist() == [2, 1, 3]
    with pytest.raises(DataError, match=r"got (np.float32\()?nan\)? as an item id"):
        reader.read(requests_of([column([101.0, np.nan])], k=2))
    as_written = load_dataset({"user": [1, 1], "item": ["101.0", "102.0"]})
    (prepared,) = RequestReader(as_written, True, needs_times=False).read(requests_of([history], k=2))
    assert (prepared.known.tolist(), prepared.unknown) == ([2, 1], ["7", "101.5"])


@pytest.mark.parametrize("form", [list, set, iter])
def test_a_wide_filter_may_be_an_iterator(form, monkeypatch):
    """It was read a second time where it left out many items, and then left out none."""
    monkeypatch.setattr("jaxrec.serving.requests.MANY_ITEMS", 1)
    given = form(["i1", "i2", "i3"])
    requests = [Request(["i5"], exclude=given), Request(["i4"], exclude=given)]
    others = [number for number in range(1, DATASET.n_items + 1) if number not in (2, 3, 4)]
    for prepared in RequestReader(DATASET, True, needs_times=False).read(requests):
        assert prepared.allowed.tolist() == others


def test_requests_with_equal_filters_share_their_candidates():
    """Beside a second filter each request had a list of its own: memory for all requests and all items."""
    requests = requests_of(HISTORIES * 2, allow=["i1", "i2", "i3"], exclude=["i9"])
    mixed = [Request(request.history, allow=request.allow, allow_attributes=["odd"]) for request in requests]
    attributes = AttributeTable.from_lists([["odd"] if i % 2 else [] for i in range(DATASET.n_items)])
    items = dataclasses.replace(DATASET, attributes=attributes)
    prepared = RequestReader(items, True, needs_times=False).read(mixed)
    assert prepared[0].allowed.tolist() == [2, 4]
    assert all(each.allowed is prepared[0].allowed for each in prepared)


@pytest.mark.parametrize("unit", ["D", "s", "ns"])
@pytest.mark.parametrize("form", [np.asarray, list, pd.Series, pl.Series])
def test_dates_are_no_seconds(unit, form):
    """NumPy reads them as numbers of their own unit: days, or nanoseconds."""
    if form is pl.Series and unit == "s":
        unit = "us"
    times = form(np.array(["2020-01-01", "2020-01-02"], f"datetime64[{unit}]"))
    with pytest.raises(DataError, match=r"^timestamps must have[^;]*since 1970; [^;]*$"):
        relative_times(times, np.ones(2, bool))
    with pytest.raises(ArtefactError, match="whole seconds since 1970"):
        _check_times(times)
    assert relative_times([5, 9], np.ones(2, bool)).tolist() == [0, 4]


@pytest.mark.parametrize("times", [[[1, 2], 3], [5, object()], [b"a", 1], [1, None], [[1], [2]]])
def test_what_is_no_time_is_one_clear_error(times):
    with pytest.raises(DataError, match=r"^timestamps must have one entry[^;]*; "):
        relative_times(times, np.ones(2, bool))
    with pytest.raises(ArtefactError, match=r"^timestamps must be whole seconds[^;]*; "):
        _check_times(times)


def test_an_empty_history_needs_no_times():
    reader = RequestReader(DATASET, True, needs_times=True)
    (empty,) = reader.read(requests_of([[]]))
    assert empty.times.tolist() == []
    with pytest.raises(DataError, match=r"needs the time of each interaction.*a column timestamps"):
        reader.read(requests_of([["i1"]]))


def test_any_collection_can_be_explained(recommender):
    want = explain(recommender, ["i1", "?", "i3"], "i12")
    assert explain(recommender, iter(["i1", "?", "i3"]), "i12") == want
    with pytest.raises(DataError, match="got 'i1' as a history"):
        explain(recommender, "i1", "i12")
