"""Large synthetic logs: their distributions, and the fractal expansion against a loop."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from data_prep import synthetic
from jaxrec.data import load_dataset
from jaxrec.errors import ConfigError
from tests.helpers import small_dataset


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_drawn_log(tmp_path, monkeypatch, suffix):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(synthetic, "BLOCK", 6_000)
    options = synthetic.Options(out=tmp_path / f"log.{suffix}", rows=20_000, users=500, items=300)
    assert synthetic.write_blocks(synthetic.drawn_blocks(options), options.out) == 20_000
    data = load_dataset(options.out)
    assert (data.n_users, data.n_interactions) == (500, 20_000)
    counts = np.sort(np.bincount(data.items))[::-1]
    # Zipf: the share of the first items is that of the harmonic series.
    harmonic = 1 / np.arange(1, 301)
    np.testing.assert_allclose(counts[:5].sum() / 20_000, harmonic[:5].sum() / harmonic.sum(), rtol=0.05)
    frame = pl.read_parquet(options.out) if suffix == "parquet" else pl.read_csv(options.out)
    assert not frame["timestamp"].is_sorted(), "late arrivals"
    assert frame["timestamp"].to_numpy()[-1000:].min() > frame["timestamp"].to_numpy()[:1000].max()


def test_text_ids(tmp_path):
    options = synthetic.Options(out=tmp_path / "log.csv", rows=50, text_ids=True)
    synthetic.write_blocks(synthetic.drawn_blocks(options), options.out, text_ids=True)
    assert all(len(name) == 20 for name in load_dataset(options.out).user_ids)


def test_the_expansion_is_a_kronecker_product(monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK", 50)
    dataset = small_dataset(n_users=12, n_items=9)
    options = synthetic.Options(out="x.csv", factor=(3, 2))
    cells = synthetic.reduced(dataset, 3, 2, seed=0)
    assert cells.any(axis=1).all()
    assert cells.any(axis=0).all()
    frame = pl.concat(synthetic.expanded_blocks(dataset, options))
    expected = []
    for user in range(dataset.n_users):
        for place in range(dataset.offsets[user], dataset.offsets[user + 1]):
            for a, b in np.argwhere(cells):
                item = (dataset.items[place] - 1) * 2 + b + 1
                expected.append((user * 3 + a + 1, item, dataset.timestamps[place]))
    assert [tuple(map(int, row)) for row in frame.rows()] == [tuple(map(int, row)) for row in expected]


def test_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_prep.synthetic",
        "--out",
        str(tmp_path / "log.csv"),
        "--rows",
        "100",
    ]
    assert "100 interactions in" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert load_dataset(tmp_path / "log.csv").n_interactions == 100


def test_errors():
    with pytest.raises(ConfigError, match=r"--out must end in \.parquet or \.csv, got 'log\.txt'"):
        synthetic.Options(out="log.txt")
    with pytest.raises(ConfigError, match="--rows and --factor must be at least 1"):
        synthetic.Options(out="log.csv", rows=0)
