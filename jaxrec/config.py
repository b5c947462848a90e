"""The configuration of a run: frozen dataclasses, composed, and their JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxrec.attention import ATTENTION
from jaxrec.attention.base import AttentionConfig
from jaxrec.data import batches, splits
from jaxrec.data.batches import BatchConfig
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.splits import SplitConfig
from jaxrec.errors import ConfigError
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.evaluation.metrics import default_metric
from jaxrec.files import write_atomically
from jaxrec.models import ENCODERS, EncoderConfig, TransformerConfig
from jaxrec.objectives import OBJECTIVES, CrossEntropyConfig, ObjectiveConfig
from jaxrec.optim import OptimizerConfig
from jaxrec.options import Idle, IdleOption, Range, idle_options, validate
from jaxrec.registry import Registry, import_path, load_class
from jaxrec.sharding import MeshConfig
from jaxrec.tasks import TASKS, NextItemConfig, TaskConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Training length, evaluation and checkpointing.

    Attributes:
      epochs: passes over the training data at most, rounded to a whole number of validations, at least one.
      seeds: one model is trained per seed.
      over_seeds: "vmap" trains the models side by side, "map" one after the other in the same compiled program, "auto"
        picks "vmap" on an accelerator and "map" on a CPU.
      evaluate_every: epochs between validations (a fraction is fine).
      metric: validation metric that chooses the best parameters and stops training early; empty = NDCG@10, or NDCG at the
        longest list where ``evaluation.ks`` has no 10.
      patience: validations without a new best before training stops; 0 = never stop early. A run that ended goes on when it
        is resumed with more, unless a seed of several ended before the others.
      select: "best" keeps the parameters of the best validation, "last" those of the last one (for pretraining), which is
        reached whatever the patience.
      init_from: directory of a finished run whose best parameters this one starts from; empty = fresh parameters.
      init_items: of ``init_from``: "same" asks for the same dataset; "match" takes the vectors of items by their original
        ids, so that the catalogue may have grown or shrunk. Items that the run does not know start fresh.
      chunk_steps: steps in one call of the compiled program at most.
      accumulate_steps: parts into which a step splits its batch, computed one after the other with their gradients summed:
        the activations of one part at a time. The gradient is that of the whole batch, but for dropout and sampled
        negatives, which are drawn anew for each part, and negatives from the batch, which are those of the part.
      feed: "resident" keeps the log on the device, "streamed" fills batches on the host, one chunk of steps ahead, from a
        log that stays in its file; "auto" is resident where the log takes no more than ``resident_share`` of the device.
        All give the same result to the bit.
      resident_share: share of the device's memory (on a CPU: the machine's) that "auto" gives to the log.
      checkpoint_seconds: seconds between checkpoints at least; one is always written at the end and on a signal. Each save
        costs a little memory that TensorStore does not give back: about a kilobyte per array.
      keep_checkpoints: newest checkpoints to keep besides the best.
    """

    epochs: Annotated[float, Range("(0, 1e9]")] = 100.0
    seeds: tuple[Annotated[int, Range("[0, 4294967296)")], ...] = (0,)
    over_seeds: Literal["auto", "vmap", "map"] = "auto"
    evaluate_every: Annotated[float, Range("(0, 1e9]")] = 1.0
    metric: str = ""
    patience: Annotated[int, Range("[0, inf)")] = 10
    select: Literal["best", "last"] = "best"
    init_from: str = ""
    init_items: Literal["same", "match"] = "same"
    chunk_steps: Annotated[int, Range("[2, inf)")] = 100
    accumulate_steps: Annotated[int, Range("[1, inf)")] = 1
    feed: Literal["auto", "resident", "streamed"] = "auto"
    resident_share: Annotated[float, Range("[0, 1]"), Idle("feed", ("resident", "streamed"))] = 0.25
    checkpoint_seconds: Annotated[float, Range("[0, inf)")] = 120.0
    keep_checkpoints: Annotated[int, Range("[1, inf)")] = 2

    def __post_init__(self) -> None:
        """Check every option."""
        validate(self, "training")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"--training.seeds must be distinct and at least one; got {self.seeds}")

    @property
    def ends_seeds(self) -> bool:
        """Whether one seed may end before another."""
        return len(self.seeds) > 1 and self.patience > 0 and self.select == "best"


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """First stage of a run, whose parameters the run itself starts from (`jaxrec.pretraining`).

    Attributes:
      preset: of the first stage, such as s3rec-pretrain; empty = no first stage. Data, split, encoder, evaluation, mesh,
        seeds and L are those of the run.
      options: what else differs from that preset, as in task.aap-weight=0 training.epochs=20.
    """

    preset: str = ""
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every option."""
        validate(self, "pretraining")
        for option in self.options:
            path, sign, _ = option.partition("=")
            if not sign or not all(path.split(".")):
                raise ConfigError(
                    f"--pretraining.options must be like training.epochs=20; got {option!r}: name the section and the "
                    "option, then its value"
                )
        if self.options and not self.preset:
            raise ConfigError(
                "--pretraining.options needs a first stage: expected --pretraining.preset too, got none; add "
                "--pretraining.preset s3rec-pretrain"
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's numbers. Presets (`jaxrec.presets`) are functions that return one."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    batches: BatchConfig = BatchConfig()
    encoder: EncoderConfig = TransformerConfig()
    task: TaskConfig = NextItemConfig()
    objective: ObjectiveConfig = CrossEntropyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    pretraining: PretrainingConfig = PretrainingConfig()

    def __post_init__(self) -> None:
        """Check options of different sections against each other."""
        for field in dataclasses.fields(self):
            section, base = getattr(self, field.name), _base_of(field.name)
            if not isinstance(section, base):
                raise ConfigError(
                    f"the section {field.name!r} must be a {base.__name__} or a subclass of it; got {section!r}"
                )
        ks = self.evaluation.ks
        metrics = [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in ks] + ["MRR"]
        if self.metric not in metrics:
            raise ConfigError(
                f"--training.metric must be one of {', '.join(metrics)} (for --evaluation.ks {' '.join(map(str, ks))}); "
                f"got {self.training.metric!r}"
            )
        if self.optimizer.user_decay and not self.encoder.needs_users:
            raise ConfigError(
                f"--optimizer.user-decay {self.optimizer.user_decay} has no vectors of users to act on: expected an encoder "
                "with them, got one without; choose --encoder.user added, prefix or film, or leave the option out"
            )
        if self.pretraining.preset and self.training.init_from:
            raise ConfigError(
                f"--pretraining.preset {self.pretraining.preset} and --init-from {self.training.init_from} exclude each "
                "other: train the first stage, or start from a finished run (with --preset s3rec, for one)"
            )
        if self.batches.batch_size % self.training.accumulate_steps:
            raise ConfigError(
                "--training.accumulate-steps must divide --batches.batch-size "
                f"{self.batches.batch_size} into equal parts; got {self.training.accumulate_steps}"
            )

    @property
    def metric(self) -> str:
        """The validation metric: ``training.metric``, or its default for ``evaluation.ks``."""
        return self.training.metric or default_metric(self.evaluation.ks)

    def idle_options(self) -> dict[str, IdleOption]:
        """Return {dotted path: why it is not read} of options that differ from their defaults for nothing.

        Those of ``split`` are left to `jaxrec.data.splits.Split.warnings`.
        """
        found = idle_options(self, "")
        return {path: idle for path, idle in found.items() if not path.startswith("split.")}

    def updated(self, options: Mapping[str, Any]) -> RunConfig:
        """Return a copy with some options replaced, each named by its dotted path.

        >>> config = RunConfig().updated({"training.epochs": 3, "encoder.attention.heads": 2})
        >>> config.training.epochs, config.encoder.attention.heads
        (3, 2)

        Raises:
          ConfigError: there is no such option, or its value does not fit.
        """
        config = self
        for path, value in options.items():
            config = _replaced(config, path.split("."), value, path)
        return config


def _replaced(section: Any, path: list[str], value: Any, whole: str) -> Any:
    name, *rest = path
    names = [field.name for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else []
    if name not in names:
        raise ConfigError(
            f"unknown option {whole!r}: expected one of {', '.join(names) or 'no further level'}"
        )
    new = _replaced(getattr(section, name), rest, value, whole) if rest else value
    return dataclasses.replace(section, **{name: new})


#: Sections and fields whose class is chosen by name, by dotted path.
NAMED_SECTIONS: dict[str, Registry] = {
    "encoder": ENCODERS,
    "encoder.attention": ATTENTION,
    "task": TASKS,
    "objective": OBJECTIVES,
}
_BASES: dict[str, type] = {
    "encoder": EncoderConfig,
    "encoder.attention": AttentionConfig,
    "task": TaskConfig,
    "objective": ObjectiveConfig,
}


def _base_of(section: str) -> type:
    """The class that a section must be an instance of."""
    if section in _BASES:
        return _BASES[section]
    default = next(field.default for field in dataclasses.fields(RunConfig) if field.name == section)
    return type(default)


def section_label(config: RunConfig, path: str) -> str:
    """Return the name of the class at a dotted path such as "encoder.attention", or "" where there is none."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return "" if value is None else NAMED_SECTIONS[path].label_of(type(value))


