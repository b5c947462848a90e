"""Attention mechanisms: one file each, all with one signature (`AttentionConfig.build`)."""

from jaxrec.attention.awrsr import RefinedAttentionConfig
from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec, allowed_positions
from jaxrec.attention.hstu import PointwiseAttentionConfig
from jaxrec.attention.kernelised import KernelAttentionConfig
from jaxrec.attention.miq import MultiItemQueryAttentionConfig
from jaxrec.attention.positions import POSITIONS
from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.attention.uniform import UniformAttentionConfig
from jaxrec.attention.wasserstein import WassersteinAttentionConfig
from jaxrec.registry import Registry

ATTENTION: Registry[type[AttentionConfig]] = Registry(
    "attention mechanism",
    {
        "softmax": SoftmaxAttentionConfig,
        "miq": MultiItemQueryAttentionConfig,
        "awrsr": RefinedAttentionConfig,
        "kernel": KernelAttentionConfig,
        "hstu": PointwiseAttentionConfig,
        "wasserstein": WassersteinAttentionConfig,
        "uniform": UniformAttentionConfig,
    },
)

__all__ = [
    "ATTENTION",
    "POSITIONS",
    "AttentionConfig",
    "AttentionContext",
    "AttentionSpec",
    "KernelAttentionConfig",
    "MultiItemQueryAttentionConfig",
    "PointwiseAttentionConfig",
    "RefinedAttentionConfig",
    "SoftmaxAttentionConfig",
    "UniformAttentionConfig",
    "WassersteinAttentionConfig",
    "allowed_positions",
]
