"""Checkpoints of asash/gSASRec-pytorch."""

from __future__ import annotations

from typing import ClassVar

from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.interop.formats import (
    FORMATS,
    CheckpointFormat,
    ImportedModel,
    ImportOptions,
    LayerNames,
    Reader,
    from_newest,
)
from jaxrec.models import TransformerConfig

_BLOCK = "transformer_blocks.*"
_LAYERS = LayerNames(
    attention_norm=f"{_BLOCK}.first_norm",
    attention=(
        f"{_BLOCK}.multihead_attention.query_proj",
        f"{_BLOCK}.multihead_attention.key_proj",
        f"{_BLOCK}.multihead_attention.val_proj",
    ),
    feed_forward_norm=f"{_BLOCK}.second_norm",
    inner=f"{_BLOCK}.dense1",
    outer=f"{_BLOCK}.dense2",
)


@FORMATS.register("gsasrec")
class GSASRecPyTorch(CheckpointFormat):
    """gSASRec of asash/gSASRec-pytorch: the original's block without an output projection, a linear feed-forward network."""

    source: ClassVar[str] = "https://github.com/asash/gSASRec-pytorch"

    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors; see `CheckpointFormat.read`."""
        rows, width = reader.shape("item_embedding.weight", None, None)
        # Row 0 is no item, and padding is the last row; neither is ever scored or read as a key.
        table = reader.take("items/table", "item_embedding.weight", rows, width)[:-1].copy()
        table[0] = 0.0
        reader.params["items/table"] = table
        places = reader.take("positions/table", "position_embedding.weight", None, width)
        reader.params["positions/table"] = from_newest(places)
        layers, inner = reader.layers(_LAYERS, width)
        reader.norm("final_norm", "seq_norm", width)
        reader.finish()
        dropout = float(reader.setting("dropout", options.dropout, None, 0.1))
        encoder = TransformerConfig(
            width=width,
            layers=max(layers, 1),
            dropout=dropout,
            attention=SoftmaxAttentionConfig(heads=reader.heads(options, None, 1, width), dropout=dropout),
            positions="learned",
            block="original",
            ffn_width=inner,
            activation=reader.setting("activation", options.activation, None, "identity"),
            output_projection="off",
            final_norm="on",
            norm_epsilon=1e-5,
        )
        return reader.model(encoder, len(places), "end", rows - 2, "gbce")
