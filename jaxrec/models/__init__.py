"""Encoders: a batch of histories in, a hidden state for each position out."""

from jaxrec.models.base import ItemTable
from jaxrec.models.sasrec import SASRec, SASRecConfig
from jaxrec.registry import Registry

ENCODERS = Registry("encoder", {"sasrec": SASRecConfig})

__all__ = ["ENCODERS", "ItemTable", "SASRec", "SASRecConfig"]
