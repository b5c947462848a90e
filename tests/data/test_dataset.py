"""`SequenceDataset`, its strings and attributes, and its life on disk."""

import dataclasses
import json
import os

import numpy as np
import pytest

from jaxrec.data import audit, split_dataset
from jaxrec.data.catalogue import AttributeTable, Catalogue, StringArray
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import DataError


def small(**changes) -> SequenceDataset:
    fields = {
        "items": np.array([1, 2, 3, 2, 1], np.int32),
        "offsets": np.array([0, 3, 5], np.int64),
        "user_ids": ["ann", "bo"],
        "item_ids": ["x", "ÿ", "z"],
        "timestamps": np.array([5, 6, 6, 1, 2], np.int64),
        "item_titles": ["X", "", "Zed — ☃"],
        "attributes": AttributeTable.from_lists([["Drama", "Crime", "Drama"], [], ["Crime"]]),
        "meta": {"name": "small", "steps": []},
    }
    return SequenceDataset(**{**fields, **changes})


class TestStringArray:
    def test_behaves_as_a_sequence(self):
        strings = ["", "abc", "žluť", "☃"]
        packed = StringArray.of(strings)
        assert list(packed) == strings == packed.tolist()
        assert [packed[i] for i in range(-4, 4)] == strings * 2
        assert packed[np.array([3, 0])].tolist() == ["☃", ""]
        assert packed[1:3].tolist() == ["abc", "žluť"]
        assert np.asarray(packed).tolist() == strings
        assert StringArray.of(packed) is packed
        assert packed == StringArray.of(np.array(strings))
        assert packed != StringArray.of(strings[:3])
        assert packed.take(np.array([2, 2, 0, 1])).tolist() == ["žluť", "žluť", "", "abc"]
        assert "n=4" in repr(packed)
        with pytest.raises(IndexError):
            packed[4]

    def test_empty(self):
        assert StringArray.of([]).tolist() == []

    def test_refuses_numbers(self):
        with pytest.raises(DataError, match=r"expected strings, got 7 at position 1"):
            StringArray.of(["a", 7])  # type: ignore[list-item]


def test_properties():
    data = small()
    assert (data.n_users, data.n_items, data.n_interactions, data.name) == (2, 3, 5, "small")
    assert data.lengths.tolist() == [3, 2]
    assert data.history(1).tolist() == [2, 1]
    assert data.item_index("z") == 3
    assert data.item_index("nowhere") is None
    assert data.item_indices(["z", "q", "x"]).tolist() == [3, 0, 1]
    assert data.item_index(1.5) is None
    assert data.item_indices([]).dtype == np.int32
    assert "2 users, 3 items, 5 interactions" in repr(data)


def test_attributes():
    table = small().attributes
    assert list(table.names) == ["Drama", "Crime"]
    assert table.n_attributes == 2
    assert [table.of_item(i).tolist() for i in range(4)] == [[], [1, 2], [], [2]]
    assert table.fingerprint != AttributeTable.from_lists([["Drama"], [], ["Crime"]]).fingerprint


def test_fingerprint_depends_on_content_alone():
    data = small()
    assert data.fingerprint == small(meta={"name": "other"}, item_titles=None, attributes=None).fingerprint
    changed = [
        {"items": np.array([1, 2, 3, 2, 2], np.int32)},
        {"offsets": np.array([0, 2, 5], np.int64), "timestamps": np.array([5, 6, 0, 1, 2], np.int64)},
        {"timestamps": np.array([5, 6, 7, 1, 2], np.int64)},
        {"timestamps": None},
        {"user_ids": ["an", "nbo"]},
        {"item_ids": ["x", "y", "z"]},
    ]
    prints = {small(**change).fingerprint for change in changed}
    assert len(prints | {data.fingerprint}) == len(changed) + 1


def test_fingerprint_is_stable():
    """Checkpoints carry it, so it must not change between releases."""
    assert small().fingerprint == "5a15beba3d4ed1e2c43144ad3bae355a1ffb8b331d4402b10f3f231d039c227a"