def check_importable(config: RunConfig) -> None:
    """Refuse a configuration whose classes another process could not import, before anything is computed.

    Raises:
      ConfigError: a section's class is neither registered by jaxrec nor at the top of an importable module.
    """
    for path in NAMED_SECTIONS:
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value is not None and not type(value).__module__.startswith("jaxrec."):
            import_path(type(value))


def _values_of(section: Any, path: str) -> dict[str, Any]:
    """Plain values of a section; its class under "name", and its import path under "class" if it is not jaxrec's."""
    values: dict[str, Any] = {}
    if path in NAMED_SECTIONS:
        kind = type(section)
        values["name"] = NAMED_SECTIONS[path].label_of(kind)
        if not kind.__module__.startswith("jaxrec."):
            values["class"] = f"{kind.__module__}:{kind.__qualname__}"
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        nested = f"{path}.{field.name}"
        values[field.name] = _values_of(value, nested) if dataclasses.is_dataclass(value) else value
    return values


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return nested plain values; a section whose class is chosen by name carries that name under "name".

    A class from outside jaxrec is also given by its import path under "class". No code is stored.
    """
    out = {
        field.name: _values_of(getattr(config, field.name), field.name)
        for field in dataclasses.fields(config)
    }
    # Tuples become lists, as they come back from JSON.
    return json.loads(json.dumps(out))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Rebuild a configuration from `to_dict`'s values; sections and fields that are absent take their defaults.

    Configurations of earlier versions are understood (`migrated`).

    Raises:
      ConfigError: a section or field does not exist, has a value of another kind, or names a class that cannot be
        imported.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration must be a JSON object of sections; got {type(values).__name__}")
    values = migrated(values)
    sections = [field.name for field in dataclasses.fields(RunConfig)]
    unknown = sorted(set(values) - set(sections))
    if unknown:
        raise ConfigError(f"unknown section {unknown} in the configuration; expected some of {sections}")
    default = RunConfig()
    return RunConfig(
        **{name: _built(section, name, getattr(default, name)) for name, section in values.items()}
    )


def _built(section: Any, path: str, default: Any) -> Any:
    """The section at ``path`` from its plain values."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"the section {path!r} must be a JSON object; got {section!r}")
    section = dict(section)
    kind = type(default)
    if path in NAMED_SECTIONS:
        name, imported = section.pop("name", None), section.pop("class", None)
        if imported is not None:
            kind = load_class(imported)
        elif name is not None:
            kind = NAMED_SECTIONS[path][name]
        if not (issubclass(kind, _BASES[path]) and dataclasses.is_dataclass(kind)):
            raise ConfigError(
                f"the section {path!r} names {imported or name!r}, which is no {_BASES[path].__name__}: expected a "
                "dataclass derived from it"
            )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(section) - set(fields))
    if unknown:
        raise ConfigError(f"unknown field {unknown} in section {path!r}; expected some of {sorted(fields)}")
    built = {}
    for name, value in section.items():
        nested = fields[name].default
        if dataclasses.is_dataclass(nested):
            value = _built(value, f"{path}.{name}", nested)
        built[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"the section {path!r} cannot be built: {error}") from None


