"""Options that are declared idle (`jaxrec.options.Idle`): they change nothing, and a run says so."""

import dataclasses
import typing
from typing import Annotated, Literal, get_args, get_origin

import chex
import jax
import numpy as np
import pytest

from jaxrec.attention import ATTENTION
from jaxrec.config import RunConfig
from jaxrec.data.splits import SplitConfig, split_dataset
from jaxrec.errors import ConfigError
from jaxrec.models import ENCODERS
from jaxrec.nn.item_codes import ItemCodesConfig
from jaxrec.objectives import OBJECTIVES
from jaxrec.options import Idle, Range, idle_options, option_name
from jaxrec.tasks import TASKS
from jaxrec.training.loop import train
from jaxrec.training.setup import prepare
from jaxrec.tuning.space import search_space
from tests.helpers import small_config
from tests.tasks.data import described_dataset

pytestmark = pytest.mark.usefixtures("standard_promotion")

DATASET = described_dataset(n_users=30)

#: Every section and every class that may stand in one, by its place in a run's configuration.
SECTIONS = [
    *((field.name, type(field.default)) for field in dataclasses.fields(RunConfig)),
    *(("encoder", ENCODERS[name]) for name in ENCODERS),
    ("encoder.item_codes", ItemCodesConfig),
    *(("encoder.attention", ATTENTION[name]) for name in ATTENTION),
    *(("task", TASKS[name]) for name in TASKS),
    *(("objective", OBJECTIVES[name]) for name in OBJECTIVES),
]


def declared():
    """(section, class, field, rule) of every option that is declared idle."""
    return [
        (section, kind, name, extra)
        for section, kind in dict.fromkeys(SECTIONS)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if get_origin(hint) is Annotated and name in {field.name for field in dataclasses.fields(kind)}
        for extra in get_args(hint)[1:]
        if isinstance(extra, Idle)
    ]


def other_value(kind, name):
    """A value of an option other than its default."""
    hint = typing.get_type_hints(kind, include_extras=True)[name]
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    plain, *extras = get_args(hint)
    if get_origin(plain) is Literal:
        return next(choice for choice in get_args(plain) if choice != default)
    if plain is bool:
        return not default
    candidates = (2, 1) if plain is int else (0.7, 0.6)
    bounds = next((extra for extra in extras if isinstance(extra, Range)), Range("(-inf, inf)"))
    return next(value for value in candidates if value != default and value in bounds)


def test_each_names_an_option_of_its_section_and_values_that_it_takes():
    assert len(declared()) > 40
    for section, kind, name, rule in declared():
        assert rule.option in {field.name for field in dataclasses.fields(kind)}, (kind, name)
        for value in rule.values:
            config = kind()
            for option, chosen in {
                "strategy": "temporal",
                rule.option: value,
                name: other_value(kind, name),
            }.items():
                object.__setattr__(config, option, chosen)  # no check of the options together
            found = idle_options(config, section)[f"{section}.{name}"]
            assert found.other == f"{section}.{rule.option}"
            assert f"{option_name(section, rule.option)} {value}: choose" in found.sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"batches.prefixes_per_sequence": 3},
            "--batches.prefixes-per-sequence 3 is not read with --batches.mode packed: choose --batches.mode prefix, or "
            "leave it out",
        ),
        (
            {"objective": OBJECTIVES["bce"](alpha=0.5)},
            "--objective.alpha 0.5 is not read with --objective.sampler uniform: choose another --objective.sampler, or "
            "leave it out",
        ),
        (
            {"encoder.item_codes.count": 8},
            "--encoder.item-codes.count 8 is not read with --encoder.item-codes.method none: choose "
            "--encoder.item-codes.method hashed or product or residual, or leave it out",
        ),
    ],
)
def test_a_run_names_them(options, sentence):
    config = small_config().updated(options)
    assert [idle.sentence for idle in config.idle_options().values()] == [sentence]
    with pytest.warns(UserWarning, match="is not read") as caught:
        prepare(config, DATASET)
    assert sentence in [str(warning.message) for warning in caught]


