"""Export of a run: programs, weights and catalogue that answer without the training code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxrec.serving.runtime as runtime
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.serving.recommender import Recommender

#: Platforms that an artefact may be exported for, by JAX's names.
PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(
    recommender: Recommender, out: str | Path, platforms: Sequence[str] = PLATFORMS
) -> dict[str, Any]:
    """Write an artefact: `jaxrec.serving.runtime.Artefact` loads it with jax and numpy alone.

    The directory has ``encode.bin`` and ``table.bin`` (programs of `jax.export`, for any number of histories), the weights,
    the catalogue, ``runtime.py`` and ``manifest.json`` with versions and checksums. It appears whole or not at all.

    Args:
      recommender: of a finished run.
      out: directory to make.
      platforms: of `PLATFORMS`.

    Returns:
      The manifest.

    Raises:
      RunExistsError: ``out`` exists.
      ConfigError: a platform is unknown, the model is spread over a mesh, or the extra ``export`` is not installed.
    """
    try:
        import flatbuffers  # noqa: F401 - JAX writes programs with it
    except ImportError:
        raise ConfigError("jaxrec export needs its extra: pip install 'jaxrec[export]'") from None
    out = Path(out)
    wrong = [name for name in platforms if name not in PLATFORMS]
    if wrong or not platforms:
        raise ConfigError(
            f"--platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(wrong) or 'none'}"
        )
    if recommender.ranker.mesh is not None:
        raise ConfigError(
            "export needs a model on one device, got one on a mesh: load the run without --mesh.data and --mesh.item"
        )
    if out.exists():
        raise RunExistsError(f"--out {out} exists, and nothing was overwritten: give another --out")
    unfinished = out.with_name(f"{out.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    leaves, structure = jax.tree.flatten(recommender.params)
    programs = _programs(recommender, leaves, structure, platforms)
    for name, program in programs.items():
        (unfinished / f"{name}.bin").write_bytes(program.serialize())
    arrays = {f"weights-{i:03d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    catalogue, counts = recommender.items, recommender.ranker.item_counts
    arrays |= catalogue.catalogue.arrays()
    if counts is not None:
        arrays["item_counts"] = np.asarray(counts)
    for name, array in arrays.items():
        np.save(unfinished / f"{name}.npy", array)
    shutil.copy(str(runtime.__file__), unfinished / "runtime.py")
    encoding = recommender.ranker.encoding
    model = {
        "weights": len(leaves),
        "items": catalogue.n_items,
        "titles": catalogue.item_titles is not None,
        "counts": counts is not None,
        "max_length": encoding.max_length,
        "longest_history": encoding.longest_history,
        "needs_times": recommender.needs_times,
        "remove_seen": recommender.config.evaluation.remove_seen,
        "tie_seed": recommender.ranker.table.tie_seed,
        "encoder": type(recommender.encoder).__name__,
    }
    manifest: dict[str, Any] = {
        "format": runtime.FORMAT,
        "version": runtime.VERSION,
        "jaxrec": _version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "platforms": list(platforms),
        "dataset": catalogue.meta.get("source_fingerprint", ""),
        "model": model,
        "files": {file.name: _sha256(file) for file in sorted(unfinished.iterdir())},
    }
    manifest["digest"] = runtime.digest_of(manifest)
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    unfinished.rename(out)
    return manifest


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("jaxrec")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _programs(
    recommender: Recommender, leaves: list[Array], structure: Any, platforms: Sequence[str]
) -> dict[str, jax.export.Exported]:
    """The encoder for any number of histories, and the table of candidates."""
    encoding, forward, encoder = recommender.ranker.encoding, recommender.ranker.forward, recommender.encoder
    length, with_times = encoding.max_length, recommender.needs_times

    def state(weights: list[Array], items: Array, size: Array, times: Array) -> Array:
        """float32[D] of one history: int32[L] items and times, of which the first ``size`` are real."""
        batch, last = history_batch(items[None], size[None], times[None] if with_times else None, encoding)
        params = jax.tree.unflatten(structure, weights)
        return forward(params, batch, last)[0, 0].astype(jnp.float32)

    def encode(weights: list[Array], items: Array, lengths: Array, times: Array) -> Array:
        # One history at a time, and then all: a number of rows that is not known would rule out code that goes by it.
        return jax.vmap(state, in_axes=(None, 0, 0, 0))(weights, items, lengths, times)

    def table(weights: list[Array]) -> tuple[Array, Array]:
        items = encoder.item_table(jax.tree.unflatten(structure, weights))
        vectors = jnp.asarray(items.vectors, jnp.float32)
        bias = jnp.zeros(vectors.shape[:1], jnp.float32) if items.bias is None else items.bias
        return vectors, jnp.asarray(bias, jnp.float32)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    rows = jax.export.symbolic_shape("b")[0]
    matrix = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    sizes = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return {
        "encode": jax.export.export(jax.jit(encode), platforms=platforms)(shapes, matrix, sizes, matrix),
        "table": jax.export.export(jax.jit(table), platforms=platforms)(shapes),
    }


def history_batch(items: Array, sizes: Array, times: Array | None, encoding: Any) -> tuple[Batch, Array]:
    """Put histories at the start of their rows.

    Args:
      items: int32[B, L], oldest first.
      sizes: int32[B], how many of each row are real.
      times: int32[B, L], or None.
      encoding: of the ranker: maximum length, origin of positions, and token of the question.

    Returns:
      The batch, and int32[B, 1], the position of each row whose state scores the next item.
    """
    column = jnp.arange(encoding.max_length, dtype=jnp.int32)[None]
    size = sizes[:, None]
    if encoding.query_token is not None:
        items = jnp.where(column == size, jnp.int32(encoding.query_token), items)
        if times is not None:
            newest = jnp.take_along_axis(times, jnp.maximum(size - 1, 0), axis=1)
            times = jnp.where(column == size, newest, times)
        size = size + 1
    real = column < size
    positions = column if encoding.position_origin == "start" else size - 1 - column
    zeros = jnp.zeros_like(items)
    batch = Batch(
        items=jnp.where(real, items, 0),
        positions=jnp.where(real, positions, 0),
        segments=real.astype(jnp.int32),
        targets=zeros,
        weights=zeros.astype(jnp.float32),
        timestamps=None if times is None else jnp.where(real, times, 0),
        users=jnp.full_like(zeros, -1),
    )
    return batch, jnp.maximum(size - 1, 0)
