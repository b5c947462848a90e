"""Sequential rules of a log against shuffled sequences: does the order of interactions carry information?

A rule A -> B (or A, B -> C) says that item B follows directly on A (C on A, B). Its support is the number of users
whose sequence holds it; its confidence is that number divided by the users whose sequence holds the left side
followed by anything. A log has sequential structure where it has more rules than the same log with each user's
interactions in random order (Klenitskiy et al., RecSys 2024, arXiv 2408.12008). Numbers of rules depend on the
thresholds, and short walks through neighbouring items give many weak rules without any order; the verdict therefore
goes by predictability: the share of transitions whose right side is the most frequent successor of their left side.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError

#: Number of shuffled copies beyond which a number must be a mistake.
MOST_SHUFFLES = 10_000


@dataclasses.dataclass(frozen=True)
class Rule:
    """A sequential rule between original item ids.

    Attributes:
      left: one or two ids, in order.
      right: the id that follows.
      support: users whose sequence holds the rule.
      confidence: support divided by the users whose sequence holds the left side followed by anything.
    """

    left: tuple[str, ...]
    right: str
    support: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Sequentiality:
    """Numbers of sequential rules in a log and in shuffled copies of it.

    Attributes:
      min_support: fewest users of a rule that counts.
      min_confidence: lowest confidence of a rule that counts.
      shuffles: number of shuffled copies.
      rules: length of the rule (2 or 3 items) -> number of rules in the log.
      shuffled: length -> number of rules in each shuffled copy.
      predictability: length -> share of transitions (of left sides with enough users) that the most frequent successor of
        the left side predicts, in the log.
      shuffled_predictability: the same in each shuffled copy.
      strongest: the rules of the log with the largest confidence, of each length.
    """

    min_support: int
    min_confidence: float
    shuffles: int
    rules: dict[int, int]
    shuffled: dict[int, tuple[int, ...]]
    predictability: dict[int, float]
    shuffled_predictability: dict[int, tuple[float, ...]]
    strongest: dict[int, tuple[Rule, ...]]

    def remaining(self, length: int) -> float | None:
        """Return rules after shuffling (mean) divided by rules in the log; None where the log has none."""
        return float(np.mean(self.shuffled[length])) / self.rules[length] if self.rules[length] else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "remaining": {n: self.remaining(n) for n in self.rules}}

    def __str__(self) -> str:
        """Format as lines of text."""
        lines = [
            f"Sequential rules (support of at least {self.min_support} users, confidence of at least "
            f"{self.min_confidence:g}), against {self.shuffles} shuffled copies"
        ]
        for length, count in self.rules.items():
            values = self.shuffled[length]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            share = self.remaining(length)
            left = "no rule at all" if share is None else f"{share:.1%} remain without the order"
            own, mixed = self.predictability[length], self.shuffled_predictability[length]
            lines.append(
                f"  {length} items  {count:,} rules; shuffled {np.mean(values):,.1f} ± {spread:.1f}: {left}"
            )
            lines.append(f"    predictability {own:.3f}; shuffled {np.mean(mixed):.3f}")
            for rule in self.strongest[length]:
                lines.append(
                    f"    {', '.join(rule.left)} -> {rule.right}  support {rule.support:,}, "
                    f"confidence {rule.confidence:.2f}"
                )
        return "\n".join([*lines, f"  {self.verdict}"])

    @property
    def verdict(self) -> str:
        """One sentence: how much more predictable the log is than its shuffled copies."""
        own, mixed = self.predictability[2], self.shuffled_predictability[2]
        if not own:
            return "too few repeated transitions to tell: lower --min-support"
        gain = own / max(float(np.mean(mixed)), 1e-9)
        spread = float(np.std(mixed, ddof=1)) if len(mixed) > 1 else 0.0
        if own <= float(np.mean(mixed)) + 3 * spread or gain < 1.02:
            return "no sign that the order carries information: shuffled sequences are as predictable"
        amount = "carries much" if gain >= 1.5 else "carries some"
        return f"the order {amount} information: transitions are {gain:.2f} times as predictable as shuffled ones"


def sequentiality(
    dataset: SequenceDataset,
    *,
    min_support: int = 5,
    min_confidence: float = 0.1,
    shuffles: int = 5,
    seed: int = 0,
    n_strongest: int = 3,
) -> Sequentiality:
    """Count sequential rules of two and three items in a log and in shuffled copies of it.

    Args:
      dataset: the log.
      min_support: fewest users of a rule.
      min_confidence: lowest confidence of a rule.
      shuffles: number of shuffled copies.
      seed: of the shuffles.
      n_strongest: number of the strongest rules of each length to name.

    Raises:
      ConfigError: a threshold or a number is out of range.
      DataError: the catalogue is too large for rules of three items (two million items).
    """
    for name, value in (("min-support", min_support), ("shuffles", shuffles)):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if shuffles > MOST_SHUFFLES:
        raise ConfigError(
            f"--shuffles must be at most {MOST_SHUFFLES:,}, got {shuffles:,}: each copies the log, and a few are enough"
        )
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"--min-confidence must be in [0, 1], got {min_confidence}")
    if dataset.n_items >= 2_000_000:
        raise DataError(f"sequential rules need a catalogue below 2,000,000 items, got {dataset.n_items:,}")
    items = np.asarray(dataset.items).astype(np.int64)
    users = np.repeat(np.arange(dataset.n_users, dtype=np.int64), dataset.lengths)
    own = {
        length: _rules(users, items, dataset.n_items, length, min_support, min_confidence)
        for length in (2, 3)
    }
    shuffled: dict[int, list[_Rules]] = {2: [], 3: []}
    generator = np.random.default_rng(seed)
    for _ in range(shuffles):
        mixed = items[np.lexsort((generator.random(len(items)), users))]
        for length, copies in shuffled.items():
            copies.append(_rules(users, mixed, dataset.n_items, length, min_support, min_confidence))
    return Sequentiality(
        min_support=min_support,
        min_confidence=min_confidence,
        shuffles=shuffles,
        rules={length: len(rules.keys) for length, rules in own.items()},
        shuffled={length: tuple(len(copy.keys) for copy in copies) for length, copies in shuffled.items()},
        predictability={length: rules.predictability for length, rules in own.items()},
        shuffled_predictability={
            length: tuple(copy.predictability for copy in copies) for length, copies in shuffled.items()
        },
        strongest={length: _named(dataset, rules, length, n_strongest) for length, rules in own.items()},
    )


class _Rules(NamedTuple):
    """Rules as keys int64[R] (items as digits in base V + 1), support int64[R], confidence float64[R], predictability."""

    keys: np.ndarray
    support: np.ndarray
    confidence: np.ndarray
    predictability: float


def _rules(
    users: np.ndarray, items: np.ndarray, n_items: int, length: int, min_support: int, min_confidence: float
) -> _Rules:
    """Count the rules of one length."""
    base = n_items + 1
    last = length - 1
    if len(items) <= last:
        return _Rules(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0.0)
    together = users[last:] == users[:-last]
    left = items[:-last]
    for step in range(1, last):
        left = left * base + items[step : len(items) - last + step]
    left, right, owner = left[together], items[last:][together], users[:-last][together]
    # Of the user's repeated occurrences one counts.
    whole, support = _users_of(left * base + right, owner)
    parts, followed = _users_of(left, owner)
    of_left = np.searchsorted(parts, whole // base)
    confidence = support / followed[of_left]
    strong = (support >= min_support) & (confidence >= min_confidence)
    best = np.zeros(len(parts), np.int64)
    np.maximum.at(best, of_left, support)
    # Every user of a transition counts once; a left side of few users is predicted by chance.
    enough = followed >= min_support
    transitions = np.bincount(of_left, support, minlength=len(parts))
    total = float(transitions[enough].sum())
    predictability = float(best[enough].sum()) / total if total else 0.0
    return _Rules(whole[strong], support[strong], confidence[strong], predictability)


def _users_of(keys: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the number of distinct users of each."""
    distinct, codes = np.unique(keys, return_inverse=True)
    n_users = int(users.max(initial=0)) + 1
    pairs = np.unique(codes.astype(np.int64) * n_users + users)
    return distinct, np.bincount(pairs // n_users, minlength=len(distinct))


def _named(dataset: SequenceDataset, rules: _Rules, length: int, n_strongest: int) -> tuple[Rule, ...]:
    base = dataset.n_items + 1
    named = []
    for place in np.lexsort((rules.keys, -rules.support, -rules.confidence))[:n_strongest]:
        digits, key = [], int(rules.keys[place])
        for _ in range(length):
            key, digit = divmod(key, base)
            digits.append(digit)
        ids = dataset.catalogue.original_ids(reversed(digits))
        support, confidence = int(rules.support[place]), float(rules.confidence[place])
        named.append(Rule(tuple(ids[:-1]), ids[-1], support, confidence))
    return tuple(named)