def test_what_is_read_is_not_named():
    for options in (
        {},
        {"batches.mode": "prefix", "batches.prefixes_per_sequence": 3},
        {"objective": OBJECTIVES["bce"](sampler="popularity", alpha=0.5)},
        {"optimizer.weight_decay": 0.1, "optimizer.decay_on": "all"},
    ):
        assert not small_config().updated(options).idle_options()


def test_those_of_the_split_are_told_with_the_data():
    split = split_dataset(DATASET, SplitConfig(target="random", valid_share=0.3))
    assert [warning.split(" is not")[0] for warning in split.warnings] == [
        "--split.target random", "--split.valid-share 0.3",
    ]  # fmt: skip


def test_a_search_over_one_is_refused():
    config = small_config()
    with pytest.raises(
        ConfigError, match=r"--space\.optimizer\.final-fraction changes nothing: .*\.schedule constant"
    ):
        search_space(config, changes={"optimizer.final-fraction": "0,0.1"})
    both = {"optimizer.final-fraction": "0,0.1", "optimizer.schedule": "constant,cosine"}
    assert set(both) <= {path.replace("_", "-") for path in search_space(config, changes=both)}


def sampled(sampler):
    return {"objective": OBJECTIVES["sampled-softmax"](n_negatives=8, sampler=sampler)}


def refined(name, variant, **options):
    return {"encoder.attention": ATTENTION[name](variant=variant, **options)}


#: Runs in which every declared rule holds once.
BASES = {
    "padded, sgd": {"batches.mode": "padded", "optimizer.algorithm": "sgd", "encoder.item_codes.method": "hashed",
                    "encoder.item_codes.size": 8, "encoder.init": "xavier", "encoder.block": "attention-only"},
    "prefix, adagrad": {"batches.mode": "prefix", "batches.prefixes_per_sequence": 2, "optimizer.algorithm": "adagrad",
                        "encoder.final_norm": "off"},
    "streamed, uniform": {"training.feed": "streamed", **sampled("uniform"), **refined("awrsr", "simple")},
    "resident, in-batch": {"training.feed": "resident", **sampled("in-batch"),
                           **refined("awrsr", "additive", scale="root")},
    "hard": {**sampled("hard"), "encoder.attention": ATTENTION["kernel"](upper="identity", lower="identity")},
    "popularity": {**sampled("popularity"), **refined("awrsr", "additive-gated")},
    "segments": {"task": TASKS["s3rec-pretraining"](sp_weight=0.0), "encoder.block": "post-norm",
                 **refined("awrsr", "additive-bahdanau")},
    "gru4rec": {"encoder": ENCODERS["gru4rec"](width=16, hidden_width=16)},
    "wasserstein": {
        "encoder": ENCODERS["stosa"](width=16, attention=ATTENTION["wasserstein"](variant="none")),
    },
    "stochastic": {"encoder": ENCODERS["stosa"](width=16, attention=ATTENTION["wasserstein"](variant="stochastic"))},
}  # fmt: skip


def base_config(name):
    training = {"epochs": 1, "select": "last"}
    return small_config(training=training).updated(BASES[name])


def holding(config):
    """{dotted path of an idle option: another value} of what is idle in ``config``, and the rules' keys."""
    changed, keys = {}, set()
    for section, kind, name, rule in declared():
        part = config
        for step in section.split("."):
            part = getattr(part, step, None)
        if type(part) is kind and section != "split" and getattr(part, rule.option) in rule.values:
            changed[f"{section}.{name}"] = other_value(kind, name)
            keys.add((section, name, rule.option, getattr(part, rule.option)))
    return changed, keys


def test_the_runs_below_have_every_rule():
    rules = {
        (section, name, rule.option, value)
        for section, _, name, rule in declared()
        for value in rule.values
        if section != "split"
    }
    assert rules == set().union(*(holding(base_config(name))[1] for name in BASES))


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_they_change_nothing(name):
    config = base_config(name)
    changed, _ = holding(config)
    plain = train(config, DATASET, None, progress=False)
    with pytest.warns(UserWarning, match="is not read"):
        other = train(config.updated(changed), DATASET, None, progress=False)
    chex.assert_trees_all_equal(plain.params, other.params)
    for a, b in zip(plain.test, other.test, strict=True):
        np.testing.assert_array_equal(a.ranks, b.ranks)
    assert jax.tree.leaves(plain.params)
