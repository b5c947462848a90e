"""Encoders: a batch of histories in, a hidden state per position out."""

from jaxrec.models.base import ENCODERS, Encoder, EncoderConfig
from jaxrec.models.gru4rec import GRU4Rec, GRU4RecConfig
from jaxrec.models.srgnn import SRGNN, SRGNNConfig
from jaxrec.models.stosa import STOSA, STOSAConfig
from jaxrec.models.transformer import Transformer, TransformerConfig
from jaxrec.nn.item_table import ItemTable
from jaxrec.nn.spec import DataSpec

__all__ = [
    "ENCODERS",
    "SRGNN",
    "STOSA",
    "DataSpec",
    "Encoder",
    "EncoderConfig",
    "GRU4Rec",
    "GRU4RecConfig",
    "ItemTable",
    "SRGNNConfig",
    "STOSAConfig",
    "Transformer",
    "TransformerConfig",
]
