"""Statistics of sequences against counters and logarithms, and on sequences whose entropy is known."""

import collections
import json
import math

import numpy as np
import pytest

from jaxrec.data.statistics import (
    dataset_statistics,
    format_statistics,
    manual_sentences,
    sequence_statistics,
    text_statistics,
)
from jaxrec.errors import DataError
from tests.runs import jaxrec


def entropy(things):
    counts = collections.Counter(things)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def repeated(grams):
    seen, count = set(), 0
    for gram in grams:
        count += gram in seen
        seen.add(gram)
    return count / len(grams)


@pytest.mark.parametrize("seed", range(5))
def test_against_counters(seed, random_dataset):
    data = random_dataset(seed, users=30, items=6)
    sequences = [data.history(u).tolist() for u in range(data.n_users)]
    found = dataset_statistics(data)
    tokens = [token for sequence in sequences for token in sequence]
    bigrams, trigrams = (
        [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)] for n in (2, 3)
    )
    assert (found.sequences, found.tokens, found.types) == (30, len(tokens), len(set(tokens)))
    assert found.once == pytest.approx(np.mean([n == 1 for n in collections.Counter(tokens).values()]))
    assert found.type_token_ratio == pytest.approx(len(set(tokens)) / len(tokens))
    assert found.unigram_entropy == pytest.approx(entropy(tokens))
    assert found.bigram_entropy == pytest.approx(entropy(bigrams))
    by_left = collections.defaultdict(list)
    for left, right in bigrams:
        by_left[left].append(right)
    conditional = sum(len(rights) / len(bigrams) * entropy(rights) for rights in by_left.values())
    assert found.conditional_entropy == pytest.approx(conditional)
    assert found.predictable_bits == pytest.approx(entropy([right for _, right in bigrams]) - conditional)
    assert found.repeated_bigrams == pytest.approx(repeated(bigrams))
    assert found.repeated_trigrams == pytest.approx(repeated(trigrams))
    json.dumps(found.to_dict())


def test_known_entropies():
    rng = np.random.default_rng(0)
    offsets = np.array([0, 100_000])
    coin = sequence_statistics(rng.integers(0, 4, 100_000), offsets)
    assert coin.unigram_entropy == pytest.approx(2, abs=0.01)
    assert coin.predictable_bits == pytest.approx(0, abs=0.01)
    cycle = sequence_statistics(np.arange(100_000) % 8, offsets)
    assert (cycle.unigram_entropy, cycle.conditional_entropy) == (
        pytest.approx(3),
        pytest.approx(0, abs=1e-9),
    )
    zipf = np.repeat(np.arange(200), np.maximum(1000 / np.arange(1, 201), 1).astype(int))
    assert sequence_statistics(zipf, np.array([0, len(zipf)])).zipf_slope == pytest.approx(-1, abs=0.05)


def test_limits_and_short_sequences():
    tokens, offsets = np.array([5, 6, 5, 7, 7, 7]), np.array([0, 2, 3, 6])
    assert sequence_statistics(tokens, offsets, limit=3).tokens == 3
    assert sequence_statistics(tokens, offsets, limit=1).tokens == 2, "the first sequence at least"
    assert sequence_statistics(tokens, offsets, limit=100).tokens == 6
    lone = sequence_statistics(np.array([3]), np.array([0, 1]))
    assert (lone.unigram_entropy, lone.bigram_entropy, lone.zipf_slope, lone.repeated_bigrams) == (
        0,
        0,
        None,
        0,
    )
    with pytest.raises(DataError, match="no token to measure"):
        text_statistics(["...", ""])


def test_text_and_table():
    text = text_statistics(["The cat sat.", "", "the CAT ran"], name="tale")
    assert (text.sequences, text.tokens, text.types) == (2, 6, 4)
    assert text.repeated_bigrams == pytest.approx(1 / 4)
    table = format_statistics([text, text])
    assert table.splitlines()[1].split() == ["tale", "tale"]
    assert "conditional entropy" in table


def test_the_manual_is_prose():
    sentences = manual_sentences()
    words = text_statistics(sentences)
    assert words.tokens > 20_000
    assert -1.3 < words.zipf_slope < -0.7, "Zipf's law"
    assert sum(sentence.endswith((".", ":")) for sentence in sentences) > 0.7 * len(sentences)
    assert not any(sentence.startswith((">>>", " ")) or "***" in sentence for sentence in sentences)


def test_command(tmp_path):
    (tmp_path / "text.txt").write_text("It was the best of times.\nIt was the worst of times.\n")
    out = jaxrec("audit", "movietweetings", "--statistics", "--text", tmp_path / "text.txt", "--json")
    assert out.status == 0, out
    columns = {entry["name"]: entry for entry in json.loads(out.out)["statistics"]}
    assert list(columns) == ["items of movietweetings", "titles of movietweetings", "text.txt"]
    assert columns["text.txt"]["types"] == 7
    assert {entry["tokens"] for entry in columns.values()} <= set(range(1, 13)), (
        "measured at equal numbers of tokens"
    )
    plain = jaxrec("audit", "movietweetings", "--statistics").out
    assert "zipf slope" in plain
    assert "Python's manual" in plain
    assert "expected both" in jaxrec("audit", "movietweetings", "--text", "a.txt").err
    assert "--text" in jaxrec("audit", "movietweetings", "--statistics", "--text", tmp_path / "none").err
