"""The figures of attention: arrays as drawn, and files for each mechanism inside an encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis.attention_maps import (
    attention_figure,
    attention_weights,
    matrices_figure,
    parameter_panels,
    query_weights_figure,
    write_attention_figures,
)
from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    RefinedAttentionConfig,
)
from jaxrec.data.batches import Batch
from jaxrec.errors import ConfigError
from jaxrec.models import TransformerConfig
from jaxrec.nn.spec import DataSpec
from tests.attention.variants import QUICK

TITLES = ["First", None, "A title that is far too long for the side of a heat map"]


def encoder_and_batch(attention, segments=(0, 1, 1, 1)):
    encoder = TransformerConfig(width=4, layers=2, attention=attention).build(DataSpec(9, 4))
    row = jnp.asarray([segments], jnp.int32)
    zero = jnp.zeros_like(row)
    batch = Batch(row * 3, zero, row, zero, zero.astype(jnp.float32))
    params = jax.jit(encoder.init, compiler_options=QUICK)(jax.random.key(0), batch)["params"]
    return encoder, params, batch


@pytest.mark.parametrize(
    ("attention", "names"),
    [
        (
            MultiItemQueryAttentionConfig(query_window=2, dummies_as_keys=True),
            {f"layer_{i}_{kind}.png" for i in (0, 1) for kind in ("attention", "queries")},
        ),
        (KernelAttentionConfig(), {"layer_0_attention.png", "layer_1_attention.png", "kernels.png"}),
    ],
)
def test_files_of_an_encoder(attention, names, tmp_path):
    drawn = write_attention_figures(*encoder_and_batch(attention), TITLES, tmp_path / "figures")
    assert {path.name for _, path in drawn} == names
    assert all(path.stat().st_size > 1000 for _, path in drawn)


def test_weights_of_each_layer_in_order():
    weights = attention_weights(*encoder_and_batch(KernelAttentionConfig(heads=2)))
    assert list(weights) == ["layer_0", "layer_1"]
    assert weights["layer_0"]["attention_weights"].shape == (1, 2, 4, 4)


def test_attention_heat_map_shows_the_weights_and_the_titles():
    weights = np.tril(np.ones((2, 3, 3))) / np.arange(1, 4)[:, None]
    figure = attention_figure(weights, TITLES, "layer 1")
    panels = [axis for axis in figure.axes if axis.images and axis.get_xlabel()]
    assert len(panels) == 2
    np.testing.assert_allclose(panels[0].images[0].get_array().filled(0.0), weights[0])
    assert [label.get_text() for label in panels[0].get_xticklabels()][:2] == ["First", "2"]
    with pytest.raises(ConfigError, match=r"one title for each .* shape \(2, 3, 3\) and 2 titles"):
        attention_figure(weights, TITLES[:2])


def test_query_weights_are_averaged_over_histories():
    weights = np.stack([np.full((5, 2), 0.25), np.full((5, 2), 0.75)])
    axis = query_weights_figure(weights).axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), np.full((2, 5), 0.5))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1 before", "current item"]


def test_kernels_by_layer_and_head():
    config = KernelAttentionConfig(heads=2, upper="toeplitz", lower="full", per_head=True, share_upper=True)
    encoder, params, _ = encoder_and_batch(config)
    panels = parameter_panels(encoder, params)["kernels"]
    assert [title for title, _ in panels] == [
        f"{name}, layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2) for name in "UL"
    ]
    assert all(matrix.shape == (4, 4) for _, matrix in panels)
    figure = matrices_figure(panels[:3], "kernels")
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == [
        title for title, _ in panels[:3]
    ]


def test_maps_of_a_refinement():
    for options, titles in (({}, ["W_q", "W_k"]), ({"rank": 2}, ["W_q W_k^T"])):
        encoder, params, _ = encoder_and_batch(RefinedAttentionConfig(**options))
        panels = parameter_panels(encoder, params)["refinement_maps"]
        assert [title for title, _ in panels] == [f"{t}, layer {layer}" for layer in (1, 2) for t in titles]
        assert all(matrix.shape == (4, 4) for _, matrix in panels)


def test_an_empty_history_is_refused(tmp_path):
    encoder, params, batch = encoder_and_batch(KernelAttentionConfig(), (0, 0, 0, 0))
    with pytest.raises(ConfigError, match=r"history to draw is empty"):
        write_attention_figures(encoder, params, batch, [], tmp_path)
