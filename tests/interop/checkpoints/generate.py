"""Write the tiny checkpoints of this folder: published architectures with random weights, and the states they compute.

The modules below follow the papers and the public code in the names of their tensors and in their arithmetic; they are
written for this test and have no training code. Needs PyTorch (2.13 wrote the files), which nothing else here does:

    python tests/interop/checkpoints/generate.py
"""

from __future__ import annotations

import enum
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
ITEMS, LENGTH, WIDTH, HEADS, LAYERS = 9, 5, 4, 2, 2


def histories(pad_left: bool) -> torch.Tensor:
    """Histories of 1 to LENGTH items, padded with zeros."""
    generator = np.random.default_rng(1)
    rows = np.zeros((LENGTH + 1, LENGTH), np.int64)
    for row, length in enumerate([*range(1, LENGTH + 1), 3]):
        where = slice(LENGTH - length, LENGTH) if pad_left else slice(0, length)
        rows[row, where] = generator.integers(1, ITEMS + 1, length)
    return torch.from_numpy(rows)


def causal(length: int) -> torch.Tensor:
    """True where a query (row) may not look at a key (column)."""
    return torch.ones(length, length).triu(1).bool()


class Pointwise(nn.Module):
    """The feed-forward network of SASRec as two convolutions of kernel size 1."""

    def __init__(self, residual: bool):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(torch.relu(self.conv1(x.mT))).mT
        return x + y if self.residual else y


class PMixer(nn.Module):
    """pmixer/SASRec.pytorch: padding is no item, but attended to."""

    def __init__(self, variant: str):
        super().__init__()
        self.variant, old = variant, variant == "2020"
        self.item_emb = nn.Embedding(ITEMS + 1, WIDTH, padding_idx=0)
        self.pos_emb = nn.Embedding(LENGTH, WIDTH) if old else nn.Embedding(LENGTH + 1, WIDTH, padding_idx=0)
        self.attention_layernorms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(LAYERS))
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS) for _ in range(LAYERS))
        self.forward_layernorms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(LAYERS))
        self.forward_layers = nn.ModuleList(Pointwise(old) for _ in range(LAYERS))
        self.last_layernorm = nn.LayerNorm(WIDTH, eps=1e-8)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        real = (items > 0)[..., None]
        x = self.item_emb(items) * WIDTH**0.5
        column = torch.arange(LENGTH)
        old = self.variant == "2020"
        x = x + self.pos_emb(column if old else (column + 1) * (items > 0))
        x = x * real if old else x
        layers = zip(
            self.attention_layernorms,
            self.attention_layers,
            self.forward_layernorms,
            self.forward_layers,
            strict=True,
        )
        for norm, attention, forward_norm, network in layers:

            def attend(q: torch.Tensor, kv: torch.Tensor, attention: nn.Module = attention) -> torch.Tensor:
                q, kv = q.transpose(0, 1), kv.transpose(0, 1)
                return attention(q, kv, kv, attn_mask=causal(LENGTH))[0].transpose(0, 1)

            if self.variant == "2020":
                q = norm(x)
                x = network(forward_norm(q + attend(q, x))) * real
            elif self.variant == "2024":
                x = norm(x + attend(x, x))
                x = forward_norm(x + network(x))
            else:
                y = norm(x)
                x = x + attend(y, y)
                x = x + network(forward_norm(x))
        return self.last_layernorm(x)


