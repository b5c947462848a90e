"""Checkpoints of the S3-Rec family: S3-Rec, its SASRec, CoSeRec, ICLRec and others on the same code."""

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

_LAYER = "item_encoder.layer.*"
_LAYERS = LayerNames(
    attention_norm=f"{_LAYER}.attention.LayerNorm",
    attention=(f"{_LAYER}.attention.query", f"{_LAYER}.attention.key", f"{_LAYER}.attention.value"),
    output=f"{_LAYER}.attention.dense",
    feed_forward_norm=f"{_LAYER}.intermediate.LayerNorm",
    inner=f"{_LAYER}.intermediate.dense_1",
    outer=f"{_LAYER}.intermediate.dense_2",
)


@FORMATS.register("s3rec")
class S3RecPyTorch(CheckpointFormat):
    """S3-Rec, and ICLRec and others that share its transformer: post-norm; a mask token follows the items."""

    source: ClassVar[str] = "https://github.com/RUCAIBox/CIKM2020-S3Rec, https://github.com/salesforce/ICLRec"

    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors; see `CheckpointFormat.read`."""
        rows, width = reader.shape("item_embeddings.weight", None, None)
        # Rows: padding, the items, and a token that masks items in pretraining.
        reader.params["items/table"] = reader.take("items/table", "item_embeddings.weight", rows, width)[:-1]
        places = reader.take("positions/table", "position_embeddings.weight", None, width)
        reader.params["positions/table"] = from_newest(places)
        reader.norm("embedding_norm", "LayerNorm", width)
        layers, inner = reader.layers(_LAYERS, width)
        reader.leave(r"attribute_embeddings\.weight", "vectors of attributes, which only pretraining reads")
        reader.leave(r"(aap|mip|map|sp)_norm\.(weight|bias)", "a map of a pretraining loss")
        reader.finish()
        dropout = float(reader.setting("dropout", options.dropout, None, 0.5))
        encoder = TransformerConfig(
            width=width,
            layers=max(layers, 1),
            dropout=dropout,
            attention=SoftmaxAttentionConfig(heads=reader.heads(options, None, 2, width), dropout=dropout),
            positions="learned",
            block="post-norm",
            ffn_width=inner,
            activation=reader.setting("activation", options.activation, None, "gelu"),
            output_projection="on",
            final_norm="off",
            embedding_norm=True,
            norm_epsilon=1e-12,
        )
        return reader.model(encoder, len(places), "end", rows - 2, "bce")
