"""Bad inputs: a seeded generator of files, options, configurations, datasets, runs and Python arguments, and its judge."""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import polars as pl

from experiments.reliability.base import (
    HISTORY,
    SMALL,
    Base,
    as_text,
    opened,
    recommend,
    table,
    walks,
    without_names,
)
from experiments.reliability.trials import CANARY, Answer, Trial, call, command, digest, stamp
from jaxrec.config import RunConfig, to_dict

#: Seconds after which a call counts as a hang.
SECONDS = 10.0
#: Values that no one means, as text.
WORDS = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e308",
    "1e-320",
    "9223372036854775808",
    "-9223372036854775809",
]
WORDS += [
    "340282366920938463463374607431768211456",
    "1.5",
    "true",
    "null",
    "[]",
    "{}",
    "../../x",
    "/dev/null",
]
WORDS += [
    "a" * 5000,
    "\u202eabc",
    "\x00",
    "\ud7ff",
    "'; DROP TABLE x",
    "${HOME}",
    "%s%n",
    "__import__('os')",
    "💥",
]
#: The same for JSON and Python arguments.
VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**70),
    1.5,
    float("nan"),
    float("inf"),
    "",
    "7",
]
VALUES += [
    [],
    {},
    [1, [2]],
    {"a": {"b": None}},
    "x" * 3000,
    [None] * 3,
    1e308,
    "\ud7ff",
    [[[[]]]],
    b"\xff",
    (),
]


class Case(NamedTuple):
    """One input.

    Attributes:
      kind: for the counts.
      run: the guarded call.
      right: the answer that a success must have; None = any.
      must: "" or "refused" or "accepted".
      protected: folder whose files must not change.
    """

    kind: str
    run: Callable[[], Answer]
    right: Any = None
    must: str = ""
    protected: Path | None = None


