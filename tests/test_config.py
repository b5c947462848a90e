"""Configurations survive JSON, and what does not exist is refused by name."""

import dataclasses
import json
from typing import get_args, get_origin, get_type_hints

import pytest

from jaxrec.attention import MultiItemQueryAttentionConfig, SoftmaxAttentionConfig
from jaxrec.config import (
    NAMED_SECTIONS,
    PretrainingConfig,
    RunConfig,
    check_importable,
    config_hash,
    differences,
    from_dict,
    load_config,
    save_config,
    section_label,
    to_dict,
)
from jaxrec.errors import ConfigError, UnknownNameError
from jaxrec.models import STOSAConfig
from jaxrec.presets import PRESETS
from tests.helpers import replace

#: Sections all of whose options are text, off their defaults.
OF_TEXT = {"pretraining": PretrainingConfig("s3rec-pretrain", ("training.epochs=2",))}
REGISTERED = [(section, name) for section, registry in NAMED_SECTIONS.items() for name in registry]


def another_value(value, hint):
    """A value of the field's type other than its default, or the default where a choice is not ours to make."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.125
    choices = get_args(hint) if get_origin(hint) is not None else ()
    others = [choice for choice in choices if isinstance(choice, str) and choice != value]
    return others[0] if others else value


def changed(section_class):
    """The section with as many fields off their defaults as it accepts, one after the other."""
    hints = get_type_hints(section_class)
    section = section_class()
    for field in dataclasses.fields(section_class):
        value = another_value(getattr(section, field.name), hints[field.name])
        try:
            section = dataclasses.replace(section, **{field.name: value})
        except ConfigError:
            continue
    return section


def through_json(config):
    return from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False)))


@pytest.mark.parametrize(("section", "name"), REGISTERED)
def test_every_registered_class_survives_json(section, name, tmp_path):
    part = changed(NAMED_SECTIONS[section][name])
    options = dataclasses.fields(part)
    assert part != NAMED_SECTIONS[section][name]() or not options, "the test changes something"
    config = RunConfig().updated({section: part})
    saved = to_dict(config)
    for key in section.split("."):
        saved = saved[key]
    assert saved["name"] == name
    assert section_label(config, section) == name
    assert through_json(config) == config
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    "section", [f.name for f in dataclasses.fields(RunConfig) if f.name not in NAMED_SECTIONS]
)
def test_every_other_section_survives_json(section):
    part = OF_TEXT.get(section) or changed(type(getattr(RunConfig(), section)))
    assert part != getattr(RunConfig(), section)
    try:
        config = dataclasses.replace(RunConfig(), **{section: part})
    except ConfigError:  # some options must fit another section
        fitting = {"training": {"metric": "MRR"}, "optimizer": {"user_decay": 0.0}}[section]
        config = dataclasses.replace(RunConfig(), **{section: dataclasses.replace(part, **fitting)})
    assert through_json(config) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_say_what_to_expect(name):
    config = PRESETS[name]()
    assert through_json(config) == config
    assert config_hash(config) == config_hash(through_json(config))
    assert PRESETS[name].__doc__


def test_every_field_is_of_a_plain_type_and_documented():
    classes = [type(getattr(RunConfig(), f.name)) for f in dataclasses.fields(RunConfig)]
    classes += [part for registry in NAMED_SECTIONS.values() for part in registry.values()]
    for part in classes:
        documented = "".join(base.__doc__ or "" for base in part.__mro__)
        for field in dataclasses.fields(part):
            value = getattr(part(), field.name)
            plain = value is None or isinstance(value, bool | int | float | str | tuple)
            assert plain or dataclasses.is_dataclass(value), (part, field.name)
            assert field.name in documented, f"{part.__name__}.{field.name} is not documented"


def test_absent_sections_and_fields_take_their_defaults():
    assert from_dict({}) == RunConfig()
    assert from_dict({"encoder": {"width": 32}}).encoder.width == 32
    assert from_dict({"attention": {}}) == RunConfig()
    assert from_dict({"encoder": {"attention": {"heads": 2}}}).encoder.attention.heads == 2
    assert from_dict({"encoder": {"name": "stosa"}}).encoder == STOSAConfig()


def test_former_names_of_fields_are_read():
    config = from_dict({"batches": {"origin": "end"}, "split": {"protocol": "temporal"}})
    assert (config.batches.position_origin, config.split.strategy) == ("end", "temporal")


def test_attention_beside_the_encoder_is_read_as_a_part_of_it():
    old = {"encoder": {"name": "sasrec", "width": 8}, "attention": {"name": "miq", "query_window": 2}}
    config = from_dict(old)
    assert config.encoder.width == 8
    assert config.encoder.attention == MultiItemQueryAttentionConfig(query_window=2)


def test_options_are_updated_by_dotted_path():
    config = RunConfig().updated({"encoder.attention.heads": 2, "training.seeds": (3,)})
    assert (config.encoder.attention.heads, config.training.seeds) == (2, (3,))
    with pytest.raises(ConfigError, match=r"unknown option 'encoder\.depth': expected one of width, layers"):
        config.updated({"encoder.depth": 3})
    with pytest.raises(ConfigError, match=r"unknown option .task\.name\.more.: expected one of"):
        config.updated({"task.name.more": 3})


def test_default_metric_follows_the_cutoffs():
    assert RunConfig().metric == "NDCG@10"
    assert RunConfig().updated({"evaluation.ks": (1, 3)}).metric == "NDCG@3"
    with pytest.raises(
        ConfigError, match=r"--training\.metric must be one of HR@1, HR@3.*--evaluation\.ks 1 3"
    ):
        RunConfig().updated({"evaluation.ks": (1, 3), "training.metric": "NDCG@10"})


@dataclasses.dataclass(frozen=True)
class OwnAttentionConfig(SoftmaxAttentionConfig):
    """A class from outside jaxrec.

    Attributes:
      slope: of nothing.
    """

    slope: float = 1.0


def test_classes_from_outside_survive_json_by_import_path():
    config = RunConfig().updated({"encoder.attention": OwnAttentionConfig(slope=2.0)})
    check_importable(config)
    saved = to_dict(config)["encoder"]["attention"]
    assert (saved["name"], saved["class"]) == ("OwnAttentionConfig", "tests.test_config:OwnAttentionConfig")
    assert through_json(config) == config


def test_classes_that_cannot_be_imported_are_refused():
    local = dataclasses.make_dataclass("Local", [], bases=(SoftmaxAttentionConfig,), frozen=True)
    with pytest.raises(ConfigError, match="cannot be imported by name, so a saved run could not be reopened"):
        check_importable(RunConfig().updated({"encoder.attention": local()}))
    for path, message in (
        ("tests.test_config:Missing", "cannot be imported"),
        ("pathlib:Path", "is no AttentionConfig: expected a dataclass derived from it"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict({"encoder": {"attention": {"class": path}}})
    with pytest.raises(ConfigError, match="the section 'objective' must be a ObjectiveConfig"):
        RunConfig(objective=RunConfig().encoder)


def test_values_of_another_kind_are_refused():
    for values, message in (
        ([], "must be a JSON object of sections"),
        ({"encoder": 3}, "the section 'encoder' must be a JSON object; got 3"),
        ({"encoder": {"attention": None}}, r"the section 'encoder\.attention' must be a JSON object"),
        ({"encoder": {"width": "8"}}, r"--encoder\.width must be an integer at least 1; got '8'"),
        ({"training": {"seeds": None}}, r"--training\.seeds must be a sequence of values; got None"),
        ({"evaluation": {"ks": [1, [2]]}}, r"--evaluation\.ks must be a sequence"),
        ({"encoder": {"name": True}}, "the name of the encoder must be text"),
        ({"objective": {"name": ["bce"]}}, "the name of the objective must be text"),
        ({"task": {"class": False}}, "the class must be text such as package.module:Class; got False"),
        ({"split": {"protocol": "time", "strategy": None}}, r"--split\.strategy must be one of"),
        (
            {"batches": {"max_length": 2**64}},
            r"--batches\.max-length must be an integer .* at most 2147483647",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(values)


def test_what_does_not_exist_is_refused():
    with pytest.raises(
        ConfigError, match=r"unknown section \['trainning'\].*expected some of \['data', 'split'"
    ):
        from_dict({"trainning": {}})
    with pytest.raises(
        ConfigError, match=r"unknown field \['depth'\] in section 'encoder'; expected some of.*'layers'"
    ):
        from_dict({"encoder": {"depth": 3}})
    with pytest.raises(ConfigError, match=r"unknown field \['lr'\] in section 'optimizer'"):
        from_dict({"optimizer": {"lr": 0.1}})
    with pytest.raises(
        UnknownNameError, match=r"unknown objective 'cross-entropi'.*Did you mean 'cross-entropy'"
    ):
        from_dict({"objective": {"name": "cross-entropi"}})
    with pytest.raises(ConfigError, match=r"--training\.patience must be an integer at least 0; got -1"):
        from_dict({"training": {"patience": -1}})


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json not found: expected the config\.json of a run"):
        load_config(path)
    path.write_text('{"data": ')
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        load_config(path)


def test_differences_are_dotted():
    other = dataclasses.replace(RunConfig(), encoder=dataclasses.replace(RunConfig().encoder, width=8))
    assert differences(to_dict(RunConfig()), to_dict(other)) == {"encoder.width": (64, 8)}
    assert differences({"a": 1}, {}) == {"a": (1, None)}
    assert config_hash(other) != config_hash(RunConfig())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seeds", (), "must be distinct and at least one"),
        ("seeds", (1, 1), "must be distinct and at least one"),
        ("seeds", (-1,), r"elements are each an integer in \[0, 4294967296\)"),
        ("epochs", 0, r"--training\.epochs must be a finite number in \(0, 1e9\]; got 0"),
        ("epochs", float("nan"), r"--training\.epochs must be a finite number"),
        ("evaluate_every", -1.0, r"--training\.evaluate-every must be a finite number in \(0, 1e9\]"),
        (
            "checkpoint_seconds",
            float("inf"),
            r"--training\.checkpoint-seconds must be a finite number at least 0",
        ),
        ("over_seeds", "pmap", r"--training\.over-seeds must be one of auto, vmap, map .*got 'pmap'"),
        ("keep_checkpoints", 0, r"--training\.keep-checkpoints must be an integer at least 1"),
    ],
)
def test_training_refuses(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RunConfig().training, **{field: value})


def test_the_default_metric_fits_the_list_lengths():
    assert replace(RunConfig(), evaluation={"ks": (1, 3)}).metric == "NDCG@3"
    assert RunConfig().metric == "NDCG@10"
    assert replace(RunConfig(), evaluation={"ks": (1, 3)}, training={"metric": "HR@1"}).metric == "HR@1"