class BertAttention(nn.Module):
    """Self-attention with its output map, residual and norm, as in BERT."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(*y.shape[:2], HEADS, -1).transpose(1, 2)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        weights = torch.softmax(q @ k.mT / math.sqrt(WIDTH / HEADS) + mask, dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(x.shape)
        return self.LayerNorm(x + self.dense(y))


class BertNetwork(nn.Module):
    """The feed-forward network of BERT with its residual and norm."""

    def __init__(self, inner: int):
        super().__init__()
        self.dense_1, self.dense_2 = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(x + self.dense_2(nn.functional.gelu(self.dense_1(x))))


def modules(**parts: nn.Module) -> nn.Module:
    """A module with named parts."""
    holder = nn.Module()
    for name, part in parts.items():
        setattr(holder, name, part)
    return holder


class Bert(nn.Module):
    """The transformer of S3-Rec, ICLRec and RecBole: one arithmetic under two sets of names."""

    def __init__(self, names: tuple[str, str, str, str, str], inner: int, rows: int):
        super().__init__()
        items, positions, encoder, self.attention, self.network = names
        setattr(self, items, nn.Embedding(rows, WIDTH, padding_idx=0))
        setattr(self, positions, nn.Embedding(LENGTH, WIDTH))
        parts = [{self.attention: BertAttention(), self.network: BertNetwork(inner)} for _ in range(LAYERS)]
        setattr(self, encoder, modules(layer=nn.ModuleList(modules(**part) for part in parts)))
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.names = names

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        table, positions, encoder, *_ = (getattr(self, name) for name in self.names[:3])
        x = self.LayerNorm(table(items) + positions(torch.arange(LENGTH)))
        hidden = causal(LENGTH)[None, None] | (items == 0)[:, None, None]
        mask = torch.where(hidden, -10000.0, 0.0)
        for layer in encoder.layer:
            x = getattr(layer, self.network)(getattr(layer, self.attention)(x, mask))
        return x


class S3Rec(Bert):
    """S3-Rec after pretraining: with vectors of attributes and the maps of its losses."""

    def __init__(self):
        names = ("item_embeddings", "position_embeddings", "item_encoder", "attention", "intermediate")
        super().__init__(names, 4 * WIDTH, ITEMS + 2)
        self.attribute_embeddings = nn.Embedding(3, WIDTH, padding_idx=0)
        self.aap_norm = nn.Linear(WIDTH, WIDTH)


class RecBole(Bert):
    """SASRec of RecBole."""

    def __init__(self):
        names = (
            "item_embedding",
            "position_embedding",
            "trm_encoder",
            "multi_head_attention",
            "feed_forward",
        )
        super().__init__(names, 6, ITEMS + 1)


class GSAttention(nn.Module):
    """Attention without an output map; zero keys are padding."""

    def __init__(self):
        super().__init__()
        self.query_proj, self.key_proj, self.val_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.stack(part(y).chunk(HEADS, dim=-1))
            for part, y in ((self.query_proj, q), (self.key_proj, kv), (self.val_proj, kv))
        )
        scores = q @ k.mT / math.sqrt(WIDTH / HEADS)
        padding = (kv.abs().sum(-1) == 0)[None, :, None]
        weights = torch.softmax(scores.masked_fill(padding | causal(LENGTH), -math.inf), dim=-1)
        return torch.cat(list(weights.nan_to_num(0.0) @ v), dim=-1)


class GSASRec(nn.Module):
    """asash/gSASRec-pytorch: padding is the last row of the item table."""

    def __init__(self):
        super().__init__()
        self.item_embedding = nn.Embedding(ITEMS + 2, WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        self.transformer_blocks = nn.ModuleList(
            modules(
                first_norm=nn.LayerNorm(WIDTH),
                second_norm=nn.LayerNorm(WIDTH),
                multihead_attention=GSAttention(),
                dense1=nn.Linear(WIDTH, WIDTH),
                dense2=nn.Linear(WIDTH, WIDTH),
            )
            for _ in range(LAYERS)
        )
        self.seq_norm = nn.LayerNorm(WIDTH)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        real = (items > 0)[..., None]
        items = torch.where(items > 0, items, ITEMS + 1)
        x = (self.item_embedding(items) + self.position_embedding(torch.arange(LENGTH))) * real
        for block in self.transformer_blocks:
            q = block.first_norm(x)
            y = block.second_norm(q + block.multihead_attention(q, x))
            x = (y + block.dense2(block.dense1(y))) * real
        return self.seq_norm(x)


class RecTools(nn.Module):
    """SASRec of RecTools: positions count from the newest; padding is attended to."""

    def __init__(self):
        super().__init__()
        self.item_model = modules(
            item_net_blocks=nn.ModuleList([modules(ids_emb=nn.Embedding(ITEMS + 1, WIDTH, padding_idx=0))])
        )
        self.pos_encoding_layer = modules(pos_emb=nn.Embedding(LENGTH, WIDTH))
        self.transformer_layers = modules(
            transformer_blocks=nn.ModuleList(
                modules(
                    multi_head_attn=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
                    q_layer_norm=nn.LayerNorm(WIDTH),
                    ff_layer_norm=nn.LayerNorm(WIDTH),
                    feed_forward=modules(
                        ff_linear_1=nn.Linear(WIDTH, WIDTH), ff_linear_2=nn.Linear(WIDTH, WIDTH)
                    ),
                )
                for _ in range(LAYERS)
            ),
            last_layernorm=nn.LayerNorm(WIDTH, eps=1e-8),
        )

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        real = (items > 0)[..., None]
        table = self.item_model.item_net_blocks[0].ids_emb
        x = table(items) + self.pos_encoding_layer.pos_emb(torch.arange(LENGTH - 1, -1, -1))
        for block in self.transformer_layers.transformer_blocks:
            x = x * real
            q = block.q_layer_norm(x)
            y = q + block.multi_head_attn(q, x, x, attn_mask=causal(LENGTH))[0]
            y = block.ff_layer_norm(y)
            x = y + block.feed_forward.ff_linear_2(torch.relu(block.feed_forward.ff_linear_1(y)))
        return self.transformer_layers.last_layernorm(x * real)


def randomize(model: nn.Module) -> nn.Module:
    """Draw every parameter, norms and biases too; rows of padding stay zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            is_norm = name.endswith("weight") and value.dim() == 1
            value.copy_(1 + 0.3 * drawn if is_norm else 0.5 * drawn)
        for part in model.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0.0
    return model.eval()


