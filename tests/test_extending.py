"""Parts from outside the package: the examples of the how-to pages, used as a plugin of one's own would be.

They run in processes of their own, since a registration lasts as long as its process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PARTS = sorted(path.stem for path in EXAMPLES.glob("my_*.py"))
SMALL = ["--preset", "smoke", "--quiet", "--batches.batch-size", "8", "--batches.max-length", "16"]
SMALL += ["--training.epochs", "1"]


def run(*command, status=0):
    """Standard output of a command that can import the examples."""
    path = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == status, finished.stderr
    return finished.stdout if status == 0 else finished.stderr


def test_there_is_an_example_of_each_kind():
    kinds = ("attention", "dataset", "encoder", "objective", "sampler", "task")
    assert [f"my_{kind}" for kind in kinds] == PARTS
    for kind in kinds:
        page = (ROOT / f"docs/howto/{kind}.md").read_text()
        # The form in blocks: a formatter of code takes the short one for Python and spaces it, and nothing is included.
        assert f"```python\n--8<--\nexamples/my_{kind}.py\n--8<--\n```" in page
        assert f"`docs/examples/my_{kind}.py`" in page


def test_unknown_plugin_is_rejected_before_training():
    message = run("-m", "jaxrec", "train", "--plugin", "my_absent_module", status=1)
    assert "--plugin my_absent_module cannot be imported" in message
    assert "PYTHONPATH=." in message
    assert message.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (
            "my_attention,my_objective,my_sampler,my_dataset",
            "--data ring-walks --attention recency --attention.half-life 3 --objective hinge --objective.margin 2 "
            "--objective.sampler rare-first",
        ),
        (
            "my_encoder,my_task",
            "--encoder decayed-mean --encoder.decay 0.7 --task noisy-next-item --task.rate 0.2",
        ),
    ],
    ids=["attention, objective, sampler, dataset", "encoder, task"],
)
def test_parts_train_and_reopen(tmp_path, parts, options):
    directory = tmp_path / "run"
    train = ["-m", "jaxrec", "train", "--plugin", parts, "--workdir", directory, "--json"]
    results = json.loads(run(*train, *SMALL, *options.split()).splitlines()[-1])
    assert results["seeds"] == [0]
    config = json.loads((directory / "config.json").read_text())
    for words in options.split("--")[1:]:
        name, value = words.split()
        *path, field = name.replace("attention", "encoder.attention").replace("-", "_").split(".")
        section = config
        for part in path:
            section = section[part]
        if isinstance(section[field], dict):
            assert section[field]["name"] == value if field != "data" else section[field]["source"] == value
        else:
            assert section[field] == (value if isinstance(section[field], str) else float(value))
    # The classes are imported by the path in config.json; functions such as samplers need their module named.
    reopened = run("-m", "jaxrec", "evaluate", directory, "--plugin", parts, "--json")
    assert json.loads(reopened.splitlines()[-1])["metrics"] == results["metrics"]


@pytest.mark.slow
def test_an_unregistered_class_is_passed_as_an_object(tmp_path):
    program = """
import dataclasses, sys
from pathlib import Path
import jaxrec
from my_encoder import DecayedMeanConfig

config = jaxrec.PRESETS["smoke"]()
config = dataclasses.replace(config, encoder=DecayedMeanConfig(width=16))
config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=1))
run = jaxrec.fit(jaxrec.load_dataset("movietweetings"), config, sys.argv[1], progress=False)
print(run.metrics["HR@10"])
"""
    value = float(run("-c", program, tmp_path / "run"))
    reopened = json.loads(run("-m", "jaxrec", "evaluate", tmp_path / "run", "--json").splitlines()[-1])
    assert reopened["metrics"]["HR@10"]["mean"] == pytest.approx(value)
    answer = run("-m", "jaxrec", "recommend", tmp_path / "run", "--history", "tt0111161", "-k", "3", "--json")
    assert len(json.loads(answer.splitlines()[-1])["items"]) == 3
