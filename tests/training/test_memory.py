"""Precision, gradient accumulation and rematerialisation of the compiled step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.sequences import Position
from jaxrec.errors import ConfigError
from jaxrec.training.setup import prepare
from jaxrec.training.step import device_rows, initial_state, make_train_chunk
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
        setup.encoder,
        config.objective,
        setup.optimizer,
        config.batches,
        accumulate_steps=config.training.accumulate_steps,
    )
    state = jax.jit(jax.vmap(lambda seed: initial_state(setup.encoder, setup.optimizer, seed)))(
        jnp.zeros(1, jnp.uint32)
    )
    rows, _ = setup.streams[0].take(Position(), steps * config.batches.batch_size)
    arguments = state, device_rows([rows], steps), setup.resources
    return chunk.lower(*arguments).compile(), arguments


def temporary_bytes(program):
    return program.memory_analysis().temp_size_in_bytes


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


def test_accumulation_needs_less_memory():
    batches = {"batch_size": 64, "max_length": 50}
    whole, _ = compiled_chunk(batches=batches)
    parts, _ = compiled_chunk(batches=batches, training={"accumulate_steps": 8})
    assert temporary_bytes(parts) < 0.5 * temporary_bytes(whole)


def test_parts_must_be_equal():
    with pytest.raises(
        ConfigError, match=r"accumulate_steps must divide batches\.batch_size = 4 into equal parts, got 3"
    ):
        small_config(training={"accumulate_steps": 3})
    with pytest.raises(ConfigError, match=r"training\.accumulate_steps must be at least 1, got 0"):
        small_config(training={"accumulate_steps": 0})


def test_rematerialised_blocks_change_memory_only():
    sections = {"batches": {"batch_size": 64, "max_length": 50}}
    plain, arguments = compiled_chunk(encoder={"layers": 6, "width": 32}, **sections)
    state, metrics = plain(*arguments)
    remat, arguments = compiled_chunk(encoder={"layers": 6, "width": 32, "remat": True}, **sections)
    state_of_remat, metrics_of_remat = remat(*arguments)
    chex.assert_trees_all_close(metrics_of_remat, metrics, rtol=1e-5)
    chex.assert_trees_all_close(state_of_remat.params, state.params, rtol=1e-3, atol=1e-5)
    assert temporary_bytes(remat) < 0.8 * temporary_bytes(plain)


def test_bfloat16_runs_keep_everything_that_is_summed_in_float32():
    program, arguments = compiled_chunk(dtype="bfloat16")
    exact, same_arguments = compiled_chunk()
    state, metrics = program(*arguments)
    state_exact, metrics_exact = exact(*same_arguments)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state, metrics))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}  # int32: Adam's count of steps
    assert "bf16[" in program.as_text()
    assert "bf16[" not in exact.as_text()
    np.testing.assert_allclose(metrics.loss, metrics_exact.loss, rtol=2e-3)
    np.testing.assert_allclose(metrics.gradient_norm, metrics_exact.gradient_norm, rtol=3e-2)
    chex.assert_trees_all_close(state.params, state_exact.params, atol=5e-3)