class Config:
    """Stands for ``recbole.config.configurator.Config``, whose objects lie in RecBole's files."""

    def __init__(self, values: dict[str, object]):
        self.final_config_dict = values


class InputType(enum.Enum):
    """Stands for ``recbole.utils.enum_type.InputType``."""

    POINTWISE = 1


def in_module(name: str, part: type) -> type:
    """Make a class appear to come from a module."""
    package = ""
    for piece in name.split("."):
        package = f"{package}.{piece}".strip(".")
        sys.modules.setdefault(package, types.ModuleType(package))
    part.__module__ = name
    setattr(sys.modules[name], part.__name__, part)
    return part


def recbole_file(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """A file as RecBole's trainer writes it."""
    kind = in_module("recbole.utils.enum_type", InputType)
    config = in_module("recbole.config.configurator", Config)
    values = {
        "n_heads": HEADS,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.4,
        "loss_type": "CE",
        "MODEL_INPUT_TYPE": kind.POINTWISE,
        "device": torch.device("cpu"),
    }
    return {"config": config(values), "epoch": 3, "state_dict": state, "optimizer": {"state": {}}}


def rectools_file(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """A file as PyTorch Lightning writes it for RecTools."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"torch_model.{name}": value for name, value in state.items()},
        "hyper_parameters": {
            "model_config": {"n_heads": HEADS, "use_key_padding_mask": False, "dropout_rate": 0.3},
            "item_external_ids": np.array(["PAD", *(f"film-{i}" for i in range(1, ITEMS + 1))], object),
            "loss": "gBCE",
            "lr": np.float64(0.001),
        },
    }


def write(
    name: str,
    model: nn.Module,
    pad_left: bool = True,
    wrap: Callable[[dict[str, torch.Tensor]], object] = dict,
    legacy: bool = False,
) -> None:
    """Write a checkpoint, and beside it histories with the states of their real positions."""
    items = histories(pad_left)
    with torch.no_grad():
        states = randomize(model)(items) * (items > 0)[..., None]
    torch.save(wrap(model.state_dict()), HERE / f"{name}.pth", _use_new_zipfile_serialization=not legacy)
    np.savez_compressed(HERE / f"{name}.npz", items=items.numpy().astype(np.int8), states=states.numpy())


def main() -> None:
    """Write all of them."""
    torch.manual_seed(0)
    write("pmixer-2020", PMixer("2020"), legacy=True)
    write("pmixer-2024", PMixer("2024"))
    write("pmixer-2024-norm-first", PMixer("2024-norm-first"))
    write("s3rec", S3Rec())
    write("gsasrec", GSASRec())
    write("recbole", RecBole(), pad_left=False, wrap=recbole_file)
    write("rectools", RecTools(), wrap=rectools_file)


if __name__ == "__main__":
    main()
