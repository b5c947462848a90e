"""Contract of an import format: the tensors of a published model become an encoder's configuration and parameters."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxrec.data.batches import PositionOrigin
from jaxrec.errors import CheckpointError, ConfigError
from jaxrec.interop.torch_files import TorchFile
from jaxrec.models import TransformerConfig
from jaxrec.registry import Registry


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """Settings that many files do not hold.

    Attributes:
      heads: attention heads; None = as the file says, or its name (``head=2``), or as the published code has it.
      activation: of the feed-forward network; empty = as the file says, or as the published code has it.
      variant: of the architecture, where a format has several; empty = judged by the tensors.
      dropout: rate for continued training; None = as the file says, or as the published code has it.
    """

    heads: int | None = None
    activation: str = ""
    variant: str = ""
    dropout: float | None = None


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """A published model in our terms.

    Attributes:
      encoder: configuration that computes the same hidden states.
      max_length: L, the longest history that the model has positions for.
      position_origin: what its positions count from.
      params: arrays by our names (``layer_0/attention/output/dense/kernel``); the rows of tables are those of the file.
      item_rows: V, rows 1..V of the file's item table are items.
      objective: name of the loss that the model was published with.
      item_ids: original id of each of the rows 1..V where the file has them, or None.
      mapping: tensor of the file -> our array.
      unused: tensor of the file -> why it has no counterpart.
      assumed: settings that the file does not hold, and where each was taken from.
    """

    encoder: TransformerConfig
    max_length: int
    position_origin: PositionOrigin
    params: Mapping[str, np.ndarray]
    item_rows: int
    objective: str
    item_ids: list[str] | None
    mapping: Mapping[str, str]
    unused: Mapping[str, str]
    assumed: list[str]


@dataclasses.dataclass(frozen=True)
class LayerNames:
    """Names that a code gives the tensors of its layers; "*" is the number of the layer.

    Attributes:
      attention_norm: layer norm of the attention.
      attention: a ``torch.nn.MultiheadAttention``, or the maps to queries, keys and values.
      output: affine map after separate projections; "" = none.
      feed_forward_norm: layer norm of the feed-forward network.
      inner: first affine map of the feed-forward network.
      outer: second.
      convolution: whether the maps of the feed-forward network are convolutions of kernel size 1.
    """

    attention_norm: str
    attention: str | tuple[str, str, str]
    feed_forward_norm: str
    inner: str
    outer: str
    output: str = ""
    convolution: bool = False


class Reader:
    """Takes tensors out of a file one by one, and says which one does not fit.

    Args:
      file: the checkpoint.
      format_name: for messages.
    """

    def __init__(self, file: TorchFile, format_name: str):
        self.file = file
        self.format_name = format_name
        self.params: dict[str, np.ndarray] = {}
        self.mapping: dict[str, str] = {}
        self.unused: dict[str, str] = {}
        self.assumed: list[str] = []

    def shape(self, name: str, *expected: int | None) -> tuple[int, ...]:
        """Sizes of a tensor, checked.

        Args:
          name: in the file.
          *expected: each axis; None = any.

        Raises:
          CheckpointError: it is missing, or has other axes.
        """
        sizes = "[" + ", ".join("*" if n is None else str(n) for n in expected) + "]"
        if name not in self.file.tensors:
            have = ", ".join(list(self.file.tensors)[:4]) or "none"
            raise CheckpointError(
                f"{self.file.path} does not fit --format {self.format_name}: expected a tensor {name} {sizes}, got none of "
                f"this name (its first tensors: {have}); choose the format of the code that wrote it"
            )
        shape = self.file.tensors[name].shape
        fits = len(shape) == len(expected) and all(
            e is None or e == n for e, n in zip(expected, shape, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"{self.file.path} does not fit --format {self.format_name}: expected {name} {sizes}, got "
                f"{list(shape)}; choose the format and the options of the code that wrote it"
            )
        return shape

    def count(self, pattern: str) -> int:
        """Number of layers: 1 + the highest number that ``pattern``, with a group for it, finds in a name."""
        numbers = [
            int(match.group(1)) for name in self.file.tensors if (match := re.fullmatch(pattern, name))
        ]
        return max(numbers, default=-1) + 1

    def take(self, ours: str, name: str, *expected: int | None) -> np.ndarray:
        """Put a tensor under our name, as it is, and return it."""
        self.shape(name, *expected)
        self.params[ours] = np.asarray(self.file.tensors[name], np.float32)
        self.mapping[name] = ours
        return self.params[ours]

    def norm(self, ours: str, name: str, width: int) -> None:
        """Take a layer norm."""
        self.take(f"{ours}/scale", f"{name}.weight", width)
        self.take(f"{ours}/bias", f"{name}.bias", width)

    def dense(self, ours: str, name: str, inner: int, outer: int, convolution: bool = False) -> None:
        """Take an affine map from ``inner`` to ``outer`` features; with ``convolution`` one of kernel size 1."""
        sizes = (outer, inner, 1) if convolution else (outer, inner)
        kernel = self.take(f"{ours}/kernel", f"{name}.weight", *sizes)
        self.params[f"{ours}/kernel"] = np.ascontiguousarray(kernel.reshape(outer, inner).T)
        self.take(f"{ours}/bias", f"{name}.bias", outer)

    def projections(self, ours: str, names: tuple[str, ...], width: int) -> None:
        """Take the maps to queries, keys and values, which we keep side by side."""
        kernels, biases = [], []
        for name in names:
            self.shape(f"{name}.weight", width, width)
            self.shape(f"{name}.bias", width)
            kernels.append(self.file.tensors[f"{name}.weight"].T)
            biases.append(self.file.tensors[f"{name}.bias"])
            self.mapping[f"{name}.weight"] = f"{ours}/kernel"
            self.mapping[f"{name}.bias"] = f"{ours}/bias"
        self.params[f"{ours}/kernel"] = np.concatenate(kernels, axis=1).astype(np.float32)
        self.params[f"{ours}/bias"] = np.concatenate(biases).astype(np.float32)

    def torch_attention(self, ours: str, name: str, width: int) -> None:
        """Take a ``torch.nn.MultiheadAttention``."""
        kernel = self.take(f"{ours}/projections/kernel", f"{name}.in_proj_weight", 3 * width, width)
        self.params[f"{ours}/projections/kernel"] = np.ascontiguousarray(kernel.T)
        self.take(f"{ours}/projections/bias", f"{name}.in_proj_bias", 3 * width)
        self.dense(f"{ours}/output/dense", f"{name}.out_proj", width, width)

    def layers(self, names: LayerNames, width: int) -> tuple[int, int]:
        """Take all layers, each an attention and a feed-forward network with their norms.

        Returns:
          Number of layers, and features inside the feed-forward networks.
        """
        pattern = re.escape(names.attention_norm).replace(r"\*", r"(\d+)")
        count = self.count(pattern + r"\..*")
        kernel = (None, width, 1) if names.convolution else (None, width)
        hidden = self.shape(f"{names.inner}.weight".replace("*", "0"), *kernel)[0]
        for layer in range(count):

            def theirs(name: str, number: str = str(layer)) -> str:
                return name.replace("*", number)

            ours = f"layer_{layer}"
            self.norm(f"{ours}/attention_norm", theirs(names.attention_norm), width)
            if isinstance(names.attention, str):
                self.torch_attention(f"{ours}/attention", theirs(names.attention), width)
            else:
                self.projections(f"{ours}/attention/projections", tuple(map(theirs, names.attention)), width)
            if names.output:
                self.dense(f"{ours}/attention/output/dense", theirs(names.output), width, width)
            self.norm(f"{ours}/feed_forward_norm", theirs(names.feed_forward_norm), width)
            maps = f"{ours}/feed_forward"
            self.dense(f"{maps}/inner", theirs(names.inner), width, hidden, names.convolution)
            self.dense(f"{maps}/outer", theirs(names.outer), hidden, width, names.convolution)
        return count, hidden

    def leave(self, pattern: str, reason: str) -> None:
        """Leave the tensors whose names ``pattern`` matches, for a reason."""
        for name in self.file.tensors:
            if name not in self.mapping and re.fullmatch(pattern, name):
                self.unused[name] = reason

    def finish(self) -> None:
        """Check that nothing is left over.

        Raises:
          CheckpointError: a tensor has no place; the first is named.
        """
        rest = [name for name in self.file.tensors if name not in self.mapping and name not in self.unused]
        if rest:
            shape = list(self.file.tensors[rest[0]].shape)
            raise CheckpointError(
                f"{self.file.path} does not fit --format {self.format_name}: its tensor {rest[0]} {shape} has no place in "
                f"this architecture ({len(rest)} such tensors); choose the format of the code that wrote it"
            )

    def model(
        self,
        encoder: TransformerConfig,
        max_length: int,
        position_origin: PositionOrigin,
        item_rows: int,
        objective: str,
        item_ids: list[str] | None = None,
    ) -> ImportedModel:
        """Put together what was read; the arguments are fields of `ImportedModel`."""
        return ImportedModel(
            encoder,
            max_length,
            position_origin,
            self.params,
            item_rows,
            objective,
            item_ids,
            self.mapping,
            self.unused,
            self.assumed,
        )

    def setting(self, name: str, choice: Any, in_file: Any, default: Any) -> Any:
        """A setting: as the user gave it, as the file says, or as the published code has it, which is noted."""
        if choice not in (None, ""):
            return choice
        if in_file is not None:
            return in_file
        self.assumed.append(
            f"{name} {default} (not in the file; give --{name} if it was trained with another)"
        )
        return default

    def heads(self, options: ImportOptions, in_file: Any, default: int, width: int) -> int:
        """Number of attention heads; the tensors do not show it."""
        if in_file is None and (match := re.search(r"(?:^|[._-])heads?=(\d+)", self.file.path.name)):
            in_file = int(match.group(1))
        heads = int(self.setting("heads", options.heads, in_file, default))
        if heads < 1 or width % heads:
            raise ConfigError(
                f"--heads must divide the width {width} of the checkpoint: got {heads}; choose from "
                f"{[h for h in range(1, width + 1) if width % h == 0]}"
            )
        return heads


class CheckpointFormat(abc.ABC):
    """Base of the formats; a subclass registers itself in `FORMATS`."""

    #: Code that writes such files, for listings.
    source: ClassVar[str] = ""
    #: Packages whose objects lie beside the tensors and become placeholders.
    inert: ClassVar[tuple[str, ...]] = ()
    #: Architectures that share the names of their tensors; the first is the default where they cannot be told apart.
    variants: ClassVar[tuple[str, ...]] = ()
    #: Whether an item's row is its original id, an integer.
    ids_are_rows: ClassVar[bool] = True

    @abc.abstractmethod
    def read(self, reader: Reader, options: ImportOptions) -> ImportedModel:
        """Map the tensors of a file.

        Raises:
          CheckpointError: the file has another architecture; the first tensor that does not fit is named.
          ConfigError: an option cannot work with it.
        """

    def check_variant(self, options: ImportOptions) -> None:
        """Reject a variant that the format does not have."""
        if options.variant and options.variant not in self.variants:
            expected = ", ".join(self.variants) or "none"
            raise ConfigError(f"--variant must be one of this format's ({expected}); got {options.variant!r}")


#: Formats by name; `FORMATS.register` adds one.
FORMATS: Registry[type[CheckpointFormat]] = Registry("checkpoint format")


def from_newest(table: np.ndarray) -> np.ndarray:
    """Position vectors counted from the newest position, of a table whose last row is the newest's."""
    return np.ascontiguousarray(table[::-1])
