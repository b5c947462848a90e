"""Checkpoints of pmixer/SASRec.pytorch, of 2020 and of 2024."""

from __future__ import annotations

from typing import ClassVar

from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.errors import CheckpointError
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

_LAYERS = LayerNames(
    attention_norm="attention_layernorms.*",
    attention="attention_layers.*",
    feed_forward_norm="forward_layernorms.*",
    inner="forward_layers.*.conv1",
    outer="forward_layers.*.conv2",
    convolution=True,
)


@FORMATS.register("sasrec-pytorch")
class SASRecPyTorch(CheckpointFormat):
    """SASRec of pmixer/SASRec.pytorch: "2020" (the original's block), "2024" (post-norm), "2024-norm-first" (pre-norm).

    The tensors of all three have the same names. The position table of 2024 has a row 0 of zeros for padding, by which it is
    recognised; whether norms come first does not show.
    """

    source: ClassVar[str] = "https://github.com/pmixer/SASRec.pytorch"
    variants: ClassVar[tuple[str, ...]] = ("2020", "2024", "2024-norm-first")

    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors; see `CheckpointFormat.read`."""
        rows, width = reader.shape("item_emb.weight", None, None)
        table = reader.take("items/table", "item_emb.weight", rows, width)
        places = reader.take("positions/table", "pos_emb.weight", None, width)
        padded = not places[0].any()
        variant = options.variant or ("2024" if padded else "2020")
        if not options.variant and padded:
            reader.assumed.append("variant 2024 (the file of 2024-norm-first looks the same; give --variant)")
        if variant != "2020":
            for name, array in (("item_emb.weight", table), ("pos_emb.weight", places)):
                if array[0].any():
                    raise CheckpointError(
                        f"{reader.file.path} does not fit --variant {variant}: expected row 0 of {name}, which is padding, "
                        "to be zero, got other values; try --variant 2020"
                    )
            reader.params["positions/table"] = places[1:]
        reader.params["positions/table"] = from_newest(reader.params["positions/table"])
        layers, inner = reader.layers(_LAYERS, width)
        reader.norm("final_norm", "last_layernorm", width)
        reader.finish()
        block = {"2020": "original", "2024": "post-norm", "2024-norm-first": "pre-norm"}[variant]
        dropout = float(reader.setting("dropout", options.dropout, None, 0.2))
        encoder = TransformerConfig(
            width=width,
            layers=max(layers, 1),
            dropout=dropout,
            attention=SoftmaxAttentionConfig(heads=reader.heads(options, None, 1, width), dropout=dropout),
            positions="learned",
            ffn_width=inner,
            block=block,  # type: ignore[arg-type]
            activation=reader.setting("activation", options.activation, None, "relu"),
            output_projection="on",
            final_norm="on",
            scale_embeddings=True,
            norm_epsilon=1e-8,
            padding_keys="zero" if variant == "2020" else "propagated",
        )
        return reader.model(encoder, len(reader.params["positions/table"]), "end", rows - 1, "bce")
