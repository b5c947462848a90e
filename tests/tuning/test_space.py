"""Search spaces: what is declared, what a user may write, and what is refused."""

import pytest

from jaxrec.config import RunConfig
from jaxrec.errors import ConfigError
from jaxrec.presets import PRESETS
from jaxrec.tuning.space import (
    Choices,
    Interval,
    all_points,
    declared_space,
    default_point,
    parse_dimension,
    read_space,
    search_space,
    searchable_options,
    to_toml,
)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_has_a_space_that_contains_it(preset):
    config = PRESETS[preset]()
    space = search_space(config)
    assert set(space) == set(declared_space(config))
    assert "optimizer.learning_rate" in space
    for path, value in default_point(config, space).items():
        dimension = space[path]
        inside = (
            value in dimension.values
            if isinstance(dimension, Choices)
            else dimension.low <= value <= dimension.high
        )
        assert inside, path


def test_file_and_changes(tmp_path):
    config = RunConfig()
    (tmp_path / "space.toml").write_text(
        'optimizer.learning-rate = "log:1e-4:1e-2"\n[encoder]\nwidth = [16, 32]\nattention.heads = "1,2"\n'
    )
    changes = {"encoder.width": "fixed", "attention.dropout": "0:0.5", "encoder.layers": "1:3"}
    space = search_space(config, tmp_path / "space.toml", changes)
    assert space == {
        "optimizer.learning_rate": Interval(1e-4, 1e-2, log=True),
        "encoder.attention.heads": Choices((1, 2)),
        "encoder.attention.dropout": Interval(0.0, 0.5),
        "encoder.layers": Interval(1, 3, integer=True),
    }
    (tmp_path / "fixed.toml").write_text('encoder.width = "fixed"\nencoder.layers = "1:3"\n')
    assert list(search_space(config, tmp_path / "fixed.toml")) == ["encoder.layers"]
    (tmp_path / "again.toml").write_text(to_toml(space))
    assert search_space(config, tmp_path / "again.toml") == space
    (tmp_path / "space.json").write_text('{"encoder.attention.heads": [1, 2]}')
    assert read_space(tmp_path / "space.json") == {"encoder.attention.heads": [1, 2]}


def test_values_of_every_kind():
    hints = searchable_options(RunConfig())
    read = {
        "encoder.item_bias": ("true,false", Choices((True, False))),
        "encoder.activation": ("relu,gelu", Choices(("relu", "gelu"))),
        "encoder.ffn_width": ("log:16:256", Interval(16, 256, log=True, integer=True)),
        "optimizer.weight_decay": ([0, 0.1], Choices((0.0, 0.1))),
    }
    for path, (typed, expected) in read.items():
        assert parse_dimension(path, typed, hints[path]) == expected
    assert (
        type(parse_dimension("optimizer.weight_decay", [0], hints["optimizer.weight_decay"]).values[0])
        is float
    )


def test_the_value_of_the_configuration_is_always_in_the_space():
    config = RunConfig().updated({"encoder.width": 50, "optimizer.learning_rate": 0.5})
    space = search_space(config, {"encoder.width": [32, 64], "optimizer.learning_rate": "log:1e-4:1e-2"})
    assert space["encoder.width"] == Choices((50, 32, 64))
    assert space["optimizer.learning_rate"] == Interval(1e-4, 0.5, log=True)


def test_points():
    space = {"a": Choices((1, 2)), "b": Interval(1, 3, integer=True)}
    assert all_points(space) == [{"a": a, "b": b} for a in (1, 2) for b in (1, 2, 3)]
    assert all_points(space, limit=5) is None
    assert all_points({**space, "c": Interval(0.0, 1.0)}) is None


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"encoder.widht": "16,32"}, ["--space.encoder.widht is no option", "did you mean 'encoder.width'"]),
        ({"data.min-rating": "1,2"}, ["--space.data.min-rating cannot be searched", "measured alike"]),
        ({"training.metric": "MRR"}, ["--space.training.metric cannot be searched"]),
        ({"training.seeds": "1,2"}, ["--space.training.seeds cannot be searched"]),
        ({"encoder.width": "0:64"}, ["--space.encoder.width", "--encoder.width must be", "at least 1"]),
        ({"encoder.width": "16:many"}, ["--space.encoder.width must have whole numbers", "'many'"]),
        ({"encoder.width": "64:16"}, ["lower bound below its upper one"]),
        ({"encoder.width": "16:32:8"}, ["must be LOW:HIGH or log:LOW:HIGH", "'16:32:8'"]),
        ({"encoder.width": [16, 16]}, ["distinct choices"]),
        ({"encoder.width": []}, ["must be LOW:HIGH, log:LOW:HIGH"]),
        ({"encoder.width": [[16]]}, ["must be LOW:HIGH, log:LOW:HIGH"]),
        ({"encoder.width": 3}, ["must be LOW:HIGH, log:LOW:HIGH"]),
        ({"optimizer.weight-decay": "log:0:1"}, ["above 0"]),
        ({"optimizer.weight-decay": "nan"}, ["finite numbers"]),
        (
            {"optimizer.weight-decay": "log:1e-4:0.1"},
            [
                "--space.optimizer.weight-decay is logarithmic",
                "which is 0",
                "0,0.0001,0.1",
                "another --optimizer.weight-d",
            ],
        ),
        (
            {"encoder.ffn-width": "log:16:256"},
            ["--space.encoder.ffn-width is logarithmic", "choices such as 0,16,256"],
        ),
        ({"encoder.activation": "relu:gelu"}, ["choices separated by commas"]),
        ({"encoder.activation": "relu,gellu"}, ["--encoder.activation must be one of", "gelu"]),
        ({"encoder.item-bias": "yes"}, ["true and false", "'yes'"]),
        ({}, ["--space is empty", "at least one option"]),
    ],
)
def test_refused(space, words):
    with pytest.raises(ConfigError) as error:
        search_space(RunConfig(), space)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "width = ", ["a.toml is no TOML"]),
        ("a.json", "{", ["a.json is no JSON"]),
        ("b.json", "[]", ["must map options to dimensions", "list"]),
        ("absent.toml", None, ["cannot be read", "No such file"]),
    ],
)
def test_refused_files(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_space(tmp_path / name)
    assert all(word in str(error.value) for word in words), str(error.value)
