"""Readers of interaction logs: delimited text, Parquet, Arrow, sequence lines, data frames."""

from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.load import load_dataset

__all__ = ["DataConfig", "load_dataset"]
