"""`jaxrec export`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.errors import ConfigError, RunExistsError
from jaxrec.files import as_word

if TYPE_CHECKING:
    from jaxrec.serving import Recommender
    from jaxrec.serving.approximate import ApproximateIndex


@dataclasses.dataclass(frozen=True)
class Export:
    """An artefact that answers without the training code; with --onnx a model for ONNX Runtime, with --vectors vectors."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run directory")]
    out: Annotated[str, tyro.conf.arg(help="directory to write; must not exist")]
    platforms: Annotated[
        tuple[str, ...], tyro.conf.arg(help="platforms of the artefact: some of cpu, cuda and tpu")
    ] = ("cpu", "cuda", "tpu")
    onnx: Annotated[
        bool, tyro.conf.arg(help="write model.onnx and catalogue.json instead, for ONNX Runtime")
    ] = False
    rows: Annotated[
        int | None, tyro.conf.arg(help="with --onnx: histories of one call; default: any number")
    ] = None
    vectors: Annotated[
        bool,
        tyro.conf.arg(
            help="write items.parquet and items.npy instead: vectors whose inner products are the scores"
        ),
    ] = False
    users: Annotated[
        bool,
        tyro.conf.arg(help="with --vectors: also the vectors of all users of the run's dataset, in parts"),
    ] = False
    index: Annotated[
        bool,
        tyro.conf.arg(
            help="with --vectors: also items.usearch, an approximate index (extra usearch), and its recall@10 for up to "
            "1,000 users of the run's dataset"
        ),
    ] = False
    data: Annotated[
        str,
        tyro.conf.arg(
            help="of --users and --index: where the run's dataset is, in place of the path in the run"
        ),
    ] = ""
    seed: Annotated[int | None, tyro.conf.arg(help="which of the run's models; default: the first")] = None
    json: Annotated[bool, tyro.conf.arg(help="print the summary as one JSON object")] = False


def export(arguments: list[str]) -> int:
    """Run ``jaxrec export``; return the exit status."""
    options = parse(Export, arguments, "export")
    if (options.users or options.index) and not options.vectors:
        raise ConfigError("--users and --index belong to --vectors: give that, too")
    if options.data and not (options.users or options.index):
        raise ConfigError("--data is the log of --users and --index: got neither, and nothing else needs it")
    if options.onnx and options.vectors:
        raise ConfigError("--onnx and --vectors write different things: choose one of them")
    if options.platforms != Export.platforms and (options.onnx or options.vectors):
        raise ConfigError(
            f"--platforms {' '.join(options.platforms)} belongs to the artefact, got "
            f"{'--onnx' if options.onnx else '--vectors'}, which is for all of them: leave it out"
        )
    if options.rows is not None and (not options.onnx or options.rows < 1):
        raise ConfigError(f"--rows belongs to --onnx and must be at least 1, got {options.rows}")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving import Recommender

    enable_compilation_cache()
    recommender = Recommender.load(options.run, options.seed, options.data)
    if options.vectors:
        _export_vectors(options, recommender)
        return 0
    if options.onnx:
        from jaxrec.serving.onnx import export_onnx

        summary = export_onnx(recommender, options.out, options.rows)
        emit(
            summary,
            f"{options.out}: {summary['items']:,} items, {summary['operations']} operations; scores within "
            f"{summary['largest_difference']:.1e} of the run's",
            options.json,
        )
        return 0

    from jaxrec.serving.export import export_run

    manifest = export_run(recommender, options.out, options.platforms)
    emit(
        {"out": options.out, "platforms": manifest["platforms"], "files": len(manifest["files"])},
        f"{options.out}: {manifest['model']['items']:,} items, platforms {', '.join(manifest['platforms'])}\n"
        f"next: python {as_word(Path(options.out) / 'runtime.py')} --history ITEM ITEM -k 10",
        options.json,
    )
    return 0


def _export_vectors(options: Export, recommender: "Recommender") -> None:
    from jaxrec.cli.recommend import report_bulk
    from jaxrec.serving.bulk import BulkJob, run_bulk
    from jaxrec.serving.vectors import write_item_vectors

    # What cannot work is refused before the first file is there, beside which a second call would write nothing.
    if options.index or options.users:
        _ = recommender.run.dataset
    index = _index(options, recommender) if options.index else None
    file = write_item_vectors(recommender, options.out)
    summary: dict[str, object] = {"out": options.out, "items": recommender.items.n_items}
    lines = [f"{recommender.items.n_items:,} item vectors in {file}"]
    if index is not None:
        index.save(_index_file(options))
        summary["recall@10"] = recall = _recall(index)
        lines.append(f"items.usearch: recall@10 {recall:.4f} against the exact lists")
    if options.users:
        out = str(Path(options.out) / "users.parquet")
        if not options.json:
            print("\n".join(lines))
        job = BulkJob(options.run, out, seed=options.seed, vectors=True, data=options.data)
        report_bulk(job, False, 0, options.json, run_bulk, summary)
    else:
        emit(summary, "\n".join(lines), options.json)


def _index_file(options: Export) -> Path:
    return Path(options.out) / "items.usearch"


def _index(options: Export, recommender: "Recommender") -> "ApproximateIndex":
    """Build the approximate index, for a file that does not exist."""
    from jaxrec.serving.approximate import ApproximateIndex

    file = _index_file(options)
    if file.exists():
        raise RunExistsError(f"{file} exists, and nothing was overwritten: give another --out")
    return ApproximateIndex(recommender)


def _recall(index: "ApproximateIndex") -> float:
    """Recall for the first users of the run's dataset."""
    from jaxrec.serving.sources import LogSource

    recommender = index.recommender
    k = min(10, recommender.items.n_items)
    source = LogSource(
        recommender.run.dataset, recommender.config.evaluation.remove_seen, k, recommender.needs_times
    )
    block = source.read(0, min(1000, len(source)))
    return index.recall(block.histories, k, block.removed)
