"""`jaxrec audit`, `jaxrec prepare`, `jaxrec transpose` and `jaxrec datasets`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.splits import SplitConfig
from jaxrec.data.transposed import LAST
from jaxrec.errors import ConfigError, DataError
from jaxrec.files import as_word
from jaxrec.options import option_name

if TYPE_CHECKING:
    from jaxrec.data.dataset import SequenceDataset
    from jaxrec.data.statistics import SequenceStatistics

_SOURCE = tyro.conf.arg(
    name="data-source",
    metavar="DATA",
    help="csv, tsv, parquet, arrow or text file, saved dataset, directory of Parquet files, or the name of a public "
    "dataset (jaxrec datasets)",
)
_OPTIONS = tyro.conf.arg(help="options of the data; in this command `--data.` may be left out")


def _with_section(arguments: list[str]) -> list[str]:
    """Write ``--filter`` as ``--data.filter``, for every option of `DataConfig`."""
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(DataConfig)}
    expanded = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        bare = name.removeprefix("--").replace("_", "-")
        is_option = name.startswith("--") and (bare in fields or bare.removeprefix("no-") in fields)
        expanded.append(f"--data.{bare}{equals}{value}" if is_option else argument)
    return expanded


@dataclasses.dataclass(frozen=True)
class Audit:
    """Report data issues that affect evaluation: ties in time, duplicates, repeats, leakage, short users."""

    source: Annotated[str, tyro.conf.Positional, _SOURCE]
    data: Annotated[DataConfig, _OPTIONS] = DataConfig()
    split: Annotated[SplitConfig, tyro.conf.arg(help="whose unseen and repeated targets are counted")] = (
        SplitConfig()
    )
    sequential: Annotated[bool, tyro.conf.arg(help="count sequential rules, against shuffled sequences")] = (
        False
    )
    min_support: Annotated[int, tyro.conf.arg(help="of a sequential rule: fewest users")] = 5
    min_confidence: Annotated[float, tyro.conf.arg(help="of a sequential rule: lowest confidence")] = 0.1
    shuffles: Annotated[int, tyro.conf.arg(help="number of shuffled copies of the log")] = 5
    statistics: Annotated[
        bool,
        tyro.conf.arg(
            help="entropies, Zipf's slope and repetition of items, beside the words of their titles and of a text"
        ),
    ] = False
    text: Annotated[
        str,
        tyro.conf.arg(
            help="of --statistics: a text file to compare with, one sentence per line; default: the manual of Python"
        ),
    ] = ""
    json: Annotated[bool, tyro.conf.arg(help="print the findings as one JSON object")] = False


def audit(arguments: list[str]) -> int:
    """Run `jaxrec audit`."""
    options = parse(Audit, _with_section(arguments), "audit")
    if options.text and not options.statistics:
        raise ConfigError("--text is a text for --statistics: expected both, got --text alone")
    idle = [
        name
        for name in ("min_support", "min_confidence", "shuffles")
        if getattr(options, name) != getattr(Audit, name)
    ]
    if idle and not options.sequential:
        given = ", ".join(option_name("", name) for name in idle)
        raise ConfigError(
            f"{given}: options of the rules that --sequential counts; expected both, got no --sequential"
        )

    from jaxrec.data import audit, load_dataset, sequentiality, split_dataset

    dataset = load_dataset(options.source, options.data)
    findings = audit(dataset, split_dataset(dataset, options.split))
    result, text = findings.to_dict(), str(findings)
    if options.sequential:
        rules = sequentiality(
            dataset,
            min_support=options.min_support,
            min_confidence=options.min_confidence,
            shuffles=options.shuffles,
        )
        result, text = {**result, "sequential": rules.to_dict()}, f"{text}\n{rules}"
    if options.statistics:
        from jaxrec.data.statistics import format_statistics

        columns = _statistics(dataset, options.text)
        result = {**result, "statistics": [column.to_dict() for column in columns]}
        text = f"{text}\n{format_statistics(columns)}"
    emit(result, text, options.json)
    return 0


def _statistics(dataset: "SequenceDataset", text: str) -> "list[SequenceStatistics]":
    """Statistics of items, titles and a text, all at the number of tokens of the shortest."""
    from jaxrec.data.statistics import dataset_statistics, manual_sentences, text_statistics

    measures: list[Callable[[int | None], SequenceStatistics]] = [
        lambda limit: dataset_statistics(dataset, limit)
    ]
    titles = dataset.item_titles
    if titles is not None:
        measures.append(lambda limit: text_statistics(titles, name=f"titles of {dataset.name}", limit=limit))
    if text:
        try:
            lines = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--text {text!r} cannot be read: {error}") from None
        name = Path(text).name
    else:
        lines, name = manual_sentences(), "Python's manual"
    measures.append(lambda limit: text_statistics(lines, name=name, limit=limit))
    shortest = min(measure(None).tokens for measure in measures)
    return [measure(shortest) for measure in measures]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Read a log once and save it as memory-mapped arrays, which open at once."""

    source: Annotated[str, tyro.conf.Positional, _SOURCE]
    data: Annotated[DataConfig, _OPTIONS] = DataConfig()
    out: Annotated[str, tyro.conf.arg(help="directory to write; must be new or empty")] = "dataset"
    download: Annotated[bool, tyro.conf.arg(help="fetch the archives of a public dataset first")] = False
    accept_licence: Annotated[bool, tyro.conf.arg(help="accept its licence, which is shown otherwise")] = (
        False
    )
    low_memory: Annotated[
        bool,
        tyro.conf.arg(
            help="for a log beyond memory: read, filter and sort it block by block, through files beside --out; the "
            "result is the same (a directory of Parquet files is always read so)"
        ),
    ] = False
    json: Annotated[bool, tyro.conf.arg(help="print the summary as one JSON object")] = False


