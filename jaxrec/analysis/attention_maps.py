"""What attention looks at, drawn: weights over one history, query-level weights, and positional kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError, DataError
from jaxrec.serving.recommender import Recommender

LONGEST_TITLE = 28


def attention_weights(
    encoder: nn.Module, params: Mapping[str, Any], batch: Batch
) -> dict[str, dict[str, np.ndarray]]:
    """What each layer's attention sows for ``batch``: ``{layer: {name: float32[...]}}``, layers in order.

    Names are those in the mechanisms' docstrings, such as ``attention_weights`` [B, H, L, L].
    """

    @jax.jit
    def sown(params: Any, batch: Batch) -> Any:
        return encoder.apply({"params": params}, batch, False, mutable=["intermediates"])[1]

    found = {}
    for layer, content in sown(params, batch).get("intermediates", {}).items():
        if "attention" in content:
            found[layer] = {name: np.asarray(values[0]) for name, values in content["attention"].items()}
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def attention_figure(weights: np.ndarray, titles: Sequence[str | None], caption: str = "") -> Figure:
    """Heat maps of one history's attention, a panel a head: who looks (rows) at whom (columns).

    Args:
      weights: float[H, n, n] or [n, n], for the n interactions of the history only.
      titles: names of the n items, oldest first; None is shown as its place.
      caption: above the panels.
    """
    weights = np.asarray(weights)
    panels = weights[None] if weights.ndim == 2 else weights
    count, n = len(panels), panels.shape[-1]
    if panels.shape[1:] != (n, n) or len(titles) != n:
        raise ConfigError(
            f"weights must be [H, n, n] with one title for each of the n interactions: got weights of shape "
            f"{weights.shape} and {len(titles)} titles; cut the padding off first"
        )
    names = [str(place + 1) if title is None else _short(title) for place, title in enumerate(titles)]
    side = max(2.4, 0.17 * n)
    figure = Figure(figsize=(count * side + 3.2, side + 2.0), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for head, axis in enumerate(axes):
        image = axis.imshow(_masked_above(panels[head]), cmap="viridis", vmin=0.0, aspect="equal")
        axis.set_xticks(range(n), names, rotation=90, fontsize=6)
        axis.set_yticks(range(n), names, fontsize=6)
        axis.set_xlabel("attended to")
        axis.set_title(f"head {head + 1}" if count > 1 else "", fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.7)
    axes[0].set_ylabel("after seeing")
    figure.suptitle(caption, fontsize=9)
    return figure


def query_weights_figure(weights: np.ndarray, caption: str = "") -> Figure:
    """How the m query positions share the answer: mean weight of each slot by position in the history.

    Args:
      weights: float[n, m], or [B, n, m] to be averaged over B histories of length n.
      caption: above the panel.
    """
    weights = np.asarray(weights)
    by_position = weights if weights.ndim == 2 else weights.mean(axis=0)
    n, window = by_position.shape
    figure = Figure(figsize=(max(4.0, 0.1 * n + 2.0), 1.4 + 0.3 * window), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(by_position.T, cmap="viridis", vmin=0.0, aspect="auto", interpolation="nearest")
    back = [window - 1 - slot for slot in range(window)]
    axis.set_yticks(range(window), ["current item" if steps == 0 else f"{steps} before" for steps in back])
    axis.set_xlabel("position in the history, oldest first")
    axis.set_title(caption, fontsize=9)
    figure.colorbar(image, ax=axis, label="weight of the query")
    return figure


def matrices_figure(panels: Sequence[tuple[str, np.ndarray]], caption: str = "") -> Figure:
    """Heat maps of parameters, two to a row.

    Args:
      panels: title and matrix of each, from ``AttentionConfig.parameter_figures``.
      caption: above the panels.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(6.4, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (title, matrix) in zip(axes, panels, strict=False):
        limit = float(np.abs(matrix).max()) or 1.0
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(caption, fontsize=9)
    return figure


def parameter_panels(encoder: Any, params: Mapping[str, Any]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Matrices that the encoder's attention mechanism has to show: ``{figure: [(title, matrix), ...]}``."""
    layers = sorted((name for name in params if name.startswith("layer_")), key=lambda name: int(name[6:]))
    return encoder.attention.parameter_figures(
        encoder.attention_spec(),
        [params[name]["attention"] for name in layers],
        params.get("shared_attention", {}),
    )


def write_attention_figures(
    encoder: Any, params: Mapping[str, Any], batch: Batch, titles: Sequence[str | None], directory: Path
) -> list[tuple[str, Path]]:
    """Draw the encoder's attention for the single history in row 0 of ``batch``.

    Args:
      encoder: with attention.
      params: of the encoder.
      batch: arrays [1, L].
      titles: of the history's interactions, oldest first.
      directory: for the figures; existing files of the same names are replaced.

    Returns:
      (caption, file) of each figure.
    """
    directory.mkdir(parents=True, exist_ok=True)
    columns = np.flatnonzero(np.asarray(batch.segments)[0] > 0)
    if len(columns) == 0:
        raise ConfigError("the history to draw is empty: choose a user with at least one known interaction")
    first, last = int(columns[0]), int(columns[-1]) + 1
    drawn: list[tuple[str, str, Figure]] = []
    for number, (layer, sown) in enumerate(attention_weights(encoder, params, batch).items(), start=1):
        weights = sown["attention_weights"][0]
        # Dummies, where they are keys, come before the row's own positions.
        keys = weights[..., weights.shape[-1] - np.asarray(batch.segments).shape[1] :]
        history = keys[..., first:last, first:last]
        if "query_weights" in sown:
            slots = sown["query_weights"][0, first:last]
            drawn.append(
                (f"Query-level weights, layer {number}", f"{layer}_queries.png", query_weights_figure(slots))
            )
            history = np.einsum("hmij,im->hij", history, slots)
        drawn.append(
            (f"Attention, layer {number}", f"{layer}_attention.png", attention_figure(history, titles))
        )
    for name, panels in parameter_panels(encoder, params).items():
        drawn.append((name.replace("_", " ").capitalize(), f"{name}.png", matrices_figure(panels)))
    out = []
    for caption, name, figure in drawn:
        figure.suptitle(caption, fontsize=9)
        FigureCanvasAgg(figure)
        figure.savefig(directory / name, dpi=110)
        out.append((caption, directory / name))
    return out


def _short(title: str) -> str:
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"


def _masked_above(matrix: np.ndarray) -> np.ndarray:
    return np.where(np.tri(len(matrix), dtype=bool), matrix, np.nan)


def draw_attention(
    run: str | Path, history: Sequence[Any], out: str | Path, seed: int | None = None
) -> list[tuple[str, Path]]:
    """Draw what a trained model attends to in one history, and its positional kernels where it has any.

    Args:
      run: run directory.
      history: original item ids, oldest first; unknown ids are passed over.
      out: directory for the figures.
      seed: which of the run's models; None = the first.

    Returns:
      (caption, file) of each figure.

    Raises:
      ConfigError: the history has no known item.
      DataError: the model needs the time of each interaction, which a list of items does not have.
    """
    recommender = Recommender.load(run, seed)
    config, length = recommender.config, recommender.config.batches.max_length
    if recommender.needs_times:
        raise DataError(
            "this model needs the time of each interaction (positions 'time-interval'), and a history of item ids has "
            "none: build a Batch with timestamps and call jaxrec.analysis.attention_maps.write_attention_figures"
        )
    ids = recommender.items.item_indices(history)
    ids = ids[ids > 0][-length:]
    if not len(ids):
        raise ConfigError("history has no item of the catalogue: expected at least one known id")
    n = len(ids)
    row = np.zeros((1, length), np.int32)
    items, segments, positions = row.copy(), row.copy(), row.copy()
    items[0, :n], segments[0, :n] = ids, 1
    positions[0, :n] = np.arange(n) if config.batches.position_origin == "start" else np.arange(n)[::-1]
    batch = Batch(items, positions, segments, row, row.astype(np.float32), timestamps=row)
    titles = recommender.items.item_titles or recommender.items.item_ids
    return write_attention_figures(
        recommender.encoder, recommender.params, batch, [titles[i - 1] for i in ids], Path(out)
    )
