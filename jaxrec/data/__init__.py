"""Logs, sequences, splits, audit and batches: NumPy, with Polars at the edge, and no model."""

from jaxrec.data.auditing import Audit, audit
from jaxrec.data.catalogue import AttributeTable, Catalogue
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.interactions import AtLeast, FirstOfPair, ItemsThenUsers, KCore, OnePass, filter_dataset
from jaxrec.data.named import DATASETS, PublicDataset, RawDataset, public_dataset
from jaxrec.data.readers.blocks import prepare_in_blocks
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.load import load_dataset
from jaxrec.data.sequentiality import Sequentiality, sequentiality
from jaxrec.data.splits import EvaluationCases, Split, SplitConfig, split_dataset
from jaxrec.data.transposed import ReverseCoverage, reverse_coverage, transposed
from jaxrec.data.usage import DataUsage, data_usage

__all__ = [
    "DATASETS",
    "AtLeast",
    "AttributeTable",
    "Audit",
    "Catalogue",
    "DataConfig",
    "DataUsage",
    "EvaluationCases",
    "FirstOfPair",
    "ItemsThenUsers",
    "KCore",
    "OnePass",
    "PublicDataset",
    "RawDataset",
    "ReverseCoverage",
    "SequenceDataset",
    "Sequentiality",
    "Split",
    "SplitConfig",
    "audit",
    "data_usage",
    "filter_dataset",
    "load_dataset",
    "prepare_in_blocks",
    "public_dataset",
    "reverse_coverage",
    "sequentiality",
    "split_dataset",
    "transposed",
]