class Planted:
    """An object whose pickle creates the canary when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# ---- files of interactions


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    junk = rng.choice([b"\x00", b"\xff\xfe", b'"', b"\n\n", b",,,", b"\r", rng.randbytes(50), b"x" * 10**5])
    return content[:place] + junk + content[place:]


def _damage(rng: random.Random, content: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2])):
        content = rng.choice([_flip, _cut, _insert])(rng, content)
    return content


def _same_log(rng: random.Random, frame: pl.DataFrame) -> tuple[str, bytes]:
    """The log written in another way: name and content of a file."""
    frame = frame.select(rng.sample(frame.columns, 3))
    if rng.random() < 0.3:
        frame = frame.with_columns(pl.lit("x").alias("remark"))
    way = rng.choice(["bom", "crlf", "gz", "tsv", "parquet", "arrow", "quotes", "plain"])
    text = frame.write_csv(quote_style="always" if way == "quotes" else "necessary").encode()
    if way in ("parquet", "arrow"):
        buffer = io.BytesIO()
        (frame.write_parquet if way == "parquet" else frame.write_ipc)(buffer)
        return f"log.{way}", buffer.getvalue()
    forms = {
        "bom": ("log.csv", b"\xef\xbb\xbf" + text),
        "crlf": ("log.csv", text.replace(b"\n", b"\r\n")),
        "gz": ("log.csv.gz", gzip.compress(text)),
        "tsv": ("log.tsv", frame.write_csv(separator="\t").encode()),
    }
    return forms.get(way, ("log.csv", text))


def _odd_values(rng: random.Random, frame: pl.DataFrame) -> tuple[str, bytes]:
    """A CSV in which some cells are words of `WORDS`."""
    rows = [frame.columns, *([str(x) for x in row] for row in frame.rows())]
    for _ in range(rng.choice([1, 1, 3, 30])):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(WORDS)
    if rng.random() < 0.3:
        rng.choice(rows).append("more")
    if rng.random() < 0.2:
        rng.choice(rows).pop()
    separator = rng.choice([",", ",", ",", "\t", ";", "::", " "])
    encoding = rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])
    text = "\n".join(separator.join(row) for row in rows)
    return f"log.{rng.choice(['csv', 'tsv', 'txt'])}", text.encode(encoding, errors="replace")


def _odd_columns(rng: random.Random, frame: pl.DataFrame) -> tuple[str, bytes]:
    """A Parquet or Arrow file with a column of an unusual type."""
    n = len(frame)
    columns: list[Callable[[], pl.Series]] = [
        lambda: pl.Series([[i] for i in range(n)]),
        lambda: pl.Series([{"a": i} for i in range(n)]),
        lambda: pl.Series([b"\xff\x00"] * n),
        lambda: pl.Series(range(n)).cast(pl.Duration("us")),
        lambda: pl.Series([2**64 - 1 - i for i in range(n)], dtype=pl.UInt64),
        lambda: pl.Series([2**100] * n, dtype=pl.Int128),
        lambda: pl.Series([None] * n),
        lambda: pl.Series([i % 2 == 0 for i in range(n)]),
        lambda: pl.Series([2**31 - 1 - i for i in range(n)]).cast(pl.Int32).cast(pl.Date),
        lambda: pl.Series([2**62 + i for i in range(n)]).cast(pl.Datetime("ns")),
        lambda: pl.Series(["a", "b"] * (n // 2) + ["a"] * (n % 2)).cast(pl.Categorical),
        lambda: pl.Series([float("nan"), *range(1, n)], dtype=pl.Float64),
        lambda: pl.Series([1e300] * n),
        lambda: pl.Series(range(n)).cast(pl.Decimal(20, 3)),
        lambda: pl.Series(range(n)).cast(pl.Time),
    ]
    name = rng.choice(frame.columns)
    frame = frame.with_columns(rng.choice(columns)().alias(name))
    if rng.random() < 0.1:
        frame = frame.head(0)
    buffer = io.BytesIO()
    suffix = rng.choice(["parquet", "arrow"])
    (frame.write_parquet if suffix == "parquet" else frame.write_ipc)(buffer)
    return f"log.{suffix}", buffer.getvalue()


def _table_case(rng: random.Random, folder: Path, base: Base) -> Case:
    frame = table(walks())
    way = rng.choice(
        ["same", "damaged", "damaged", "values", "values", "columns", "suffix", "pickle", "path"]
    )
    right = must = None
    if way in ("same", "damaged", "suffix"):
        name, content = _same_log(rng, frame)
        if way == "damaged":
            content = _damage(rng, content)
            name += rng.choice(["", "", ".gz"])
        elif way == "suffix":
            name = f"log.{rng.choice(['csv', 'tsv', 'txt', 'parquet', 'arrow', 'csv.gz', 'txt.gz', 'feather', 'npy'])}"
        else:
            right, must = base.audit, "accepted"
    elif way == "values":
        name, content = _odd_values(rng, frame)
    elif way == "columns":
        name, content = _odd_columns(rng, frame)
    else:
        content = pickle.dumps(Planted(folder / CANARY))
        name = f"log.{rng.choice(['csv', 'parquet', 'arrow', 'txt', 'npy', 'pkl', 'csv.gz'])}"
    path = folder / name
    if way == "path":
        _strange_path(rng, path)
    else:
        path.write_bytes(content)
    options: list[str] = []
    if way != "same" and rng.random() < 0.4:
        options = rng.choice(
            [
                ["--filter", "k-core"],
                ["--separator", rng.choice([",", "", "::", "é", "\t"])],
                ["--time-unit", "s"],
                ["--no-has-header"],
                ["--encoding", rng.choice(["latin-1", "utf-16", "x"])],
                ["--user-column", rng.choice(["user_id", "nobody", ""])],
                ["--item-table", str(path)],
                ["--item-vectors", str(path)],
                ["--item-attributes", str(path)],
                ["--layout", rng.choice(["sequences", "interactions", "auto"])],
                ["--min-interactions", rng.choice(["0", "1", "3", "-3", "x"])],
            ]
        )
    return _audit_or_prepare(rng, f"table: {way}", path, options, folder, base, right, must or "")


def _strange_path(rng: random.Random, path: Path) -> None:
    """Something that is no file at the path of a log."""
    way = rng.choice(["folder", "fifo", "loop", "absent", "dangling"])
    if way == "folder":
        path.mkdir()
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "loop":
        path.symlink_to(path)
    elif way == "dangling":
        path.symlink_to(path.parent / "absent")


def _audit_or_prepare(
    rng: random.Random,
    kind: str,
    path: Path,
    options: list[str],
    folder: Path,
    base: Base,
    right: Any,
    must: str,
) -> Case:
    if must == "accepted" or rng.random() < 0.7:
        return Case(kind, partial(_audit, path, options), right, must)
    out = rng.choice([folder / "out", folder / "out", base.folder / "data", base.folder])
    low = ["--low-memory"] if rng.random() < 0.3 else []
    run = partial(command, "prepare", path, "--out", out, "--json", *low, *options, seconds=SECONDS)
    return Case(f"{kind}, prepare", run, None, "" if out == folder / "out" else "refused", base.folder)


def _audit(path: Path, options: list[str]) -> Answer:
    """Findings without names; counts that cannot be are a raw error."""
    answer = command("audit", path, "--json", *options, seconds=SECONDS)
    if answer.value is None:
        return answer
    found = answer.value
    counts = [found["users"], found["items"], found["interactions"]]
    if min(counts) < 1 or max(counts[:2]) > counts[2]:
        return Answer(None, None, "raw error", f"impossible counts {counts}")
    return answer._replace(value=without_names(found))


# ---- JSON


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        found += _places(entry, (*path, key))
    return found


def _edited_json(rng: random.Random, text: str) -> bytes:
    """JSON with a value replaced, removed or added; or no JSON at all."""
    if rng.random() < 0.2:
        junk = [b"", b"[" * 10**5, b"\xff\xfe{", b"null", b"[]", b'"x"', b"7", b"{", b"NaN"]
        return rng.choice([*junk, _damage(rng, text.encode())])
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 3])):
        path = rng.choice(_places(value)[1:] or [()])
        if not path:
            break
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        way = rng.choice(["replace", "replace", "near", "remove", "add"])
        old = holder[path[-1]]
        if way == "remove":
            del holder[path[-1]]
        elif way == "add" and isinstance(holder, dict):
            holder[rng.choice(["", "x", "../x", "__class__"])] = 1
        elif way == "near" and isinstance(old, (int, float)):
            holder[path[-1]] = rng.choice([old + 1, old * 2, -old, str(old), not old])
        else:
            holder[path[-1]] = rng.choice([x for x in VALUES if not isinstance(x, bytes)])
    return json.dumps(value).encode()


# ---- saved datasets


def _npy_changed(rng: random.Random, path: Path, canary: Path) -> str:
    """Damage an array file; return how."""
    way = rng.choice(
        ["flip", "flip", "cut", "values", "dtype", "shape", "pickle", "npz", "absent", "fifo", "link"]
    )
    if way in ("flip", "cut"):
        path.write_bytes((_flip if way == "flip" else _cut)(rng, path.read_bytes()))
        return way
    array = np.load(path)
    path.unlink()
    if way == "values":
        array = array.copy()
        if array.size:
            array.flat[rng.randrange(array.size)] = rng.choice([0, 1, 100, np.iinfo(array.dtype).max])
        np.save(path, array)
    elif way == "dtype":
        np.save(path, array.astype(rng.choice(["<f8", "<i2", "<u8", "<U3", "?", ">i4"])))
    elif way == "shape":
        np.save(
            path,
            rng.choice([array[:0], array[:-1], array[None], array[::-1], np.concatenate([array, array])]),
        )
    elif way == "pickle":
        np.save(path, np.array([Planted(canary)], object), allow_pickle=True)
    elif way == "npz":
        with path.open("wb") as file:
            np.savez(file, array)
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to("/dev/zero")
    return way


def _dataset_case(rng: random.Random, folder: Path, base: Base) -> Case:
    copy = folder / "data"
    shutil.copytree(base.folder / "data", copy)
    if rng.random() < 0.4:
        meta = copy / "meta.json"
        meta.write_bytes(_edited_json(rng, meta.read_text()))
        way = "meta.json"
    else:
        way = _npy_changed(rng, rng.choice(sorted(copy.glob("*.npy"))), folder / CANARY)
    return Case(f"saved dataset: {way}", partial(_audit, copy, []), base.saved)


# ---- runs


def _config_case(rng: random.Random, folder: Path, base: Base) -> Case:
    run = folder / "run"
    shutil.copytree(base.folder / "run", run)
    file = run / "config.json"
    file.write_bytes(_edited_json(rng, file.read_text()))
    return Case("run: config.json", partial(_recommended, run), base.recommended)


def _recommended(run: Path) -> Answer:
    answer = recommend(run, SECONDS)
    return answer if answer.value is None else answer._replace(value=answer.value["items"])


def _run_case(rng: random.Random, folder: Path, base: Base) -> Case:
    """Results, ranks, log, catalogue or checkpoint of a run: damaged, edited, or a pickle."""
    run = folder / "run"
    shutil.copytree(base.folder / "run", run)
    part = rng.choice(["results", "ranks", "catalogue", "checkpoint"])
    patterns = {
        "results": "results.json",
        "ranks": "ranks/*",
        "catalogue": "catalogue/*",
        "checkpoint": "checkpoints/**/*",
    }
    files = sorted(path for path in run.glob(patterns[part]) if path.is_file())
    path = rng.choice(files)
    if rng.random() < 0.15:
        path.write_bytes(pickle.dumps(Planted(folder / CANARY)))
    elif path.suffix == ".json":
        path.write_bytes(_edited_json(rng, path.read_text()))
    elif path.suffix == ".npy":
        _npy_changed(rng, path, folder / CANARY)
    else:
        path.write_bytes(_damage(rng, path.read_bytes()))
    if part in ("results", "ranks"):
        board = partial(command, "leaderboard", run, base.folder / "other", "--json", seconds=SECONDS)
        return Case(f"run: {part}", board)
    right = None if part == "checkpoint" else base.recommended
    return Case(f"run: {part}", partial(_recommended, run), right)


# ---- options


class _Reached(BaseException):
    """The data and the configuration of a training run were accepted."""


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _train_case(rng: random.Random, folder: Path, base: Base) -> Case:
    """Options of ``jaxrec train`` up to the first step."""
    arguments: list[str] = [*SMALL]
    fields = _flat(to_dict(RunConfig()))
    for _ in range(rng.choice([1, 1, 2, 4])):
        name = rng.choice([key for key in fields if not key.endswith(".name")]).replace("_", "-")
        old = fields[name.replace("-", "_")]
        near = [old * 2, old + 1, old / 2, 0, -old] if type(old) in (int, float) else [old, 3, 0.5]
        words = [rng.choice([*WORDS[:20], *map(str, near)])]
        if rng.random() < 0.1:
            words = rng.choice([[], ["1", "2"]])
        arguments += [f"--{name}", *(word for word in words if "\x00" not in word)]
    if rng.random() < 0.3:
        arguments += rng.choice(
            [
                ["--preset", "hstu"],
                ["--encoder", rng.choice(["gru4rec", "stosa", "x"])],
                ["--attention", rng.choice(["hstu", "miq", "wasserstein", ""])],
                ["--objective", rng.choice(["bce", "bpr", "bce:x", "os:system"])],
                ["--resume"],
                ["--overwrite"],
                ["--seeds", rng.choice(["2", "0", "-1", "x", "99999999"])],
                ["--task", rng.choice(["masked-item", "s3rec"])],
                ["--init-from", str(rng.choice([base.folder / "run", folder, "/dev/null"]))],
                ["--nonsense"],
            ]
        )
    places = [folder / "new"] * 4 + [base.folder, base.folder / "log.csv"]
    if base.recommended is not None and not {"--overwrite", "--resume"} & set(arguments):
        places.append(base.folder / "run")
    workdir = rng.choice(places)
    arguments += ["--data", str(base.folder / "data"), "--workdir", str(workdir)]
    must = "" if workdir == folder / "new" else "refused"
    return Case("options: train", partial(_until_first_step, arguments), None, must, base.folder)


def _until_first_step(arguments: list[str]) -> Answer:
    """``jaxrec train`` until the state would be made."""
    with mock.patch("jaxrec.training.loop._begin", side_effect=_Reached):
        answer = command("train", *arguments, seconds=SECONDS)
    if answer.problem == "raw error" and answer.message.startswith("_Reached"):
        return Answer(0, None, "", "")
    return answer


def _command_case(rng: random.Random, folder: Path, base: Base) -> Case:
    """Options of the other commands."""
    log, run = base.folder / "log.csv", base.folder / "run"
    word = rng.choice(WORDS)
    forms: list[list[object]] = [
        ["audit", log, "--split.strategy", rng.choice(["time", "ratio", "leave-one-out", word])],
        ["audit", log, "--split.n", word],
        ["audit", log, "--split.valid-quantile", word, "--split.strategy", "time"],
        ["audit", log, "--sequential", "--shuffles", word],
        ["audit", log, "--text", rng.choice([word, log, folder])],
        ["estimate", "--data", log, "--batches.batch-size", word],
        ["compare", run, word or "x"],
        ["compare", run, base.folder / "other", "--metrics", word],
        ["leaderboard", run, folder],
        ["datasets", word],
        ["attention", word],
        ["import", log, "--out", folder / "out"],
        ["export", run, "--out", base.folder],
        ["export", word or "x", "--out", folder / "out"],
        ["extend", run, "--items", word],
        ["recommend", word or "x", "--history", "i1"],
        ["recommend", run, "--histories", log, "--out", folder / "out"],
        ["similar", run, word],
        ["protocols", folder],
        ["stability", folder],
        ["serve", folder],
        ["prepare", log, "--out", base.folder],
        ["prepare", log, "--out", folder / "out", "--min-interactions", word],
        [word or "x", log],
        ["evaluate", folder, "--split", word],
    ]
    arguments = [str(x) for x in rng.choice(forms) if "\x00" not in str(x)]
    return Case(
        f"options: {arguments[0] if arguments[0].isalpha() else 'unknown'}",
        partial(command, *arguments, seconds=SECONDS),
        None,
        "",
        base.folder,
    )


# ---- Python


def _python_case(rng: random.Random, folder: Path, base: Base) -> Case:
    """Arguments of the Python calls."""
    from jaxrec.analysis.compare import compare
    from jaxrec.data import SequenceDataset, load_dataset, split_dataset
    from jaxrec.data.splits import SplitConfig
    from jaxrec.runs import Run

    value, other = rng.choice(VALUES), rng.choice(VALUES)
    fields = [key for key in _flat(to_dict(RunConfig())) if not key.endswith(".name")]
    frame = table(walks()).head(60).to_dict(as_series=False)
    column = rng.choice(list(frame))
    broken = {
        **frame,
        column: rng.choice([value, [value] * 60, frame[column][:30], [value, *frame[column][1:]]]),
    }
    option = rng.choice(
        ["min_interactions", "time_unit", "separator", "filter", "min_rating", "item_attributes"]
    )
    calls: dict[str, Callable[[], Any]] = {
        "load_dataset(source)": lambda: load_dataset(value),
        "load_dataset(columns)": lambda: load_dataset(broken),
        "load_dataset(option)": lambda: load_dataset(frame, **{option: value}),
        "RunConfig.updated": lambda: RunConfig().updated({rng.choice(fields): value}),
        "split_dataset": lambda: split_dataset(walks(), SplitConfig(strategy=value, n=other)),
        "Run": lambda: Run(value).results,
        "compare": lambda: compare([base.folder / "run", value]),
        "SequenceDataset.load": lambda: SequenceDataset.load(value),
    }
    if base.recommended is not None:
        model = _recommender(base.folder / "run")
        calls["recommend(history)"] = lambda: model.recommend(
            [rng.choice([value, [value], [*HISTORY, value]])], k=3
        )
        calls["recommend(k)"] = lambda: model.recommend([HISTORY], k=value)
        calls["recommend(timestamps)"] = lambda: model.recommend([HISTORY], k=3, timestamps=[value, other])
        calls["recommend(exclude)"] = lambda: model.recommend([HISTORY], k=3, exclude=value)
    name = rng.choice(sorted(calls))
    return Case(f"Python: {name}", partial(call, calls[name], SECONDS), None, "", base.folder)


_MODELS: dict[Path, Any] = {}


def _recommender(run: Path) -> Any:
    from jaxrec.serving import Recommender

    if run not in _MODELS:
        _MODELS[run] = Recommender.load(run)
    return _MODELS[run]


#: Generators with their weights; those after "runs" need trained runs.
FAMILIES: dict[str, tuple[Callable[[random.Random, Path, Base], Case], int]] = {
    "tables": (_table_case, 40),
    "datasets": (_dataset_case, 15),
    "train options": (_train_case, 12),
    "Python": (_python_case, 15),
    "commands": (_command_case, 8),
    "config.json": (_config_case, 5),
    "runs": (_run_case, 5),
}
#: Families that need no trained run.
UNTRAINED = ("tables", "datasets", "train options", "Python")


def trial(seed: int, shared: Path, trained: bool, number: int, folder: Path) -> Trial:
    """Make input ``number`` in ``folder``, run it, and judge the answer."""
    base = opened(shared, trained)
    with mock.patch.object(importlib.metadata, "entry_points", _entry_points):
        return _trial(seed, base, trained, number, folder)


#: Plugins that are installed, looked up once: every command asks for them, and no trial is about them.
_entry_points = functools.cache(importlib.metadata.entry_points)


def _trial(seed: int, base: Base, trained: bool, number: int, folder: Path) -> Trial:
    rng = random.Random(f"inputs/{seed}/{number}")
    names = [name for name in FAMILIES if trained or name in UNTRAINED]
    family = rng.choices(names, [FAMILIES[name][1] for name in names])[0]
    case = FAMILIES[family][0](rng, folder, base)
    before = _protected(case.protected) if case.protected else None
    answer = case.run()
    if answer.problem == "hang":
        outcome, detail = "hang", answer.message
    elif (folder / CANARY).exists():
        outcome, detail = "executed", answer.message
    elif case.protected and before != _protected(case.protected):
        outcome, detail = "overwritten", answer.message
    else:
        outcome, detail = judged(answer, case)
    return Trial(number, case.kind, outcome, detail[:300])


def _protected(folder: Path) -> dict[str, str]:
    """`digest` of a folder, computed again only where a file was written since the last time."""
    now = stamp(folder)
    if folder not in _DIGESTS or _DIGESTS[folder][0] != now:
        _DIGESTS[folder] = now, digest(folder)
    return _DIGESTS[folder][1]


_DIGESTS: dict[Path, tuple[Any, dict[str, str]]] = {}


def judged(answer: Answer, case: Case) -> tuple[str, str]:
    """Outcome of a call, and its message."""
    if answer.problem:
        return answer.problem, answer.message
    if answer.status != 0:
        return ("wrong" if case.must == "accepted" else "refused"), answer.message
    if case.must == "refused":
        return "wrong", "accepted, although it would write over what exists"
    if case.right is not None:
        if as_text(answer.value) == as_text(case.right):
            return "same", ""
        if "jaxrec: " in answer.message and "checkpoint" in answer.message:
            return "fell back", answer.message
        return "wrong", f"another answer: {as_text(answer.value)}"
    return "accepted", ""
