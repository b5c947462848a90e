"""Which parameters decay, for every encoder and every attention mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.data.batches import Batch
from jaxrec.models import ENCODERS
from jaxrec.nn.spec import DataSpec
from jaxrec.optim import OptimizerConfig, decay_mask

#: Besides those of a softmax encoder: what each mechanism has, and whether it is a matrix between features.
OWN = {
    ("softmax", ()): {},
    ("miq", ()): {
        "query_window/slots/kernel": True,
        "keys_values/kernel": True,
        "query_level_keys_kernel": True,
        "query_level_queries_kernel": True,
        "query_level_values_kernel": True,
        "dummies/vectors": False,
    },
    ("awrsr", (("variant", "additive-gated"),)): {"refinement/maps": False, "refinement/gate": False},
    ("awrsr", (("variant", "additive-bahdanau"),)): {"refinement/maps": False, "refinement/vector": False},
    ("kernel", (("upper", "full"),)): {"kernel/upper": False, "kernel/lower": False},
    ("hstu", ()): {"gate/kernel": True, "queries/kernel": True, "distance_bias": False},
    ("uniform", ()): {"values/kernel": True},
    ("wasserstein", (("variant", "stochastic"),)): {
        "mean/kernel": True,
        "covariance/kernel": True,
        "refinement/maps": False,
    },
}


def parameters(encoder, attention, **options):
    """Paths and shapes of the parameters."""
    blank = jnp.zeros((1, 4), jnp.int32)
    batch = Batch(blank, blank, blank, blank, jnp.zeros((1, 4)), blank)
    module = ENCODERS[encoder](width=4, layers=1, attention=attention, **options).build(DataSpec(7, 6))
    return jax.eval_shape(module.init, jax.random.key(0), batch)["params"]


def decaying(params, decay_on):
    flat = jax.tree_util.tree_leaves_with_path(decay_mask(params, decay_on))
    return {"/".join(entry.key for entry in path): decays for path, decays in flat}


def test_every_mechanism_is_here():
    assert {name for name, _ in OWN} == set(ATTENTION)


@pytest.mark.parametrize(("name", "options"), OWN, ids=str)
def test_kernels_are_matrices_between_features(name, options):
    params = parameters("sasrec", ATTENTION[name](**dict(options)), block="gated")
    mask = decaying(params, "kernels")
    for path, decays in OWN[name, options].items():
        assert mask[f"layer_0/attention/{path}"] == decays, path
    for path in ("attention_gate/kernel", "feed_forward_gate/kernel", "feed_forward/inner/kernel"):
        assert mask[f"layer_0/{path}"]
    others = {"items/table", "layer_0/attention_norm/scale", "layer_0/feed_forward/inner/bias"}
    assert not any(mask[path] for path in others)
    assert not any(decays for path, decays in mask.items() if "bias" in path or "norm" in path)
    shapes = {
        "/".join(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert all(len(shapes[path]) >= 2 for path, decays in mask.items() if decays)


@pytest.mark.parametrize(
    ("encoder", "attention", "tables"),
    [
        ("sasrec", "softmax", {"items/table", "output_table"}),
        ("stosa", "wasserstein", {"mean_items/table", "covariance_items/table"}),
    ],
)
def test_item_tables_decay_where_asked(encoder, attention, tables):
    options = {"separate_output": True} if encoder == "sasrec" else {}
    params = parameters(encoder, ATTENTION[attention](), **options)
    kernels, both, every = (decaying(params, on) for on in ("kernels", "kernels-and-items", "all"))
    assert {path for path, decays in both.items() if decays and not kernels[path]} == tables
    assert all(every.values())
    assert any(kernels.values())


def test_decay_is_applied_to_the_mask_alone():
    """With a gradient of zero, a step shrinks kernels by learning rate times decay and moves nothing else."""
    params = {
        "layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "items": {"table": jnp.ones((3, 2))},
    }
    optimizer = OptimizerConfig(learning_rate=0.1, weight_decay=0.5).build(10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-6)
    assert not np.asarray(updates["layer"]["bias"]).any()
    assert not np.asarray(updates["items"]["table"]).any()
