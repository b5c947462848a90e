"""Precision, gradient accumulation and rematerialisation of the compiled step."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.batches import Batch
from jaxrec.data.sampler import Position
from jaxrec.errors import ConfigError
from jaxrec.models import TransformerConfig
from jaxrec.nn.spec import DataSpec
from jaxrec.training.feed import device_rows
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from jaxrec.training.step import make_train_chunk
from tests.helpers import small_config, small_dataset

DATASET = small_dataset()


def compiled_chunk(steps=2, dtype="float32", **sections):
    """(compiled program, its arguments) for one seed."""
    config = small_config(
        **{
            **sections,
            "encoder": {"dropout": 0.0, "dtype": dtype, **sections.get("encoder", {})},
            "objective": {"dtype": dtype},
        }
    )
    setup = prepare(config, DATASET)
    chunk = make_train_chunk(
        setup.task,
        setup.optimizer,
        config.batches,
        accumulate_steps=config.training.accumulate_steps,
    )
    state = jax.jit(jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)))(
        jnp.zeros(1, jnp.uint32)
    )
    rows, _ = setup.streams[0].take(Position(), steps * config.batches.batch_size)
    arguments = state, device_rows([rows], steps), setup.resources
    return chunk.lower(*arguments).compile(), arguments


def temporary_bytes(program):
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_accumulated_steps_are_those_of_the_whole_batch():
    """Rows of very different fill: a mean of the parts' means would be another gradient."""
    batches = {"batch_size": 8, "mode": "padded"}
    sgd = {"algorithm": "sgd", "learning_rate": 0.5, "beta1": 0.0}
    whole, arguments = compiled_chunk(4, batches=batches, optimizer=sgd)
    state, metrics = whole(*arguments)
    lengths = np.asarray(arguments[1].lengths).sum(axis=-1).reshape(4, 2, 4)
    assert (lengths.sum(axis=1).max(axis=-1) > 1.3 * lengths.sum(axis=1).min(axis=-1)).all()
    for parts in (2, 4):
        split, arguments = compiled_chunk(
            4, batches=batches, optimizer=sgd, training={"accumulate_steps": parts}
        )
        state_of_parts, metrics_of_parts = split(*arguments)
        chex.assert_trees_all_close(state_of_parts.params, state.params, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(metrics_of_parts, metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accumulation_needs_less_memory():
    batches = {"batch_size": 64, "max_length": 50}
    whole, _ = compiled_chunk(batches=batches)
    parts, _ = compiled_chunk(batches=batches, training={"accumulate_steps": 8})
    assert temporary_bytes(parts) < 0.5 * temporary_bytes(whole)


def test_parts_must_be_equal():
    with pytest.raises(
        ConfigError, match=r"accumulate-steps must divide --batches\.batch-size 4 into equal parts; got 3"
    ):
        small_config(training={"accumulate_steps": 3})
    with pytest.raises(
        ConfigError, match=r"--training\.accumulate-steps must be an integer at least 1; got 0"
    ):
        small_config(training={"accumulate_steps": 0})


def remat_loss(remat):
    """(loss of the parameters of a deep encoder, its parameters)."""
    shape = (64, 50)
    ones, places = jnp.ones(shape, jnp.int32), jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32), shape)
    batch = Batch(ones, places, ones, ones, jnp.ones(shape))
    config = TransformerConfig(width=32, layers=4, dropout=0.0, remat=remat)
    encoder = config.build(DataSpec(50, 50))
    params = jax.jit(lambda key: encoder.init(key, batch, False))(jax.random.key(0))
    return lambda params: jnp.square(encoder.apply(params, batch, False)).sum(), params


@pytest.mark.slow
def test_rematerialised_blocks_keep_less_and_change_no_value():
    found = []
    for remat in (False, True):
        loss, params = remat_loss(remat)
        kept = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        kept_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
        found.append((jax.jit(jax.value_and_grad(loss))(params), kept_bytes))
    (values, kept), (values_of_remat, kept_of_remat) = found
    chex.assert_trees_all_close(values_of_remat, values, rtol=1e-4, atol=1e-3)
    assert kept_of_remat < 0.3 * kept


PROGRAM = """
import jax
from tests.training.test_memory import remat_loss, temporary_bytes
for remat in (False, True):
    loss, params = remat_loss(remat)
    print(temporary_bytes(jax.jit(jax.grad(loss)).lower(params).compile()))
"""


@pytest.mark.slow
def test_rematerialised_blocks_need_less_compiled_memory():
    """XLA's usual scheduler on a CPU runs the second forward early, for speed, and gives the memory away; not this one."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=false"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plain, remat = map(int, done.stdout.split())
    assert remat < 0.9 * plain


@pytest.mark.slow
def test_bfloat16_runs_keep_everything_that_is_summed_in_float32():
    program, arguments = compiled_chunk(dtype="bfloat16")
    exact, same_arguments = compiled_chunk()
    initial = jax.tree.map(np.array, same_arguments[0].params)  # the program takes the arguments' memory
    state, metrics = program(*arguments)
    state_exact, metrics_exact = exact(*same_arguments)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state, metrics))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}  # int32: Adam's count of steps
    assert "bf16[" in program.as_text()
    assert "bf16[" not in exact.as_text()
    np.testing.assert_allclose(metrics.loss, metrics_exact.loss, rtol=2e-3)
    np.testing.assert_allclose(metrics.gradient_norm, metrics_exact.gradient_norm, rtol=3e-2)
    # Adam's first steps are as long as the learning rate whatever the gradients: directions tell.
    before, after, rounded = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
        for params in (initial, state_exact.params, state.params)
    )
    assert np.linalg.norm(rounded - after) < 0.15 * np.linalg.norm(after - before)
