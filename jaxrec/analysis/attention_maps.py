"""Attention maps of a trained model: weights over one history, their spread, and matrices of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxrec.analysis.figures import save_figure
from jaxrec.attention import allowed_positions
from jaxrec.attention.base import Mask
from jaxrec.attention.positions import offsets
from jaxrec.data.batches import Batch, gather_batch
from jaxrec.data.packing import Sequences, pad
from jaxrec.errors import ConfigError, DataError
from jaxrec.models.attentive import AttentiveEncoder
from jaxrec.serving.recommender import Recommender

LONGEST_TITLE = 28


def attention_weights(
    encoder: nn.Module, params: Mapping[str, Any], batch: Batch, mask: Mask = "causal"
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays that each layer's attention sows for a batch.

    Args:
      encoder: an encoder with attention.
      params: its parameters.
      batch: arrays of [B, L].
      mask: "causal" or "bidirectional".

    Returns:
      ``{layer: {name: float32[...]}}``, layers in order, with the names of the mechanisms' docstrings, such as
      ``attention_weights`` [B, H, L, L].
    """

    @jax.jit
    def sown(params: Any, batch: Batch) -> Any:
        return encoder.apply({"params": params}, batch, False, mask=mask, mutable=["intermediates"])[1]

    layers = {}
    for layer, content in sown(params, batch).get("intermediates", {}).items():
        if "attention" in content:
            layers[layer] = {name: np.asarray(values[0]) for name, values in content["attention"].items()}
    return dict(sorted(layers.items(), key=lambda item: (len(item[0]), item[0])))


class WeightStatistics(NamedTuple):
    """Concentration of attention weights for each query; NaN for padding and for queries with one key.

    Attributes:
      entropy: float[B, H, L], as a fraction of that of uniform weights: 1 = uniform, 0 = one key has all.
      from_uniform: float[B, H, L], total variation distance to uniform weights.
      reach: float[B, H, L], mean distance of the keys in interactions, as a fraction of that of uniform weights: 0 = all
        weight on the query's own interaction, above 1 = older ones have more than their share.
      from_first: float[B, H, L], total variation distance to the first weights of a refinement, or None.
    """

    entropy: np.ndarray
    from_uniform: np.ndarray
    reach: np.ndarray
    from_first: np.ndarray | None

    def means(self) -> dict[str, float]:
        """The mean of each over all queries."""
        return {
            name: float(np.nanmean(values)) for name, values in self._asdict().items() if values is not None
        }


def weight_statistics(
    weights: np.ndarray, segments: np.ndarray, first: np.ndarray | None = None, mask: Mask = "causal"
) -> WeightStatistics:
    """Measure how concentrated attention weights are, how far they reach, and how far from uniform and the first they are.

    Args:
      weights: float[B, H, L, L], each row a distribution over the keys that the mask allows.
      segments: int[B, L], as in `Batch`.
      first: float[B, H, L, L], the sown ``first_weights`` of a refinement, or None.
      mask: "causal" or "bidirectional".

    Raises:
      ConfigError: the weights are no distributions, as those of pointwise attention are not.
    """
    weights = np.asarray(weights, np.float64)
    if weights.min() < 0 or np.abs(weights.sum(axis=-1) - 1).max() > 1e-3:
        raise ConfigError(
            "weight statistics need weights that sum to 1 over the keys, got others: they are defined for softmax "
            "attention and its refinements, not for pointwise attention or keys outside the row"
        )
    allowed = np.asarray(allowed_positions(jnp.asarray(segments), mask))[:, None]
    count = allowed.sum(axis=-1)
    counted = (count > 1) & (np.asarray(segments) > 0)[:, None]
    logarithms = np.log(np.maximum(weights, 1e-300))
    entropy = -(weights * logarithms).sum(axis=-1) / np.log(np.maximum(count, 2))

    uniform = allowed / np.maximum(count, 1)[..., None]
    apart = np.abs(offsets(weights.shape[-1]))
    reach = (weights * apart).sum(axis=-1) / np.where(counted, (uniform * apart).sum(axis=-1), 1.0)

    def distance(other: np.ndarray) -> np.ndarray:
        return np.where(counted, 0.5 * np.abs(weights - other).sum(axis=-1), np.nan)

    return WeightStatistics(
        np.where(counted, entropy, np.nan),
        distance(uniform),
        np.where(counted, reach, np.nan),
        None if first is None else distance(np.asarray(first, np.float64)),
    )


