"""A training step of SASRec in PyTorch, as fast as we could write it for a CPU; the other side of `pytorch_race`.

`pytorch_race` starts this file with a Python that has PyTorch, in a process of its own: it imports nothing of jaxrec. Every
line on standard input is a number of steps to run; each is answered by the seconds that they took and their mean loss.

The steps see the sequences of jaxrec's packed batches. They lie in buckets of nearly equal length, one after the other, so
that linear layers, norms and dropout run over all of them at once with little padding, and attention views each bucket
without a copy. Queries of long buckets are cut into blocks that meet only the keys which a causal mask allows. Dropout masks
are bytes, eight of them from each random number. The loss computes logits, softmax and both gradients of a chunk of
positions while they are in the cache, and never holds all logits; ``bf16`` lets its products, and those of the encoder with
``--encoder bf16``, have bfloat16 operands. The optimiser is PyTorch's fused AdamW.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

#: Positions of a chunk of the loss, and queries of a block of attention.
LOSS_CHUNK, QUERY_BLOCK = 1024, 64


class Step(NamedTuple):
    """A batch laid out in buckets.

    Attributes:
      items: int64[T], 0 = padding inside a bucket.
      positions: int64[T].
      targets: int64[N], 1..V.
      places: int64[N], index in T of each target.
      buckets: (start, rows, length) of each bucket in T.
    """

    items: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor
    buckets: list[tuple[int, int, int]]


def lay_out(arrays: dict[str, np.ndarray], number: int, buckets: int) -> Step:
    """Put the sequences of batch ``number`` into buckets of nearly equal length."""
    lengths = arrays[f"lengths_{number}"]
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(lengths, kind="stable")
    items: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    places: list[np.ndarray] = []
    shapes: list[tuple[int, int, int]] = []
    size = 0
    for members in np.array_split(order, min(buckets, len(order))):
        longest = int(lengths[members].max())
        shapes.append((size, len(members), longest))
        column = np.arange(longest)
        real = column < lengths[members][:, None]
        place = np.where(real, starts[members][:, None] + column, 0)
        for out, name in ((items, "items"), (positions, "positions")):
            out.append(np.where(real, arrays[f"{name}_{number}"][place], 0).reshape(-1))
        targets.append(arrays[f"targets_{number}"][place][real])
        places.append(size + np.flatnonzero(real.reshape(-1)))
        size += real.size

    def joined(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Step(joined(items), joined(positions), joined(targets), joined(places), shapes)


class _Dropout(torch.autograd.Function):
    """Dropout whose mask has one random byte per element."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, rate: float) -> torch.Tensor:
        size = x.numel()
        words = torch.empty(-(-size // 8), dtype=torch.int64).random_(-(2**63), None)
        dropped = round(rate * 256)
        mask = (words.view(torch.uint8)[:size] >= dropped).view(x.shape)
        context.mask, context.scale = mask, 256.0 / (256.0 - dropped)
        return torch.ops.aten.native_dropout_backward(x, mask, context.scale)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.ops.aten.native_dropout_backward(gradient, context.mask, context.scale), None


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Drop elements of ``x``."""
    return _Dropout.apply(x, rate) if rate else x


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over items 1..V; the gradients come out of the forward pass."""

    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        items = table[1:].to(dtype)
        of_hidden, of_table = torch.empty_like(hidden), torch.zeros_like(table)
        total, count = 0.0, len(targets)
        for start in range(0, count, LOSS_CHUNK):
            chunk = slice(start, min(start + LOSS_CHUNK, count))
            states, wanted = hidden[chunk].to(dtype), targets[chunk, None] - 1
            scores = (states @ items.T).float()
            right = scores.gather(1, wanted)
            largest = scores.amax(dim=1, keepdim=True)
            weights = scores.sub_(largest).exp_()
            sums = weights.sum(dim=1, keepdim=True)
            total += float((sums.log() + largest - right).sum())
            weights.mul_(1.0 / (sums * count))
            weights.scatter_add_(1, wanted, torch.full_like(right, -1.0 / count))
            weights = weights.to(dtype)
            of_hidden[chunk] = weights @ items
            if dtype == torch.float32:
                of_table[1:].addmm_(weights.T, states)
            else:
                of_table[1:] += weights.T @ states
        context.gradients = of_hidden, of_table
        return torch.tensor(total / count)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_table = context.gradients
        return of_hidden * gradient, of_table * gradient, None, None


class SASRec(torch.nn.Module):
    """Pre-norm blocks with one attention head, as in jaxrec's presets `sasrec` and `sasrec-ml1m`."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        width = options.width
        self.options = options
        self.items = torch.nn.Parameter(0.02 * torch.randn(options.items + 1, width))
        self.positions = torch.nn.Parameter(0.02 * torch.randn(options.max_length, width))
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "attention_norm": torch.nn.LayerNorm(width, eps=1e-6),
                    "projections": torch.nn.Linear(width, 3 * width),
                    "output": torch.nn.Linear(width, width),
                    "norm": torch.nn.LayerNorm(width, eps=1e-6),
                    "inner": torch.nn.Linear(width, width),
                    "outer": torch.nn.Linear(width, width),
                }
            )
            for _ in range(options.layers)
        )
        self.final_norm = torch.nn.LayerNorm(width, eps=1e-6)
        self.encoder_dtype = torch.bfloat16 if options.encoder == "bf16" else torch.float32
        self.loss_dtype = torch.bfloat16 if options.loss == "bf16" else torch.float32

    def linear(self, layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """An affine map with operands of the encoder's precision."""
        if self.encoder_dtype == torch.float32:
            return layer(x)
        kernel = layer.weight.to(self.encoder_dtype)
        return F.linear(x.to(self.encoder_dtype), kernel).float() + layer.bias

    def attend(self, qkv: torch.Tensor, buckets: list[tuple[int, int, int]]) -> torch.Tensor:
        """Causal attention inside each bucket of ``qkv`` [T, 3 D]: [T, D]."""
        width, rate = self.options.width, self.options.attention_dropout
        out = []
        for start, rows, length in buckets:
            whole = qkv[start : start + rows * length].view(rows, length, 3 * width)
            q, k, v = whole.split(width, dim=2)
            block = QUERY_BLOCK if length > QUERY_BLOCK else length
            parts = []
            for first in range(0, length, block):
                stop = min(first + block, length)
                later = torch.ones(stop - first, stop, dtype=torch.bool).triu_(first + 1)
                forbidden = torch.zeros(stop - first, stop).masked_fill_(later, -1e30)
                scores = torch.baddbmm(
                    forbidden, q[:, first:stop], k[:, :stop].transpose(1, 2), alpha=width**-0.5
                )
                weights = dropout(scores.softmax(dim=2), rate)
                parts.append(torch.bmm(weights, v[:, :stop]))
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            out.append(joined.reshape(-1, width))
        return torch.cat(out)

    def forward(self, step: Step) -> torch.Tensor:
        """The mean loss of a batch."""
        rate = self.options.dropout
        x = dropout(F.embedding(step.items, self.items) + F.embedding(step.positions, self.positions), rate)
        for layer in self.layers:
            qkv = self.linear(layer["projections"], layer["attention_norm"](x))
            x = x + dropout(self.linear(layer["output"], self.attend(qkv, step.buckets)), rate)
            inner = F.gelu(self.linear(layer["inner"], layer["norm"](x)), approximate="tanh")
            x = x + dropout(self.linear(layer["outer"], dropout(inner, rate)), rate)
        hidden = self.final_norm(x).index_select(0, step.places)
        return _CrossEntropy.apply(hidden, self.items, step.targets, self.loss_dtype)


def main() -> None:
    """Run as many steps as each line of standard input asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", required=True, help="npz file of sequences that pytorch_race wrote")
    for name in ("items", "max-length", "width", "layers", "threads", "buckets"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("dropout", "attention-dropout"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("encoder", "loss"):
        parser.add_argument(f"--{name}", choices=("float32", "bf16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    arrays = dict(np.load(options.batches))
    batches = sum(name.startswith("lengths_") for name in arrays)
    model = SASRec(options)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    number = 0
    for line in sys.stdin:
        losses = []
        started = time.perf_counter()
        for _ in range(int(line)):
            step = lay_out(arrays, number % batches, options.buckets)
            optimizer.zero_grad(set_to_none=True)
            loss = model(step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            number += 1
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "loss": sum(losses) / len(losses)}), flush=True)


if __name__ == "__main__":
    main()