#: Dotted fields of earlier versions -> the field that replaces them.
RENAMED_FIELDS: dict[str, str] = {**batches.RENAMED_FIELDS, **splits.RENAMED_FIELDS}


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an earlier version in today's form.

    Before version 0.2 the attention mechanism was a section beside the encoder, and every encoder had positions; an
    objective could train on cosines where ranks were by products.

    Raises:
      ConfigError: it has such an objective.
    """
    out = {
        name: dict(section) if isinstance(section, Mapping) else section for name, section in values.items()
    }
    if "attention" in out:
        attention = out.pop("attention")
        if isinstance(out.setdefault("encoder", {}), dict):
            out["encoder"].setdefault("attention", attention)
    for old, new in RENAMED_FIELDS.items():
        (section, field), (new_section, new_field) = old.split("."), new.split(".")
        if isinstance(out.get(section), dict) and field in out[section]:
            value = out[section].pop(field)
            if isinstance(out.setdefault(new_section, {}), dict):
                out[new_section].setdefault(new_field, value)
    if isinstance(out.get("objective"), dict) and out["objective"].pop("cosine", False):
        raise ConfigError(
            "the configuration has objective.cosine true, which trained on cosines and ranked by plain products: expected "
            "false; train again with --encoder.similarity cosine, which trains and ranks by cosines"
        )
    return out


def save_config(config: RunConfig, path: Path) -> None:
    """Write ``config`` as JSON."""
    write_atomically(path, json.dumps(to_dict(config), indent=2) + "\n")


def load_config(path: Path) -> RunConfig:
    """Read what `save_config` wrote.

    Raises:
      ConfigError: the file is missing or is no configuration.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found: expected the config.json of a run") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; expected the config.json of a run"
        ) from None


def config_hash(config: RunConfig) -> str:
    """A short digest of everything in ``config``."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (saved, given) wherever two configurations as dictionaries differ."""
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*saved, *current}):
        a, b = saved.get(key), current.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out.update(differences(a, b, f"{prefix}{key}."))
        elif a != b:
            out[f"{prefix}{key}"] = (a, b)
    return out
