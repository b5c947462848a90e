"""A run as one ONNX model: histories in, a score for each item out, for runtimes without Python or JAX."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.serving.export import history_batch
from jaxrec.serving.recommender import Recommender

#: Inputs and outputs of the model, in this order.
INPUTS, OUTPUTS = ("items", "lengths"), ("scores",)


def export_onnx(recommender: Recommender, out: str | Path, rows: int | None = None) -> dict[str, Any]:
    """Write ``model.onnx`` and ``catalogue.json`` into a new directory.

    The model takes ``items`` int32[B, L] (numbers of the catalogue from 1, oldest first, 0 after the newest) and ``lengths``
    int32[B] of at least 1, and returns ``scores`` float32[B, V] for items 1 to V. What was seen is not removed. The
    catalogue lists the ids of items 1 to V, the longest history, and versions.

    Args:
      recommender: of a finished run.
      out: directory to make.
      rows: B; None = any number.

    Returns:
      ``out``, items, operations, and the largest difference of its scores to those of the run for 4 histories.

    Raises:
      RunExistsError: ``out`` exists.
      ConfigError: jax2onnx or onnxruntime is not installed, the model reads times or lies on a mesh, has an operation that
        jax2onnx cannot translate, or its scores are others than those of the run.
    """
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs jax2onnx and onnxruntime, got no {error.name}: they want an environment of their own, which the "
            "page 'Serving' of the documentation sets up (docs/serving.md)"
        ) from None
    if recommender.ranker.mesh is not None or recommender.needs_times:
        raise ConfigError(
            "--onnx needs a model on one device that reads no times, got one that "
            + ("reads times" if recommender.needs_times else "lies on a mesh")
        )
    out = Path(out)
    if out.exists():
        raise RunExistsError(f"--out {out} exists, and nothing was overwritten: give another --out")
    scores, length = _scores(recommender), recommender.ranker.encoding.longest_history
    number: Any = "B" if rows is None else rows
    inputs = [
        jax.ShapeDtypeStruct((number, recommender.ranker.encoding.max_length), jnp.int32),
        jax.ShapeDtypeStruct((number,), jnp.int32),
    ]
    try:
        model = jax2onnx.to_onnx(scores, inputs=inputs, input_names=INPUTS, output_names=OUTPUTS)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever translator and runtime raise for an operation that they do not have
        choice = "; --rows N may help" if rows is None else ""
        raise ConfigError(
            f"this {type(recommender.encoder).__name__} cannot be translated to ONNX: {_first_line(error)}{choice}; use "
            "jaxrec export without --onnx"
        ) from error
    difference = _difference(session, scores, recommender, rows or 4)
    if not difference <= 1e-4:
        raise ConfigError(
            f"ONNX Runtime's scores differ from the run's by up to {difference:.2g}: expected at most 1e-4; use jaxrec "
            "export without --onnx"
        )
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    onnx.save(model, str(unfinished / "model.onnx"))
    catalogue = {
        "items": [str(name) for name in recommender.items.item_ids],
        "max_length": length,
        "rows": rows,
        "remove_seen": recommender.config.evaluation.remove_seen,
        **{name: importlib.metadata.version(name) for name in ("jaxrec", "jax", "jax2onnx", "onnx")},
    }
    (unfinished / "catalogue.json").write_text(json.dumps(catalogue) + "\n")
    unfinished.rename(out)
    return {
        "out": str(out),
        "items": recommender.items.n_items,
        "operations": len(model.graph.node),
        "largest_difference": difference,
    }


def _scores(recommender: Recommender) -> Any:
    """The function that is translated."""
    ranker, params = recommender.ranker, recommender.params
    table = recommender.encoder.item_table(params)
    last = recommender.items.n_items + 1
    vectors = jnp.asarray(table.vectors, jnp.float32)[1:last]
    bias = None if table.bias is None else jnp.asarray(table.bias, jnp.float32)[1:last]

    def scores(items: Array, lengths: Array) -> Array:
        batch, position = history_batch(items, lengths, None, ranker.encoding)
        states = ranker.forward(params, batch, position)[:, 0].astype(jnp.float32)
        product = states @ vectors.T
        return product if bias is None else product + bias

    return scores


def _difference(session: Any, scores: Any, recommender: Recommender, rows: int) -> float:
    """Largest difference of the scores of random histories, from one item to the longest."""
    encoding, generator = recommender.ranker.encoding, np.random.default_rng(0)
    sizes = np.linspace(1, encoding.longest_history, rows).astype(np.int32)
    items = generator.integers(1, recommender.items.n_items + 1, (rows, encoding.max_length), np.int32)
    items[np.arange(encoding.max_length) >= sizes[:, None]] = 0
    (ours,) = session.run(list(OUTPUTS), dict(zip(INPUTS, (items, sizes), strict=True)))
    return float(np.abs(ours - np.asarray(jax.jit(scores)(items, sizes))).max())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