def statistics_figure(layers: Mapping[str, WeightStatistics], caption: str = "") -> Figure:
    """Entropy, reach and distances of attention weights by position in the history, averaged over rows and heads.

    Args:
      layers: statistics of each layer, of histories without padding.
      caption: above the panels.
    """
    figure = Figure(figsize=(3.4 * len(layers) + 1.0, 3.0), layout="constrained")
    axes = figure.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    labels = (
        "entropy (1 = uniform)",
        "distance to uniform",
        "reach (1 = uniform)",
        "distance to the first weights",
    )
    for axis, (layer, statistics) in zip(axes, layers.items(), strict=True):
        for label, values in zip(labels, statistics, strict=True):
            if values is not None and values.shape[-1] > 1:
                # The first position has one key, and no spread.
                axis.plot(range(2, values.shape[-1] + 1), values[..., 1:].mean(axis=(0, 1)), label=label)
        axis.set_title(layer.replace("_", " "), fontsize=8)
        axis.set_xlabel("position in the history, oldest first", fontsize=8)
        axis.set_ylim(-0.02, max(1.02, axis.get_ylim()[1]))
    axes[0].legend(fontsize=7)
    figure.suptitle(caption, fontsize=9)
    return figure


def attention_figure(
    weights: np.ndarray, titles: Sequence[str | None], caption: str = "", mask: Mask = "causal"
) -> Figure:
    """Heat maps of one history's attention, one panel per head: queries in rows, keys in columns.

    Args:
      weights: float[H, n, n] or [n, n], for the n interactions of the history only.
      titles: names of the n items, oldest first; None is shown as its place.
      caption: above the panels.
      mask: "causal" leaves later keys blank.
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
        image = axis.imshow(
            _masked_above(panels[head]) if mask == "causal" else panels[head],
            cmap="viridis",
            vmin=0.0,
            aspect="equal",
        )
        axis.set_xticks(range(n), names, rotation=90, fontsize=6)
        axis.set_yticks(range(n), names, fontsize=6)
        axis.set_xlabel("key")
        axis.set_title(f"head {head + 1}" if count > 1 else "", fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.7)
    axes[0].set_ylabel("query")
    figure.suptitle(caption, fontsize=9)
    return figure


def query_weights_figure(weights: np.ndarray, caption: str = "") -> Figure:
    """Heat map of the weights of the m query positions, by position in the history.

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
    encoder: Any,
    params: Mapping[str, Any],
    batch: Batch,
    titles: Sequence[str | None],
    directory: Path,
    mask: Mask = "causal",
) -> list[tuple[str, Path]]:
    """Draw the attention of an encoder for the single history in row 0 of a batch.

    Existing files of the same names are replaced.

    Args:
      encoder: an encoder with attention.
      params: its parameters.
      batch: arrays of [1, L].
      titles: names of the history's interactions, oldest first.
      directory: created if missing.
      mask: "causal" or "bidirectional".

    Returns:
      (caption, file) of each figure.

    Raises:
      ConfigError: the history is empty.
    """
    directory.mkdir(parents=True, exist_ok=True)
    columns = np.flatnonzero(np.asarray(batch.segments)[0] > 0)
    if len(columns) == 0:
        raise ConfigError("the history to draw is empty: choose a user with at least one known interaction")
    first, last = int(columns[0]), int(columns[-1]) + 1
    figures: list[tuple[str, str, Figure]] = []
    statistics: dict[str, WeightStatistics] = {}
    for number, (layer, sown) in enumerate(attention_weights(encoder, params, batch, mask).items(), start=1):
        if "attention_weights" not in sown:
            continue
        weights = sown["attention_weights"][0]
        # Dummies, where they are keys, come before the row's own positions.
        keys = weights[..., weights.shape[-1] - np.asarray(batch.segments).shape[1] :]
        history = keys[..., first:last, first:last]
        if "query_weights" in sown:
            slots = sown["query_weights"][0, first:last]
            figures.append(
                (f"Query-level weights, layer {number}", f"{layer}_queries.png", query_weights_figure(slots))
            )
            history = np.einsum("hmij,im->hij", history, slots)
        figures.append(
            (
                f"Attention, layer {number}",
                f"{layer}_attention.png",
                attention_figure(history, titles, mask=mask),
            )
        )
        if "first_weights" in sown:
            original = sown["first_weights"][:, :, first:last, first:last]
            segments = np.ones((1, last - first), np.int32)
            statistics[layer] = weight_statistics(history[None], segments, original, mask)
    if statistics:
        figures.append(("Spread of the weights", "weight_statistics.png", statistics_figure(statistics)))
    for name, panels in parameter_panels(encoder, params).items():
        figures.append((name.replace("_", " ").capitalize(), f"{name}.png", matrices_figure(panels)))
    out = []
    for caption, name, figure in figures:
        figure.suptitle(caption, fontsize=9)
        save_figure(figure, directory / name, dpi=110)
        out.append((caption, directory / name))
    return out


