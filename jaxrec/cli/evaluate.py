"""`jaxrec evaluate`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrec.cli.common import emit, parse


def evaluate(arguments: list[str]) -> int:
    from jaxrec.config import load_config
    from jaxrec.sharding import MeshConfig
    from jaxrec.training.distributed import DistributedConfig, is_first, join

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Rank the held-out targets of a saved run again, from its checkpoint."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="run directory")]
        split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="which held-out part")] = "test"
        data: Annotated[str, tyro.conf.arg(help="the same data in another place; default: where it was")] = ""
        beyond: Annotated[
            int, tyro.conf.arg(help="also coverage, concentration, novelty and diversity of lists this long")
        ] = 0
        mesh: MeshConfig = MeshConfig()
        distributed: Annotated[DistributedConfig, tyro.conf.arg(help="how this process joins others")] = (
            DistributedConfig()
        )
        json: Annotated[bool, tyro.conf.arg(help="print the result as one JSON object")] = False

    given = parse(Evaluate, arguments, "evaluate")
    join(given.distributed)

    from jaxrec.api import evaluate
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.reporting.results import format_metrics

    enable_compilation_cache()
    config = load_config(Path(given.run) / "config.json")
    if given.data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=given.data))
    result = evaluate(given.run, given.split, config.data.load(), given.beyond or None, given.mesh)
    if not is_first():
        return 0
    told = f"{given.split}\n{format_metrics(result)}"
    for name, value in result.get("beyond_accuracy", {}).items():
        spread = "" if value["sd"] is None else f" ± {value['sd']:.4f}"
        told += f"\n{name}: {value['mean']:.4f}{spread}"
    emit(result, told, given.json)
    return 0
