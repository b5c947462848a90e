"""Statistics of token sequences: entropies, Zipf's law and repetition, for items as for the words of a text.

They tell how far sequences of items are like sequences of words, which tokenised recommenders presuppose (Revisiting SASRec,
experiment E3). Plain estimates of entropy grow with the number of tokens, so compare sequences of equal length: ``tokens``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import DataError

#: Tokens in each window whose share of distinct tokens is averaged.
WINDOW = 1000

#: Fewest occurrences of a token that counts for Zipf's slope.
_ZIPF_FLOOR = 5


@dataclasses.dataclass(frozen=True)
class SequenceStatistics:
    """Statistics of sequences of tokens; entropies are in bits.

    Attributes:
      name: of the sequences.
      sequences: number of sequences.
      tokens: number of tokens.
      types: number of distinct tokens.
      once: share of the types that occur once.
      type_token_ratio: mean share of distinct tokens in windows of `WINDOW` tokens (of all, where there are fewer).
      unigram_entropy: of a token.
      bigram_entropy: of two adjacent tokens of a sequence.
      conditional_entropy: of a token after its predecessor.
      predictable_bits: entropy of a token that has a predecessor, less its conditional entropy: mutual information.
      zipf_slope: of log frequency over log rank (least squares, tokens with at least five occurrences); None where fewer
        than ten types have as many.
      repeated_bigrams: share of the bigrams that occur earlier in the log.
      repeated_trigrams: the same for three tokens.
    """

    name: str
    sequences: int
    tokens: int
    types: int
    once: float
    type_token_ratio: float
    unigram_entropy: float
    bigram_entropy: float
    conditional_entropy: float
    predictable_bits: float
    zipf_slope: float | None
    repeated_bigrams: float
    repeated_trigrams: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def sequence_statistics(
    tokens: np.ndarray, offsets: np.ndarray, *, name: str = "", limit: int | None = None
) -> SequenceStatistics:
    """Measure sequences of integer tokens.

    Args:
      tokens: int[N], not negative, sequence after sequence.
      offsets: int64[S + 1]; sequence s is ``tokens[offsets[s]:offsets[s + 1]]``.
      name: of the sequences.
      limit: measure only the first sequences with, together, at most so many tokens (at least one sequence).

    Raises:
      DataError: there is no token.
    """
    offsets = np.asarray(offsets)
    if limit is not None:
        offsets = offsets[: max(2, int(np.searchsorted(offsets, limit, side="right")))]
    tokens = np.unique(np.asarray(tokens)[: offsets[-1]], return_inverse=True)[1].astype(np.int64)
    if not len(tokens):
        raise DataError(f"no token to measure in {name or 'the sequences'}")
    counts = np.bincount(tokens)
    sequence = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    bigrams, trigrams = (_grams(tokens, sequence, len(counts), length) for length in (2, 3))
    left, right = (np.bincount(part, minlength=len(counts)) for part in np.divmod(bigrams, len(counts)))
    pairs = np.unique(bigrams, return_counts=True)[1]
    conditional = _entropy(pairs) - _entropy(left)
    return SequenceStatistics(
        name=name,
        sequences=len(offsets) - 1,
        tokens=len(tokens),
        types=len(counts),
        once=float((counts == 1).mean()),
        type_token_ratio=_type_token_ratio(tokens),
        unigram_entropy=_entropy(counts),
        bigram_entropy=_entropy(pairs),
        conditional_entropy=conditional,
        predictable_bits=_entropy(right) - conditional,
        zipf_slope=_zipf_slope(counts),
        repeated_bigrams=_repeated(bigrams),
        repeated_trigrams=_repeated(trigrams),
    )


def dataset_statistics(dataset: SequenceDataset, limit: int | None = None) -> SequenceStatistics:
    """Measure the item sequences of a dataset; see `sequence_statistics`."""
    return sequence_statistics(dataset.items, dataset.offsets, name=f"items of {dataset.name}", limit=limit)


def text_statistics(
    sentences: Iterable[str], *, name: str = "text", limit: int | None = None
) -> SequenceStatistics:
    """Measure a text in lower-case words, one sequence per sentence; see `sequence_statistics`.

    Args:
      sentences: lines, titles or sentences.
      name: of the text.
      limit: as for `sequence_statistics`.
    """
    numbers: dict[str, int] = {}
    tokens: list[int] = []
    offsets = [0]
    for sentence in sentences:
        words = re.findall(r"\w+", sentence.lower())
        if words:
            tokens.extend(numbers.setdefault(word, len(numbers)) for word in words)
            offsets.append(len(tokens))
    return sequence_statistics(
        np.array(tokens, np.int64), np.array(offsets, np.int64), name=name, limit=limit
    )


def manual_sentences() -> list[str]:
    """Sentences of the Python reference manual, an English text that comes with Python; its code and headings are left out.

    The text differs a little between versions of Python.

    Raises:
      DataError: this installation of Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this installation of Python has no manual (pydoc_data.topics) to compare with: give a text with --text FILE"
        ) from None
    sentences = []
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            lines = paragraph.splitlines()
            # Code and grammar are indented; a heading has a line of one character under it.
            if not any(line.startswith(" ") or len(set(line)) == 1 for line in lines):
                sentences += re.split(r"(?<=[.!?])\s+", " ".join(lines))
    return sentences


def format_statistics(columns: Iterable[SequenceStatistics]) -> str:
    """Format statistics side by side as lines of text."""
    columns = list(columns)
    rows = [["", *(column.name for column in columns)]]
    for field in dataclasses.fields(SequenceStatistics)[1:]:
        values = [getattr(column, field.name) for column in columns]
        cells = ["-" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in values]
        rows.append([field.name.replace("_", " "), *cells])
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for label, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join(["  " + label.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(["Statistics of the sequences (entropies in bits)", *lines])


def _grams(tokens: np.ndarray, sequence: np.ndarray, n_types: int, length: int) -> np.ndarray:
    """int64[n], the adjacent tokens of each place as digits, within sequences."""
    last = length - 1
    if len(tokens) <= last:
        return np.zeros(0, np.int64)
    if n_types**length >= 2**63:
        raise DataError(f"{n_types:,} distinct tokens are too many for sequences of {length}")
    keys = tokens[: len(tokens) - last]
    for step in range(1, length):
        keys = keys * n_types + tokens[step : len(tokens) - last + step]
    return keys[sequence[last:] == sequence[: len(sequence) - last]]


def _entropy(counts: np.ndarray) -> float:
    positive = counts[counts > 0]
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return float(-(shares * np.log2(shares)).sum())


def _type_token_ratio(tokens: np.ndarray) -> float:
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)] or [
        tokens
    ]
    return float(np.mean([len(np.unique(window)) / len(window) for window in windows]))


def _zipf_slope(counts: np.ndarray) -> float | None:
    frequent = np.sort(counts[counts >= _ZIPF_FLOOR])[::-1]
    if len(frequent) < 10:
        return None
    return float(np.polyfit(np.log(np.arange(1, len(frequent) + 1)), np.log(frequent), 1)[0])


def _repeated(grams: np.ndarray) -> float:
    return 1 - len(np.unique(grams)) / len(grams) if len(grams) else 0.0
