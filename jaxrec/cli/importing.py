"""`jaxrec import`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrec.cli.common import emit, parse, read_ids
from jaxrec.config import RunConfig
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.splits import SplitConfig
from jaxrec.evaluation.config import EvaluationConfig
from jaxrec.files import as_word


@dataclasses.dataclass(frozen=True)
class Import:
    """Turn a published PyTorch checkpoint into a run: without PyTorch, and without executing anything in the file."""

    file: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="file that torch.save wrote")
    ]
    format: Annotated[
        str, tyro.conf.arg(help="sasrec-pytorch, s3rec, gsasrec, recbole, rectools, or one of your own")
    ]
    out: Annotated[str, tyro.conf.arg(help="run directory to write; must be new or empty")]
    source: Annotated[
        str, tyro.conf.arg(name="data", help="the log that the model was trained on; see jaxrec train")
    ] = "movietweetings"
    heads: Annotated[
        int | None, tyro.conf.arg(help="attention heads, where the file and its name do not say")
    ] = None
    activation: Annotated[str, tyro.conf.arg(help="of the feed-forward network, where it is another")] = ""
    variant: Annotated[
        str, tyro.conf.arg(help="of sasrec-pytorch: 2020, 2024 or 2024-norm-first; default: by the tensors")
    ] = ""
    dropout: Annotated[float | None, tyro.conf.arg(help="rate for continued training")] = None
    items: Annotated[
        str, tyro.conf.arg(help="text file with the original id of each row of the item table, one per line")
    ] = ""
    overwrite: Annotated[bool, tyro.conf.arg(help="delete a run that is already in --out")] = False
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    json: Annotated[bool, tyro.conf.arg(help="print the results as one JSON object")] = False


def import_checkpoint(arguments: list[str]) -> int:
    """Run ``jaxrec import``; return the exit status."""
    options = parse(Import, arguments, "import")

    from jaxrec import interop
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.reporting.results import format_metrics

    enable_compilation_cache()
    data = options.data if options.source == "movietweetings" else options.data.replace(source=options.source)
    report = interop.import_checkpoint(
        options.file,
        options.format,
        RunConfig(data=data, split=options.split, evaluation=options.evaluation),
        options.out,
        options=interop.ImportOptions(options.heads, options.activation, options.variant, options.dropout),
        item_ids=read_ids(options.items) if options.items else None,
        overwrite=options.overwrite,
    )
    out, word = Path(options.out), as_word(options.out)
    text = "\n".join(
        [
            *report.lines(),
            "",
            format_metrics(report.results),
            "",
            f"everything is in {out}: open {out / 'report.html'}",
            f"next: jaxrec recommend {word} --history ITEM ITEM -k 10",
            f"or train on: jaxrec train --preset {word} --init-from {word} --workdir {as_word(f'{out}-tuned')}",
        ]
    )
    emit({**report.results, "workdir": str(out), "imported": report.lines()}, text, options.json)
    return 0
