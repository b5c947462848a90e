"""Encoders: a batch of histories in, a hidden state for each position out."""

from jaxrec.models.base import Encoder, EncoderConfig
from jaxrec.models.stosa import STOSA, STOSAConfig
from jaxrec.models.transformer import SASRec, SASRecConfig
from jaxrec.nn.item_table import ItemTable
from jaxrec.registry import Registry

ENCODERS: Registry[type[EncoderConfig]] = Registry("encoder", {"sasrec": SASRecConfig, "stosa": STOSAConfig})

__all__ = [
    "ENCODERS",
    "STOSA",
    "Encoder",
    "EncoderConfig",
    "ItemTable",
    "SASRec",
    "SASRecConfig",
    "STOSAConfig",
]
