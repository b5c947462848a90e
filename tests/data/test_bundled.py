"""The bundled MovieTweetings data: counts, content, and the rebuild from the raw snapshot, byte for byte."""

import io
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from data_prep.movietweetings import BUNDLED, bundle, main
from jaxrec.data import load_dataset
from jaxrec.errors import DataError

RAW = Path(__file__).resolve().parents[3] / "shared" / "data" / "movietweetings-100K_raw.zip"
needs_raw = pytest.mark.skipif(
    not RAW.exists(), reason="the raw snapshot ../shared/data is not on this machine"
)


def test_counts_and_content():
    data = load_dataset("movietweetings")
    assert (data.n_users, data.n_items, data.n_interactions) == (4_333, 2_414, 68_055)
    assert data.name == "movietweetings"
    assert data.compute_fingerprint() == data.fingerprint
    assert data.lengths.min() == 5
    assert np.bincount(data.items)[1:].min() == 5
    film = data.item_index("tt0111161")
    assert data.item_titles[film - 1] == "The Shawshank Redemption (1994)"
    assert [data.attributes.names[a - 1] for a in data.attributes.of_item(film)] == ["Crime", "Drama"]
    assert all(len(name) == 9 and name.startswith("tt") for name in data.item_ids)
    # Every check of content, as if the arrays had come from elsewhere.
    type(data)(data.items, data.offsets, data.user_ids, data.item_ids, data.timestamps)
    assert data.meta["steps"][0]["after"] == data.counts == data.meta["counts"]


def test_filtered_further():
    assert load_dataset("movietweetings", filter="k-core", min_interactions=20).lengths.min() >= 20


def test_it_comes_with_its_licence_and_stays_small():
    folder = resources.files("jaxrec.data.bundled") / "movietweetings"
    assert "Copyright (c) 2013 Simon Dooms" in (folder / "LICENSE").read_text()
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 1_000_000


def test_it_loads_from_outside_the_repository_and_from_a_zip(tmp_path):
    """Package resources, not paths: an archive on the import path serves as well as a directory."""
    package = BUNDLED.parents[2]
    archive = tmp_path / "jaxrec.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in [*package.glob("*.py"), *package.glob("data/**/*")]:
            if file.is_file() and "__pycache__" not in file.parts:
                target.write(file, file.relative_to(package.parent))
    code = "import jaxrec.data; print(jaxrec.__file__, jaxrec.data.load_dataset('movietweetings'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(archive)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(archive) in done.stdout
    assert "68,055 interactions" in done.stdout


@needs_raw
def test_rebuild_byte_for_byte(tmp_path, capsys):
    main(["--raw", str(RAW), "--out", str(tmp_path)])
    assert "68,055 interactions" in capsys.readouterr().out
    expected = {p.name: p.read_bytes() for p in BUNDLED.iterdir()}
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == expected


def snapshot(path: Path, ratings: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("snapshots/100K/ratings.dat", ratings)
        archive.writestr(
            "snapshots/100K/movies.dat", "0000012::L'arrivée (1896)::Short|Documentary\n7::Seven (1995)::\n"
        )
        archive.writestr("LICENSE", "MIT")
    return path


def test_rules_on_a_tiny_snapshot(tmp_path):
    raw = snapshot(tmp_path / "raw.zip", "1::7::9::50\n1::0000012::2::40\n2::7::1::60\n1::7::9::40\n")
    data = load_dataset("movietweetings-100k", archive=raw, rule="all", other_edition=True)
    assert list(data.item_ids) == ["tt0000012", "tt0000007"]
    assert data.items.tolist() == [1, 2, 2, 2], "ties keep file order, low ratings count"
    assert data.timestamps.tolist() == [40, 40, 50, 60]
    assert list(data.item_titles) == ["L'arrivée (1896)", "Seven (1995)"]
    assert [data.attributes.of_item(i).tolist() for i in (1, 2)] == [[1, 2], []]
    files = bundle(data, b"MIT")
    loaded = np.load(io.BytesIO(files["timestamps.npy"]))
    assert loaded.dtype == np.uint8
    assert loaded.tolist() == [40, 40, 50, 60]


def test_the_checksum_is_verified(tmp_path):
    raw = snapshot(tmp_path / "raw.zip", "1::7::9::50\n")
    with pytest.raises(DataError, match=r"expected sha256 ce8255b1.*give --data\.other-edition"):
        load_dataset("movietweetings-100k", archive=raw)
    with pytest.raises(SystemExit, match=r"error: archive .* does not exist"):
        main(["--raw", str(tmp_path / "none.zip"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_bundled():
    with pytest.raises(DataError, match="needs timestamps, titles and attributes"):
        bundle(load_dataset(np.array([[1, 2]])), b"")
