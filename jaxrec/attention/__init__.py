"""Attention mechanisms: one file each, all with one signature (`AttentionConfig.module`)."""

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape, allowed_positions
from jaxrec.attention.positions import POSITIONS
from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.registry import Registry

ATTENTION: Registry[type[AttentionConfig]] = Registry(
    "attention mechanism",
    {
        "softmax": SoftmaxAttentionConfig,
    },
)

__all__ = [
    "ATTENTION",
    "POSITIONS",
    "AttentionConfig",
    "AttentionContext",
    "AttentionShape",
    "SoftmaxAttentionConfig",
    "allowed_positions",
]
