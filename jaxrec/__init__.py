"""jaxrec: sequential recommendation in JAX, with exact evaluation, resumable runs and honest comparisons."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxrec.api import evaluate, fit
    from jaxrec.config import RunConfig
    from jaxrec.data import audit, load_dataset, split_dataset
    from jaxrec.presets import PRESETS
    from jaxrec.runs import Run
    from jaxrec.serving import Recommender
    from jaxrec.tuning import tune

# Loaded on first use: the data tools then need no JAX, and `jaxrec --help` answers at once.
_HOMES = {
    "PRESETS": "jaxrec.presets",
    "Recommender": "jaxrec.serving",
    "Run": "jaxrec.runs",
    "RunConfig": "jaxrec.config",
    "audit": "jaxrec.data",
    "evaluate": "jaxrec.api",
    "fit": "jaxrec.api",
    "load_dataset": "jaxrec.data",
    "split_dataset": "jaxrec.data",
    "tune": "jaxrec.tuning",
}

__all__ = [
    "PRESETS",
    "Recommender",
    "Run",
    "RunConfig",
    "audit",
    "evaluate",
    "fit",
    "load_dataset",
    "split_dataset",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
