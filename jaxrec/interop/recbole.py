"""Checkpoints of SASRec in RecBole."""

from __future__ import annotations

from typing import ClassVar

from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.errors import CheckpointError
from jaxrec.interop.formats import FORMATS, CheckpointFormat, ImportedModel, ImportOptions, LayerNames, Reader
from jaxrec.models import TransformerConfig

_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "silu"}


_LAYER = "trm_encoder.layer.*"
_ATTENTION = f"{_LAYER}.multi_head_attention"
_LAYERS = LayerNames(
    attention_norm=f"{_ATTENTION}.LayerNorm",
    attention=(f"{_ATTENTION}.query", f"{_ATTENTION}.key", f"{_ATTENTION}.value"),
    output=f"{_ATTENTION}.dense",
    feed_forward_norm=f"{_LAYER}.feed_forward.LayerNorm",
    inner=f"{_LAYER}.feed_forward.dense_1",
    outer=f"{_LAYER}.feed_forward.dense_2",
)


@FORMATS.register("recbole")
class RecBoleSASRec(CheckpointFormat):
    """SASRec of RecBole: post-norm, positions from the start; the file has its configuration but no item ids."""

    source: ClassVar[str] = "https://github.com/RUCAIBox/RecBole"
    inert: ClassVar[tuple[str, ...]] = ("recbole", "yaml")
    ids_are_rows: ClassVar[bool] = False

    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors; see `CheckpointFormat.read`."""

        def setting(name: str) -> object:
            return reader.file.extra("config", "final_config_dict", name)

        rows, width = reader.shape("item_embedding.weight", None, None)
        reader.take("items/table", "item_embedding.weight", rows, width)
        places = reader.take("positions/table", "position_embedding.weight", None, width)
        reader.norm("embedding_norm", "LayerNorm", width)
        layers, inner = reader.layers(_LAYERS, width)
        reader.finish()
        activation = setting("hidden_act")
        activation_name = _ACTIVATIONS.get(activation) if isinstance(activation, str) else None
        if isinstance(activation, str) and activation_name is None and not options.activation:
            raise CheckpointError(
                f"{reader.file.path} was trained with hidden_act {activation!r}: expected {', '.join(_ACTIVATIONS)}, since "
                "the feed-forward network here has no other"
            )
        dropout = float(reader.setting("dropout", options.dropout, setting("hidden_dropout_prob"), 0.5))
        encoder = TransformerConfig(
            width=width,
            layers=max(layers, 1),
            dropout=dropout,
            attention=SoftmaxAttentionConfig(
                heads=reader.heads(options, setting("n_heads"), 2, width), dropout=dropout
            ),
            positions="learned",
            block="post-norm",
            ffn_width=inner,
            activation=reader.setting("activation", options.activation, activation_name, "gelu"),
            output_projection="on",
            final_norm="off",
            embedding_norm=True,
            norm_epsilon=float(setting("layer_norm_eps") or 1e-12),  # type: ignore[arg-type]
        )
        objective = "bpr" if setting("loss_type") == "BPR" else "cross-entropy"
        return reader.model(encoder, len(places), "start", rows - 1, objective)
