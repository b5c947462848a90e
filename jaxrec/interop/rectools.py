"""Checkpoints of SASRec in RecTools, as PyTorch Lightning saves them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.errors import CheckpointError
from jaxrec.interop.formats import FORMATS, CheckpointFormat, ImportedModel, ImportOptions, LayerNames, Reader
from jaxrec.interop.unpickling import NumpyArray
from jaxrec.models import TransformerConfig

_LOSSES = {"softmax": "cross-entropy", "BCE": "bce", "gBCE": "gbce", "sampled_softmax": "sampled-softmax"}


_BLOCK = "transformer_layers.transformer_blocks.*"
_LAYERS = LayerNames(
    attention_norm=f"{_BLOCK}.q_layer_norm",
    attention=f"{_BLOCK}.multi_head_attn",
    feed_forward_norm=f"{_BLOCK}.ff_layer_norm",
    inner=f"{_BLOCK}.feed_forward.ff_linear_1",
    outer=f"{_BLOCK}.feed_forward.ff_linear_2",
)


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
        layers, inner = reader.layers(_LAYERS, width)
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
            ffn_width=inner,
            activation=reader.setting("activation", options.activation, "relu", "relu"),
            output_projection="on",
            final_norm="on",
            norm_epsilon=1e-5,
            final_norm_epsilon=1e-8,
            padding_keys="none" if setting("use_key_padding_mask") else "zero",
            similarity=_similarity(reader),
        )
        objective = _LOSSES.get(str(reader.file.extra("hyper_parameters", "loss")), "cross-entropy")
        return reader.model(encoder, len(places), "end", rows - 1, objective, _item_ids(reader, rows))


def _similarity(reader: Reader) -> Literal["dot", "cosine"]:
    """Score of an item, by the file's configuration; the product where it names none."""
    found = reader.file.extra("hyper_parameters", "model_config", "similarity_module_kwargs", "distance")
    name = str(getattr(found, "value", found) or "dot")
    if name not in ("dot", "cosine"):
        raise CheckpointError(
            f"{reader.file.path} was trained with similarity_module_kwargs distance {name!r}: expected 'dot' or 'cosine'"
        )
    return "cosine" if name == "cosine" else "dot"


def _item_ids(reader: Reader, rows: int) -> list[str] | None:
    """Original ids of the rows after the padding token, or None."""
    value = reader.file.extra("hyper_parameters", "item_external_ids")
    values = value.values if isinstance(value, NumpyArray) else value
    if not isinstance(values, (list, tuple)) or len(values) not in (rows, rows - 1):
        return None
    return [str(each) for each in list(values)[len(values) - (rows - 1) :]]