@pytest.mark.parametrize("bare", [False, True])
def test_save_and_load(tmp_path, bare):
    data = small(timestamps=None, item_titles=None, attributes=None) if bare else small()
    data.save(tmp_path / "d")
    again = SequenceDataset.load(tmp_path / "d", verify=True)
    assert isinstance(again.items, np.memmap)
    assert again.fingerprint == data.fingerprint == SequenceDataset.load(tmp_path / "d").fingerprint
    np.testing.assert_array_equal(again.items, data.items)
    np.testing.assert_array_equal(again.offsets, data.offsets)
    assert list(again.user_ids) == list(data.user_ids)
    assert again.item_index("ÿ") == 2
    if bare:
        assert again.timestamps is None
        assert again.item_titles is None
        assert again.attributes is None
    else:
        np.testing.assert_array_equal(again.timestamps, data.timestamps)
        assert list(again.item_titles) == list(data.item_titles)
        assert again.attributes.fingerprint == data.attributes.fingerprint
    meta = json.loads((tmp_path / "d" / "meta.json").read_text())
    assert meta["counts"] == {"users": 2, "items": 3, "interactions": 5}
    assert meta["fingerprint"] == data.fingerprint


def test_replaced_arrays_do_not_inherit_the_saved_fingerprint(tmp_path):
    small().save(tmp_path / "d")
    changed = dataclasses.replace(SequenceDataset.load(tmp_path / "d"), timestamps=None)
    assert changed.fingerprint == small(timestamps=None).fingerprint


def test_save_refuses_what_exists(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty: give a new or empty directory, nothing was written"):
        small().save(tmp_path / "d")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="not empty"):
        small().save(tmp_path / "d" / "notes.txt")