def prepare(arguments: list[str]) -> int:
    """Run `jaxrec prepare`."""
    options = parse(Prepare, _with_section(arguments), "prepare")

    from jaxrec.data import load_dataset, prepare_in_blocks
    from jaxrec.data.readers.tables import parquet_files
    from jaxrec.data.storage import check_empty
    from jaxrec.files import is_directory

    config = options.data
    check_empty(Path(options.out))  # before minutes of reading
    if options.download:
        from jaxrec.datasets.download import fetch

        paths = fetch(options.source, accept_licence=options.accept_licence, progress=not options.json)
        config = config.replace(archive=tuple(map(str, paths)))
    if options.low_memory or (is_directory(options.source) and parquet_files(Path(options.source))):
        dataset = prepare_in_blocks(options.source, options.out, config)
    else:
        dataset = load_dataset(options.source, config)
        dataset.save(options.out)
    details = {
        "titles": dataset.item_titles is not None,
        "attributes": 0 if dataset.attributes is None else dataset.attributes.n_attributes,
        "timestamps": dataset.timestamps is not None,
    }
    summary = {"directory": options.out, "fingerprint": dataset.fingerprint, **dataset.counts, **details}
    lines = [
        f"{dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_interactions:,} interactions saved in "
        f"{options.out}; {'with' if details['titles'] else 'without'} titles, {details['attributes']:,} attributes",
        *_checksum(config, options.source, dataset),
        *(f"warning: {warning}" for warning in dataset.meta.get("warnings", ())),
        f"next: jaxrec train --data {as_word(options.out)}",
    ]
    emit(summary, "\n".join(lines), options.json)
    return 0


def _checksum(config: DataConfig, source: str, dataset: "SequenceDataset") -> list[str]:
    """Say whether the archive of a public dataset was compared, or that nothing is published to compare it with."""
    from jaxrec.data.named import DATASETS, PublicDataset

    part = DATASETS[source] if source in DATASETS else None  # noqa: SIM401 - a failed look-up raises
    record = dataset.meta.get("source", {})
    if not isinstance(part, PublicDataset) or "sha256" not in record:
        return []
    if not (part.sha256 or part.md5):
        text = "its source publishes no checksum"
    elif record["sha256"] in part.sha256 or not config.other_edition:
        text = "checksum as expected"
    else:
        text = "not compared with the published checksum (--other-edition)"
    return [f"archive {record['file']}: {text}; sha256 {record['sha256']} is in meta.json"]


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Save the transposed log: of each item its training users, oldest first, to train a next-user model on."""

    source: Annotated[str, tyro.conf.Positional, _SOURCE]
    data: Annotated[DataConfig, _OPTIONS] = DataConfig()
    split: Annotated[SplitConfig, tyro.conf.arg(help="whose training part is transposed")] = SplitConfig()
    last: Annotated[int, tyro.conf.arg(help="newest users of an item to keep; 0 = all")] = LAST
    out: Annotated[str, tyro.conf.arg(help="directory to write; must be new or empty")] = "transposed"
    json: Annotated[bool, tyro.conf.arg(help="print the summary as one JSON object")] = False


def transpose(arguments: list[str]) -> int:
    """Run `jaxrec transpose`."""
    options = parse(Transpose, _with_section(arguments), "transpose")

    from jaxrec.analysis.tables import to_markdown
    from jaxrec.data import load_dataset, split_dataset
    from jaxrec.data.storage import check_empty
    from jaxrec.data.transposed import reverse_coverage, transposed

    check_empty(Path(options.out))
    split = split_dataset(load_dataset(options.source, options.data), options.split)
    dataset = transposed(split, options.last)
    dataset.save(options.out)
    coverage = reverse_coverage(split, options.last)
    summary = {
        "directory": options.out,
        "fingerprint": dataset.fingerprint,
        **dataset.counts,
        "coverage": coverage.to_dict(),
    }
    lines = [
        f"{dataset.n_users:,} items as sequences of {dataset.n_items:,} users, {dataset.n_interactions:,} interactions "
        f"saved in {options.out}",
        *coverage.lines(),
        "",
        to_markdown(*coverage.rows()),
        f"next: jaxrec train --data {as_word(options.out)}",
    ]
    emit(summary, "\n".join(lines), options.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Datasets:
    """List the public datasets that jaxrec reads: source, licence, citation, rules, and archives on disk."""

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME]", help="of one dataset, to show all about it"),
    ] = ""
    full: Annotated[bool, tyro.conf.arg(help="show all about every dataset, not one line each")] = False
    json: Annotated[bool, tyro.conf.arg(help="print the list as one JSON object")] = False


def datasets(arguments: list[str]) -> int:
    """Run `jaxrec datasets`."""
    options = parse(Datasets, arguments, "datasets")

    from jaxrec.datasets import describe_datasets, format_datasets

    about = describe_datasets(options.name)
    emit({"datasets": about}, format_datasets(about, full=options.full or bool(options.name)), options.json)
    return 0
