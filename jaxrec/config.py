"""The configuration of a run: frozen dataclasses, composed, and their JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxrec.attention import ATTENTION
from jaxrec.attention.base import AttentionConfig
from jaxrec.attention.softmax import SoftmaxAttentionConfig
from jaxrec.data import batches, splits
from jaxrec.data.batches import BatchConfig
from jaxrec.data.readers.load import DataConfig
from jaxrec.data.splits import SplitConfig
from jaxrec.errors import ConfigError
from jaxrec.evaluation.evaluate import EvaluationConfig
from jaxrec.evaluation.metrics import default_metric
from jaxrec.models import ENCODERS, EncoderConfig, SASRecConfig
from jaxrec.objectives import OBJECTIVES, CrossEntropyConfig, ObjectiveConfig
from jaxrec.optim import OptimizerConfig
from jaxrec.registry import Registry
from jaxrec.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long to train, when to look, what to keep.

    Attributes:
      epochs: most passes over the training data.
      seeds: one model is trained for each.
      over_seeds: "vmap" trains them side by side, "map" one after the other in the same compiled program, "auto" picks
        "vmap" on an accelerator and "map" on a CPU.
      evaluate_every: epochs between validations (a fraction is fine).
      metric: validation metric that chooses the best parameters and stops training early; empty = NDCG@10, or NDCG at the
        longest list where ``evaluation.ks`` has no 10.
      patience: validations without a new best before training stops; 0 = never stop early.
      chunk_steps: most steps in one call of the compiled program.
      accumulate_steps: a step takes its batch in so many equal parts, one after the other, and sums their gradients: the
        activations of one part at a time. The gradient is that of the whole batch, but for dropout and sampled negatives,
        which are drawn anew for each part, and negatives from the batch, which are those of the part.
      feed: "resident" keeps the log on the device, "streamed" fills batches on the host, one chunk of steps ahead, from a
        log that stays in its file; "auto" is resident where the log takes no more than ``resident_share`` of the device.
        All give the same result to the bit.
      resident_share: share of the device's memory (on a CPU: the machine's) that "auto" gives to the log.
      checkpoint_seconds: least time between checkpoints; one is always written at the end and on a signal.
      keep_checkpoints: how many of the newest to keep besides the best.
    """

    epochs: float = 100.0
    seeds: tuple[int, ...] = (0,)
    over_seeds: Literal["auto", "vmap", "map"] = "auto"
    evaluate_every: float = 1.0
    metric: str = ""
    patience: int = 10
    chunk_steps: int = 100
    accumulate_steps: int = 1
    feed: Literal["auto", "resident", "streamed"] = "auto"
    resident_share: float = 0.25
    checkpoint_seconds: float = 30.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"training.seeds must be distinct and at least one, got {self.seeds}")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**32:
            raise ConfigError(f"training.seeds must be in [0, 2^32), got {self.seeds}")
        for field, least in (
            ("chunk_steps", 2),
            ("accumulate_steps", 1),
            ("keep_checkpoints", 1),
            ("patience", 0),
            ("checkpoint_seconds", 0),
        ):
            if getattr(self, field) < least:
                raise ConfigError(f"training.{field} must be at least {least}, got {getattr(self, field)}")
        for field in ("epochs", "evaluate_every"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"training.{field} must be above 0, got {getattr(self, field)}")
        if not 0 <= self.resident_share <= 1:
            raise ConfigError(f"training.resident_share must be in [0, 1], got {self.resident_share}")
        for field, allowed in (
            ("over_seeds", ("auto", "vmap", "map")),
            ("feed", ("auto", "resident", "streamed")),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"training.{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}"
                )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's numbers. Presets (`jaxrec.presets`) are functions that return one."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    batches: BatchConfig = BatchConfig()
    encoder: EncoderConfig = SASRecConfig()
    attention: AttentionConfig = SoftmaxAttentionConfig()
    objective: ObjectiveConfig = CrossEntropyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        ks = self.evaluation.ks
        known = [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in ks] + ["MRR"]
        if self.training.metric not in ("", *known):
            raise ConfigError(
                f"training.metric must be one of {', '.join(known)} (for evaluation.ks = {ks}); "
                f"got {self.training.metric!r}"
            )
        if self.batches.batch_size % self.training.accumulate_steps:
            raise ConfigError(
                f"training.accumulate_steps must divide batches.batch_size = {self.batches.batch_size} into equal parts, "
                f"got {self.training.accumulate_steps}"
            )

    @property
    def metric(self) -> str:
        """The validation metric: ``training.metric``, or its default for ``evaluation.ks``."""
        return self.training.metric or default_metric(self.evaluation.ks)


#: "section.field" of an older configuration -> its name today.
RENAMED_FIELDS = {**batches.RENAMED_FIELDS, **splits.RENAMED_FIELDS}

#: Sections whose class is chosen by a registered name.
NAMED_SECTIONS: dict[str, Registry] = {"encoder": ENCODERS, "attention": ATTENTION, "objective": OBJECTIVES}


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values; sections chosen by name carry it under "name"."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        values = dataclasses.asdict(section)
        if field.name in NAMED_SECTIONS:
            values = {"name": NAMED_SECTIONS[field.name].name_of(type(section)), **values}
        out[field.name] = values
    # Tuples become lists, as they come back from JSON.
    return json.loads(json.dumps(out))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; sections and fields that are absent take their defaults.

    Raises:
      ConfigError: a section or field does not exist.
    """
    sections = {field.name: field for field in dataclasses.fields(RunConfig)}
    unknown = set(values) - set(sections)
    if unknown:
        raise ConfigError(
            f"unknown section {sorted(unknown)} in the configuration; expected some of {list(sections)}"
        )
    built = {}
    for name, given in values.items():
        given = {RENAMED_FIELDS.get(f"{name}.{k}", f"{name}.{k}").split(".")[1]: v for k, v in given.items()}
        if name in NAMED_SECTIONS:
            default = NAMED_SECTIONS[name].name_of(type(getattr(RunConfig(), name)))
            section_class = NAMED_SECTIONS[name][given.pop("name", default)]
        else:
            section_class = type(getattr(RunConfig(), name))
        fields = {field.name for field in dataclasses.fields(section_class)}
        if set(given) - fields:
            raise ConfigError(
                f"unknown field {sorted(set(given) - fields)} in section {name!r}; expected some of {sorted(fields)}"
            )
        built[name] = section_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    return RunConfig(**built)


def save_config(config: RunConfig, path: Path) -> None:
    """Write ``config`` as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load_config(path: Path) -> RunConfig:
    """Read what `save_config` wrote.

    Raises:
      ConfigError: the file is missing or is no configuration.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found: expected the config.json of a run") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def config_hash(config: RunConfig) -> str:
    """A short digest of everything in ``config``."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(
    saved: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (saved, given) wherever two configurations as dictionaries differ."""
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*saved, *given}):
        a, b = saved.get(key), given.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out.update(differences(a, b, f"{prefix}{key}."))
        elif a != b:
            out[f"{prefix}{key}"] = (a, b)
    return out