class TestDamagedDirectories:
    @pytest.fixture
    def directory(self, tmp_path):
        small().save(tmp_path / "d")
        return tmp_path / "d"

    def edit_meta(self, directory, **changes):
        meta = json.loads((directory / "meta.json").read_text())
        (directory / "meta.json").write_text(json.dumps({**meta, **changes}))

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            SequenceDataset.load(tmp_path / "none")

    def test_foreign(self, tmp_path):
        with pytest.raises(DataError, match=r"no meta\.json"):
            SequenceDataset.load(tmp_path)
        (tmp_path / "meta.json").write_text("[]")
        with pytest.raises(DataError, match="has format 'list', expected"):
            SequenceDataset.load(tmp_path)
        (tmp_path / "meta.json").write_text("{")
        with pytest.raises(DataError, match="not valid JSON"):
            SequenceDataset.load(tmp_path)

    def test_other_version(self, directory):
        self.edit_meta(directory, version=99)
        with pytest.raises(DataError, match="has version 99"):
            SequenceDataset.load(directory)

    def test_truncated_array(self, directory):
        file = directory / "items.npy"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(DataError, match=r"items\.npy' is truncated or damaged"):
            SequenceDataset.load(directory)

    def test_missing_array(self, directory):
        (directory / "offsets.npy").unlink()
        with pytest.raises(DataError, match=r"lacks the file offsets\.npy"):
            SequenceDataset.load(directory)

    def test_array_of_another_shape(self, directory):
        np.save(directory / "items.npy", np.zeros(2, np.int32))
        with pytest.raises(DataError, match=r"meta\.json says <i4 of length 5"):
            SequenceDataset.load(directory)

    def test_meta_of_an_older_release_without_arrays(self, directory):
        self.edit_meta(directory, version=1, arrays={})
        with pytest.raises(DataError, match="lacks item_ids_bytes"):
            SequenceDataset.load(directory)

    def test_a_dataset_of_an_older_release_is_read(self, directory):
        meta = json.loads((directory / "meta.json").read_text())
        entries = {
            name: {k: v for k, v in entry.items() if k != "sample"} for name, entry in meta["arrays"].items()
        }
        self.edit_meta(directory, version=1, arrays=entries)
        assert SequenceDataset.load(directory, verify=True).fingerprint == small().fingerprint

    @pytest.mark.parametrize("verify", [False, True])
    def test_changed_content(self, directory, verify):
        np.save(directory / "items.npy", np.array([1, 2, 3, 3, 1], np.int32))
        with pytest.raises(DataError, match=r"items\.npy' has changed since it was saved"):
            SequenceDataset.load(directory, verify=verify)

    def test_every_flipped_bit_is_seen(self, directory):
        """Small files are compared in full whenever they are opened; titles and attributes too."""
        rng = np.random.default_rng(0)
        for file in sorted(directory.iterdir()):
            content = file.read_bytes()
            for _ in range(8):
                changed = bytearray(content)
                changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
                file.write_bytes(bytes(changed))
                try:
                    again = SequenceDataset.load(directory)
                except DataError:
                    continue
                # A flip in the padding of a header or in white space changes nothing.
                assert again.compute_fingerprint() == small().fingerprint
                assert list(again.item_titles) == list(small().item_titles)
                assert again.meta["name"] == "small"
            file.write_bytes(content)

    def test_a_large_array_is_compared_by_samples(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jaxrec.data.storage.SMALL", 2**16)
        rng = np.random.default_rng(0)
        items = rng.integers(1, 1000, 200_000).astype(np.int32)
        data = SequenceDataset(
            items, np.array([0, len(items)], np.int64), ["u"], [str(i) for i in range(1000)]
        )
        data.save(tmp_path / "d")
        np.save(tmp_path / "d" / "items.npy", items[::-1])
        with pytest.raises(DataError, match="has changed since it was saved"):
            SequenceDataset.load(tmp_path / "d")
        one = items.copy()
        one[2_500] = one[2_500] % 999 + 1  # between two samples
        np.save(tmp_path / "d" / "items.npy", one)
        SequenceDataset.load(tmp_path / "d")
        with pytest.raises(DataError, match="fingerprint is not the one"):
            SequenceDataset.load(tmp_path / "d", verify=True)

    @pytest.mark.parametrize(("place", "item"), [(0, 2**30), (-1, 2**30), (-1, -7), (2500, 0)])
    def test_items_out_of_range_are_seen_when_they_are_used(self, tmp_path, monkeypatch, place, item):
        """A flipped bit between samples: no array as long as the id, no index error."""
        monkeypatch.setattr("jaxrec.data.storage.SMALL", 0)
        monkeypatch.setattr("jaxrec.data.storage.BLOCK", 0)
        items = np.full(10_000, 3, np.int32)
        SequenceDataset(
            items, np.arange(0, 10_001, 10).astype(np.int64), [str(u) for u in range(1000)], list("abc")
        ).save(tmp_path / "d")
        items[place] = item
        np.save(tmp_path / "d" / "items.npy", items)
        data = SequenceDataset.load(tmp_path / "d")
        for use in (split_dataset, audit):
            with pytest.raises(DataError, match=r"is damaged: it holds items outside 1\.\.3"):
                use(data)

    @pytest.mark.parametrize(
        "text",
        ["[" * 100_000, '{"format": "jaxrec.SequenceDataset", "version": 2}', "null", '"text"', "12"]
        + [
            json.dumps({"format": "jaxrec.SequenceDataset", "version": 1, "arrays": arrays})
            for arrays in (
                [],
                3,
                None,
                {"items": None},
                {"items": {"dtype": "<i4"}},
                {"../items": {"dtype": "<i4", "length": 5}},
            )
        ],
    )
    def test_damaged_meta(self, directory, text):
        (directory / "meta.json").write_text(text)
        with pytest.raises(DataError):
            SequenceDataset.load(directory)

    def test_pipes_are_not_opened(self, directory):
        for name in ("items.npy", "meta.json"):
            (directory / name).unlink()
            os.mkfifo(directory / name)
            with pytest.raises(DataError, match=r"lacks the file items\.npy|has no meta\.json"):
                SequenceDataset.load(directory)

    @pytest.mark.parametrize(
        "content", [b"", b"x", b"\x93NUMPY\x01\x00v\x00{'descr': '<i4'", b"PK\x03\x04" + bytes(50)]
    )
    def test_damaged_array(self, directory, content):
        (directory / "items.npy").write_bytes(content)
        with pytest.raises(DataError, match="truncated or damaged"):
            SequenceDataset.load(directory)

    def test_a_zip_of_arrays_in_place_of_an_array(self, directory):
        with (directory / "items.npy").open("wb") as file:
            np.savez(file, a=np.zeros(3))
        with pytest.raises(DataError, match="truncated or damaged"):
            SequenceDataset.load(directory)


class TestCatalogue:
    def test_look_up(self):
        catalogue = small().catalogue
        assert (catalogue.n_items, catalogue.name) == (3, "small")
        assert catalogue.index("z") == 3
        assert catalogue.index("nowhere") is None
        assert catalogue.indices(["z", "q", "x"]).tolist() == [3, 0, 1]
        assert catalogue.original_ids([3, 1]) == ["z", "x"]
        assert catalogue.titles_of([3]) == ["Zed — ☃"]
        assert small(item_titles=None).catalogue.titles_of([3]) is None

    @pytest.mark.parametrize("bare", [False, True])
    def test_save_and_load(self, tmp_path, bare):
        data = small(item_titles=None, attributes=None) if bare else small()
        data.catalogue.save(tmp_path / "c")
        again = Catalogue.load(tmp_path / "c")
        assert list(again.ids) == ["x", "ÿ", "z"]
        assert again.meta["source_fingerprint"] == data.fingerprint
        assert (again.titles is None) == (again.attributes is None) == bare
        if not bare:
            assert list(again.titles) == list(data.item_titles)
            assert again.attributes.fingerprint == data.attributes.fingerprint
        file = tmp_path / "c" / "item_ids_bytes.npy"
        file.write_bytes(file.read_bytes()[:-1] + b"y")
        with pytest.raises(DataError, match="has changed since it was saved"):
            Catalogue.load(tmp_path / "c")

    def test_the_catalogue_of_an_older_run_is_read(self, tmp_path):
        """Runs of version 0.1.0 keep a dataset without users."""
        small(items=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64), user_ids=(), timestamps=None).save(
            tmp_path / "c"
        )
        assert list(Catalogue.load(tmp_path / "c").ids) == ["x", "ÿ", "z"]

    def test_wrong_lengths(self):
        with pytest.raises(DataError, match="item_titles must have 2 entries"):
            Catalogue(["a", "b"], ["A"])
        with pytest.raises(DataError, match=r"attributes\.offsets must have 4 entries"):
            Catalogue(["a", "b"], attributes=AttributeTable.from_lists([["x"]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": np.array([1, 2, 4, 2, 1], np.int32)}, r"items must be 1\.\.3 .*got 4 at position 2"),
        ({"items": np.array([1, 0, 3, 2, 1], np.int32)}, r"items must be 1\.\.3 .*got 0 at position 1"),
        ({"items": np.array([1, 2, 3, 2, 1])}, "items must be a one-dimensional int32 array, got int64"),
        ({"offsets": np.array([0, 5], np.int64)}, r"offsets must have 3 entries \(users \+ 1\), got 2"),
        (
            {"offsets": np.array([0, 3, 4], np.int64)},
            "offsets must run from 0 to the 5 interactions, got 0 to 4",
        ),
        ({"timestamps": np.array([1, 2], np.int64)}, "timestamps must have 5 entries"),
        ({"timestamps": np.array([5, 4, 6, 1, 2], np.int64)}, "those of user 'ann' do at position 1"),
        ({"item_titles": ["X"]}, "item_titles must have 3 entries"),
        ({"attributes": AttributeTable.from_lists([["a"]])}, r"attributes\.offsets must have 5 entries"),
    ],
)
def test_wrong_arrays(changes, message):
    with pytest.raises(DataError, match=message):
        small(**changes)


def test_offsets_that_decrease():
    with pytest.raises(DataError, match="offsets must not decrease"):
        small(offsets=np.array([0, 6, 5], np.int64), timestamps=None)
