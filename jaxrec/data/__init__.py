"""Logs, sequences, splits, audit and batches: NumPy, with Polars at the edge. Knows nothing of models."""

from jaxrec.data.auditing import Audit, audit
from jaxrec.data.catalogue import AttributeTable
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.interactions import FirstOfPair, KCore, OnePass, filter_dataset
from jaxrec.data.readers.load import load_dataset
from jaxrec.data.splits import EvaluationCases, Split, SplitConfig, split_dataset

__all__ = [
    "AttributeTable",
    "Audit",
    "EvaluationCases",
    "FirstOfPair",
    "KCore",
    "OnePass",
    "SequenceDataset",
    "Split",
    "SplitConfig",
    "audit",
    "filter_dataset",
    "load_dataset",
    "split_dataset",
]
