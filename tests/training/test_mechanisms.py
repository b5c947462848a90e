"""Every attention mechanism through a run: several seeds side by side, a resume, recomputed blocks on a mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.attention import (
    ATTENTION,
    AttentionConfig,
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    UniformAttentionConfig,
    WassersteinAttentionConfig,
)
from jaxrec.errors import Interrupted
from jaxrec.models import STOSAConfig, TransformerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import loop
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from jaxrec.training.state import initial_state
from tests.helpers import StopAfter, assert_same_run, small_config, small_dataset

DATASET = small_dataset()


@dataclasses.dataclass(frozen=True)
class Case:
    """A mechanism, parameters that training must move, and options of its encoder."""

    name: str
    attention: AttentionConfig
    moves: tuple[str, ...]
    encoder: tuple = ()
    stosa: bool = False

    def __str__(self):
        return self.name

    @property
    def recomputed(self):
        """Options that recompute blocks, where the encoder has them."""
        return {} if self.stosa else {"remat": True}

    def config(self, **encoder):
        options = {"width": 16, "layers": 2, "dropout": 0.1, "attention": self.attention, **encoder}
        chosen = STOSAConfig(**options) if self.stosa else TransformerConfig(**options, **dict(self.encoder))
        training = {
            "epochs": 2,
            "evaluate_every": 1,
            "seeds": (0, 3),
            "over_seeds": "vmap",
        }
        return dataclasses.replace(
            small_config(training=training, optimizer={"learning_rate": 0.01}), encoder=chosen
        )


CASES = (
    Case("softmax", SoftmaxAttentionConfig(dropout=0.1), ("layer_1/attention/projections/kernel",)),
    Case(
        "miq",
        MultiItemQueryAttentionConfig(query_window=3, share_dummies=True, dropout=0.1),
        ("shared_attention/vectors", "layer_1/attention/query_window/slots/kernel"),
    ),
    Case(
        "awrsr",
        RefinedAttentionConfig(depth=2, dropout=0.1),
        tuple(f"layer_1/attention/refinement/{name}" for name in ("maps", "gate", "temperature")),
    ),
    Case(
        "kernel",
        KernelAttentionConfig(share_lower=True, dropout=0.1),
        ("shared_attention/lower", "layer_1/attention/kernel/upper"),
    ),
    Case(
        "hstu",
        PointwiseAttentionConfig(dropout=0.1),
        ("positions/table", "layer_1/attention/distance_bias", "layer_1/attention/positions/table"),
        (("block", "attention-only"), ("positions", "learned-hstu-time")),
    ),
    Case(
        "wasserstein",
        WassersteinAttentionConfig(variant="stochastic", dropout=0.1),
        ("layer_1/attention/refinement/maps", "layer_1/attention/covariance/kernel"),
        stosa=True,
    ),
    Case("uniform", UniformAttentionConfig(dropout=0.1), ("layer_1/attention/values/kernel",)),
)


def quiet(config, workdir, **options):
    return train(config, DATASET, workdir, progress=False, **options)


def losses(run):
    return np.asarray([line["loss"] for line in read_metrics(run.workdir / "log.jsonl") if "loss" in line])


def by_path(params):
    flat = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in flat}


def test_every_mechanism_is_here():
    assert {case.name for case in CASES} == set(ATTENTION)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs(case, tmp_path, monkeypatch):
    config = case.config()
    whole = quiet(config, tmp_path / "whole")
    assert losses(whole)[-1].max() < losses(whole)[0].min()

    setup = prepare(config, DATASET)
    initial = jax.jit(jax.vmap(lambda seed: initial_state(setup.task, setup.optimizer, seed)))
    before = by_path(initial(np.asarray(config.training.seeds, np.uint32)).params)
    after = by_path(whole.params)
    assert before.keys() == after.keys()
    for path in case.moves:
        moved = np.abs(after[path] - before[path]).reshape(2, -1).max(axis=1)
        assert (moved > 1e-4).all(), path
    count = setup.encoder.parameter_count()
    assert sum(leaf[0].size for leaf in after.values()) == count

    monkeypatch.setattr(loop, "StopRequest", StopAfter(0))
    with pytest.raises(Interrupted):
        quiet(config, tmp_path / "part")
    monkeypatch.undo()
    assert_same_run(whole, quiet(config, tmp_path / "part", resume=True))

    split = dataclasses.replace(case.config(**case.recomputed), mesh=MeshConfig(2, 2))
    mesh = quiet(split, tmp_path / "mesh")
    np.testing.assert_allclose(losses(mesh), losses(whole), rtol=2e-3)
    for one, split in zip(whole.test, mesh.test, strict=True):
        assert (one.ranks != split.ranks).mean() <= 0.1, "near ties may swap places"
