"""ONNX Runtime gives the scores and lists of the run; needs the environment of `.ci/run onnx`."""

import importlib.util
import json

import numpy as np
import pytest

import jaxrec as package
from jaxrec.attention import KernelAttentionConfig, MultiItemQueryAttentionConfig, RefinedAttentionConfig
from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.models import GRU4RecConfig
from jaxrec.serving import Recommender
from jaxrec.serving.onnx import export_onnx
from jaxrec.tasks import MaskedItemConfig
from tests.helpers import small_config, small_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")
INSTALLED = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not INSTALLED, reason="jax2onnx and onnxruntime are not installed")

ENCODERS = {
    "softmax": {},
    "miq": {"encoder.attention": MultiItemQueryAttentionConfig(query_window=3)},
    "awrsr": {"encoder.attention": RefinedAttentionConfig()},
    "kernel": {"encoder.attention": KernelAttentionConfig()},
    "gru4rec": {"encoder": GRU4RecConfig(width=16)},
    "masked-item": {"task": MaskedItemConfig()},
}
HISTORIES = [["i1", "i3"], ["i9"], [f"i{i}" for i in range(25)], ["i5", "i5", "i7"]]


def trained(name, folder):
    config = small_config(training={"epochs": 1}).updated(ENCODERS[name])
    package.fit(small_dataset(), config, folder, progress=False)
    return Recommender.load(folder)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "miq"])
def test_lists_are_those_of_the_run(name, tmp_path):
    import onnxruntime

    run = trained(name, tmp_path / "run")
    if name == "kernel":
        with pytest.raises(ConfigError, match=r"Symbolic dimension 'B' .*--rows N may help"):
            export_onnx(run, tmp_path / "model")
    summary = export_onnx(run, tmp_path / "model", len(HISTORIES) if name == "kernel" else None)
    assert summary["largest_difference"] <= 1e-5
    catalogue = json.loads((tmp_path / "model" / "catalogue.json").read_text())
    session = onnxruntime.InferenceSession(str(tmp_path / "model" / "model.onnx"))
    length = session.get_inputs()[0].shape[1]
    numbers = {name: number for number, name in enumerate(catalogue["items"], start=1)}
    newest = [[numbers[name] for name in history][-catalogue["max_length"] :] for history in HISTORIES]
    items = np.array([row + [0] * (length - len(row)) for row in newest], np.int32)
    (scores,) = session.run(
        None, {"items": items, "lengths": np.array([len(row) for row in newest], np.int32)}
    )
    for row, (history, wanted) in enumerate(zip(HISTORIES, run.recommend(HISTORIES, 7), strict=True)):
        scores[row, [numbers[name] - 1 for name in history]] = -np.inf
        best = np.argsort(-scores[row])[:7]
        assert [catalogue["items"][number] for number in best] == list(wanted.items)
        np.testing.assert_allclose(scores[row, best], wanted.scores, rtol=1e-5, atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_what_cannot_be_translated_is_refused(tmp_path):
    run = trained("miq", tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"this Transformer cannot be translated to ONNX: .* without --onnx"
    ):
        export_onnx(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    with pytest.raises(RunExistsError, match="nothing was overwritten"):
        export_onnx(run, tmp_path / "model")


@pytest.mark.skipif(INSTALLED, reason="jax2onnx and onnxruntime are installed")
def test_without_the_packages_it_says_what_to_do(recommender, tmp_path):
    with pytest.raises(ConfigError, match="--onnx needs jax2onnx and onnxruntime, got no"):
        export_onnx(recommender, tmp_path / "model")
