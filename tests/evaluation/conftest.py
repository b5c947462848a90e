"""Cases made by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxrec.data.splits import EvaluationCases


def cases_of(
    starts: Sequence[int], stops: Sequence[int], targets: Sequence[Sequence[int]]
) -> EvaluationCases:
    sizes = [len(each) for each in targets]
    return EvaluationCases(
        users=np.arange(len(starts), dtype=np.int32),
        history_starts=np.asarray(starts, np.int64),
        history_stops=np.asarray(stops, np.int64),
        targets=np.concatenate([np.asarray(each, np.int32) for each in targets]),
        target_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


@pytest.fixture
def make_cases() -> Callable[..., EvaluationCases]:
    return cases_of
