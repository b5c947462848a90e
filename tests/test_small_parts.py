"""Functions whose other tests are slow, each on the smallest input that shows what it does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis import estimate
from jaxrec.analysis.attention_maps import WeightStatistics, statistics_figure
from jaxrec.attention import AttentionSpec
from jaxrec.attention.wasserstein import WassersteinAttentionConfig
from jaxrec.cli.common import read_ids
from jaxrec.errors import ConfigError
from jaxrec.models import GRU4RecConfig, SRGNNConfig
from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.sharding import ItemShards, MeshConfig, build_mesh
from tests.helpers import small_config
from tests.models.cases import CASES, layout

ESTIMATE = estimate.Estimate(
    batch_size=4,
    seeds=1,
    parameters=10,
    parameter_bytes=40,
    optimizer_bytes=80,
    best_bytes=40,
    input_bytes=8,
    log_bytes=16,
    temporary_bytes=400,
    matmul_flops=2e9,
    flops_per_second=1e9,
    steps_per_epoch=5.0,
    compile_seconds=1.0,
    device="cpu",
    process_bytes=600 << 20,
)


def test_an_estimate_in_rows_words_and_json():
    parts = (40, 80, 40, 8, 16, 400)
    assert ESTIMATE.total_bytes >= sum(parts)
    header, rows = ESTIMATE.rows()
    assert all(len(row) == len(header) for row in rows)
    assert ESTIMATE.sentence()
    assert "trained nothing, took 600 MiB of the host's memory)" in ESTIMATE.left_out()
    assert "MiB" not in dataclasses.replace(ESTIMATE, process_bytes=None).left_out()
    assert ESTIMATE.to_dict()["batch_size"] == 4


@pytest.mark.parametrize("room", [37, 1_000, 50_000])
def test_the_largest_batch_is_found_in_few_programs(monkeypatch, room):
    tried = []

    def grows(config, sizes, rate=None, optimised=True):
        rows = config.batches.batch_size
        tried.append((rows, optimised))
        return dataclasses.replace(ESTIMATE, batch_size=rows, temporary_bytes=100 * rows)

    monkeypatch.setattr(estimate, "estimate", grows)
    monkeypatch.setattr(estimate, "matmul_rate", lambda *args, **options: 1e9)
    fixed = ESTIMATE.total_bytes - ESTIMATE.temporary_bytes
    best, too_large = estimate.largest_batch(small_config(), None, fixed + 100 * room)
    assert best.batch_size <= room < too_large
    assert too_large - best.batch_size <= max(1, room // 16)
    assert len(tried) <= 6
    assert [optimised for _, optimised in tried] == [False] * (len(tried) - 1) + [True]


def test_a_rate_of_matrix_products():
    assert estimate.matmul_rate(8, 0.001) > 0


def test_the_figure_of_weight_statistics_has_a_panel_per_layer_and_a_curve_per_measure():
    values = np.full((1, 2, 3), 0.5)
    layers = {name: WeightStatistics(values, values, values, values) for name in ("layer_0", "layer_1")}
    figure = statistics_figure(layers)
    assert [len(axis.lines) for axis in figure.axes] == [4, 4]


def test_plain_gaussian_attention_has_no_maps_to_draw():
    assert WassersteinAttentionConfig().parameter_figures(AttentionSpec(8, 6), [], {}) == {}


def test_dot_products_order_no_distances():
    table = ItemTable(jnp.ones((3, 2)))
    with pytest.raises(ConfigError, match="--encoder stosa"):
        table.squared_distances(jnp.ones((1, 2)), jnp.ones((1,)))


def test_encoders_without_times():
    assert not GRU4RecConfig().needs_timestamps


@pytest.mark.parametrize("options", [{"layers": 2}, {"reading": "session"}], ids=["two layers", "session"])
def test_shapes_of_the_readings_of_sessions(options):
    """Traced only: the slow tests compare the values with an oracle."""
    case = next(case for case in CASES if case.name == "srgnn")
    batch, _ = layout(case)
    encoder = SRGNNConfig(width=4, **options).build(case.spec)
    hidden, _ = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), batch))
    assert hidden.shape == (*batch.items.shape, 4)


def test_sums_over_the_positions_of_a_mesh():
    shards = ItemShards(build_mesh(MeshConfig(data=2, item=2), 4, 3), 3)
    table = ItemTable(shards.pad(jnp.arange(8.0).reshape(4, 2)), None, shards)
    np.testing.assert_array_equal(shards.replicate(table.vectors), table.vectors)
    assert shards.local().manual
    function = lambda table, items, shared: (table.take(items).vectors.sum(),)  # noqa: E731
    (total,) = sum_over_positions(function, table, jnp.asarray([1, 2, 3, 3], jnp.int32))
    assert float(total) == 2 + 3 + 4 + 5 + 2 * (6 + 7)


def test_ids_of_a_file_end_with_lines_alone(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_bytes("a\u2028b\r\nc\x85d\n\n e \n日本".encode())
    assert read_ids(str(file)) == ["a\u2028b", "c\x85d", "e", "日本"]
