"""Checkpoints of SASRec in RecTools, as PyTorch Lightning saves them."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.errors import CheckpointError
from jaxrec.interop.formats import FORMATS, CheckpointFormat, ImportedModel, ImportOptions, Reader
from jaxrec.interop.unpickling import NumpyArray
from jaxrec.models import TransformerConfig

_LOSSES = {"softmax": "cross-entropy", "BCE": "bce", "gBCE": "gbce", "sampled_softmax": "sampled-softmax"}


@FORMATS.register("rectools")
class RecToolsSASRec(CheckpointFormat):
    """SASRec of RecTools: the original's block, positions from the newest; the file has its configuration and item ids."""

    source: ClassVar[str] = "https://github.com/MobileTeleSystems/RecTools"
    inert: ClassVar[tuple[str, ...]] = ("pytorch_lightning", "lightning", "lightning_fabric", "rectools")
    ids_are_rows: ClassVar[bool] = False

    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors; see `CheckpointFormat.read`."""

        def setting(name: str) -> Any:
            return reader.file.extra("hyper_parameters", "model_config", name)

        table = "item_model.item_net_blocks.0.ids_emb.weight"
        rows, width = reader.shape(table, None, None)
        reader.take("items/table", table, rows, width)
        places = reader.take("positions/table", "pos_encoding_layer.pos_emb.weight", None, width)
        layers = reader.count(r"transformer_layers\.transformer_blocks\.(\d+)\..*")
        for layer in range(layers):
            ours, theirs = f"layer_{layer}", f"transformer_layers.transformer_blocks.{layer}"
            reader.norm(f"{ours}/attention_norm", f"{theirs}.q_layer_norm", width)
            reader.torch_attention(f"{ours}/attention", f"{theirs}.multi_head_attn", width)
            reader.norm(f"{ours}/feed_forward_norm", f"{theirs}.ff_layer_norm", width)
            reader.dense(f"{ours}/feed_forward/inner", f"{theirs}.feed_forward.ff_linear_1", width, width)
            reader.dense(f"{ours}/feed_forward/outer", f"{theirs}.feed_forward.ff_linear_2", width, width)
        reader.norm("final_norm", "transformer_layers.last_layernorm", width)
        reader.finish()
        if setting("use_causal_attn") is False:
            raise CheckpointError(
                f"{reader.file.path} was trained with use_causal_attn=False: expected a causal SASRec, since a next item "
                "is predicted at every position here"
            )
        dropout = float(reader.setting("dropout", options.dropout, setting("dropout_rate"), 0.2))
        encoder = TransformerConfig(
            width=width,
            layers=max(layers, 1),
            dropout=dropout,
            attention=SoftmaxAttentionConfig(
                heads=reader.heads(options, setting("n_heads"), 4, width), dropout=dropout
            ),
            positions="learned",
            block="original",
            activation=reader.setting("activation", options.activation, "relu", "relu"),
            output_projection="on",
            final_norm="on",
            norm_epsilon=1e-5,
            final_norm_epsilon=1e-8,
            padding_keys="none" if setting("use_key_padding_mask") else "zero",
        )
        objective = _LOSSES.get(str(reader.file.extra("hyper_parameters", "loss")), "cross-entropy")
        return reader.model(encoder, len(places), "end", rows - 1, objective, _item_ids(reader, rows))


def _item_ids(reader: Reader, rows: int) -> list[str] | None:
    """Original ids of the rows after the padding token, or None."""
    value = reader.file.extra("hyper_parameters", "item_external_ids")
    values = value.values if isinstance(value, NumpyArray) else value
    if not isinstance(values, (list, tuple)) or len(values) not in (rows, rows - 1):
        return None
    return [str(each) for each in list(values)[len(values) - (rows - 1) :]]