def _short(title: str) -> str:
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"


def _masked_above(matrix: np.ndarray) -> np.ndarray:
    return np.where(np.tri(len(matrix), dtype=bool), matrix, np.nan)


def draw_attention(
    run: str | Path, history: Sequence[Any], out: str | Path, seed: int | None = None
) -> list[tuple[str, Path]]:
    """Draw the attention of a trained model in one history, and parameters that its mechanism has to show.

    Args:
      run: run directory.
      history: original item ids, oldest first; unknown ids are ignored. A model with vectors of users reads it as that of a
        new user.
      out: directory for the figures.
      seed: which of the run's models; None = the first.

    Returns:
      (caption, file) of each figure.

    Raises:
      ConfigError: the history has no known item, or the encoder has no attention.
      DataError: the model needs the time of each interaction, which a list of items does not have.
    """
    recommender = Recommender.load(run, seed)
    batches = recommender.config.batches
    if not isinstance(recommender.encoder, AttentiveEncoder):
        raise ConfigError(
            f"the run's encoder {type(recommender.encoder).__name__} has no attention to draw: expected a "
            f"transformer or STOSA; choose another run"
        )
    if recommender.needs_times:
        raise DataError(
            "this model needs the time of each interaction (a time-based position scheme), and a history of item ids "
            "has none: build a Batch with timestamps and call jaxrec.analysis.attention_maps.write_attention_figures"
        )
    ids = recommender.items.item_indices(history)
    ids = ids[ids > 0][-batches.max_length :].astype(np.int32)
    if not len(ids):
        came = "none that it knows" if len(history) else "no --history"
        raise ConfigError(
            f"--history has no item of the catalogue: expected original ids of items, at least one known, got {came}"
        )
    start, length, user = (np.asarray([number]) for number in (0, len(ids), -1))
    batch = gather_batch(
        pad(Sequences(start, length, user)),
        ids,
        max_length=batches.max_length,
        position_origin=batches.position_origin,
        with_targets=False,
        timestamps=np.zeros_like(ids),
    )
    titles = recommender.items.item_titles or recommender.items.item_ids
    named = [titles[i - 1] for i in ids]
    figures = write_attention_figures(
        recommender.encoder, recommender.params, batch, named, Path(out), recommender.run.task.mask
    )
    if not figures:
        raise ConfigError(
            f"the attention of the run, {type(recommender.encoder.attention).__name__}, has nothing to draw: expected "
            'weights that its module sows as "attention_weights" [B, H, L, L], or parameter_figures of its configuration'
        )
    return figures
