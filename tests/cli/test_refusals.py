"""What is refused, in which words, and that nothing is lost by it."""

import sys

import pytest

from jaxrec.cli.main import main
from tests.cli.shared import SMALL, interactions, refused
from tests.runs import jaxrec


def broken_files(folder):
    """Name of a broken file -> (its text, words of the message)."""
    cases = {
        "columns.csv": ("a,b\n1,2\n", ["user", "column"]),
        "empty.csv": ("", ["empty"]),
        "headers.csv": ("user_id,item_id,timestamp\n", ["empty", "no rows"]),
        "times.csv": ("user_id,item_id,timestamp\nu,i,soon\nu,j,later\n", ["timestamp"]),
        "gaps.csv": ("user_id,item_id,timestamp\nu,i,1\nu,j,\n", ["timestamp", "row"]),
        "lonely.csv": (
            "user_id,item_id,timestamp\n" + "".join(f"u{n},i{n},1\n" for n in range(12)),
            ["interactions"],
        ),
    }
    for name, (text, _) in cases.items():
        (folder / name).write_text(text)
    return {name: words for name, (_, words) in cases.items()}


def test_bad_data_is_refused_in_words_and_writes_nothing(tmp_path):
    for name, words in broken_files(tmp_path).items():
        run = tmp_path / f"run-{name}"
        refused(jaxrec("train", "--data", tmp_path / name, "--workdir", run, *SMALL), *words)
        assert not run.exists() or not list(run.iterdir()), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--preset", "sasrek"], ["unknown preset 'sasrek'", "Did you mean 'sasrec'"]),
        (["train", "--attention", "softmaxx"], ["unknown attention mechanism", "Did you mean 'softmax'"]),
        (["train", "--objective", "hinge"], ["unknown objective 'hinge'", "cross-entropy"]),
        (["train", "--resume"], ["--resume needs --workdir"]),
        (["train", "--resume", "--workdir", "/nonexistent/run"], ["config.json not found"]),
        (["train", "--data", "/nonexistent/log.csv", "--workdir", "RUN"], ["no file '/nonexistent/log.csv'"]),
        (
            ["train", "--data", "a.csv", "--data.source", "b.csv", "--workdir", "RUN"],
            ["--data a.csv and --data.source b.csv exclude each other"],
        ),
        (["train", "--workdir", "RUN", "--seeds", "0"], ["--seeds", "from 1 to 10,000", "got 0"]),
        (
            ["train", "--workdir", "RUN", "--seeds", "1", "--training.seeds", "3", "4"],
            ["--seeds 1 and --training.seeds 3 4 exclude each other"],
        ),
        (
            ["estimate", "--seeds", "1", "--training.seeds", "3", "4"],
            ["--seeds 1 and --training.seeds 3 4 exclude each other"],
        ),
        (
            ["train", "--workdir", "RUN", "--seeds", "99999999"],
            ["--seeds", "from 1 to 10,000", "got 99,999,999"],
        ),
        (["estimate", "--seeds", "99999999"], ["--seeds", "from 1 to 10,000"]),
        (["train", "--preset", "smoke", "--workdir", "RUN", "--attention.heads", "3"], ["heads must divide"]),
        (
            ["train", "--preset", "smoke", "--workdir", "RUN", "--objective", "bpr-pvn"],
            ["--objective compares distances", "expected --encoder stosa"],
        ),
        (
            [
                "train",
                "--preset",
                "smoke",
                "--workdir",
                "RUN",
                "--attention",
                "miq",
                "--attention.query-window",
                "21",
            ],
            ["query-window must be at most the maximum length", "a window of 21", "at most 20"],
        ),
        (
            ["train", "--preset", "smoke", "--workdir", "RUN", "--encoder.positions", "relativ"],
            ["unknown position scheme 'relativ'"],
        ),
        (["train", "--encoder", "stossa"], ["unknown encoder 'stossa'", "Did you mean 'stosa'"]),
        (["train", "--preset", "smoke", "--workdir", "/dev/null/run"], ["/dev/null"]),
        (["evaluate", "/nonexistent"], ["config.json not found"]),
        (["audit", "/nonexistent.csv"], ["no file"]),
        (["compare", "/nonexistent/a", "/nonexistent/b"], ["/nonexistent"]),
        (["protocols", "/nonexistent"], ["config.json not found"]),
        (["stability", "/nonexistent"], ["config.json not found"]),
        (["evaluate", "RUN", "--check-metric", "HR@5"], ["--check-metric HR@5", "--breakdown", "got none"]),
        (["evaluate", "RUN", "--out", "RUN"], ["--out", "--steps: expected one of them, got none"]),
        (
            ["recommend", "RUN", "--history", "i", "--users-per-part", "9"],
            ["--users-per-part", "--all-users"],
        ),
        (
            ["export", "RUN", "--out", "RUN", "--vectors", "--platforms", "cpu"],
            ["--platforms cpu", "--vectors"],
        ),
        (
            ["export", "RUN", "--out", "RUN", "--onnx", "--platforms", "cpu"],
            ["--platforms cpu", "got --onnx"],
        ),
        (["attention", "--history", "i1"], ["--history and --out belong to the figures of a run"]),
    ],
)
def test_bad_requests_are_refused_in_words(arguments, words, tmp_path):
    run = tmp_path / "run"
    refused(jaxrec(*[str(run) if a == "RUN" else a for a in arguments]), *words)
    assert not run.exists() or not list(run.iterdir())


def test_times_that_the_data_lacks_are_refused_before_training(tmp_path):
    interactions().drop("timestamp").write_csv(tmp_path / "log.csv")
    start = ["train", "--data", tmp_path / "log.csv", "--workdir", tmp_path / "run", *SMALL]
    refused(
        jaxrec(*start, "--encoder.positions", "time-interval"),
        "--encoder.positions time-interval",
        "got one without",
    )
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_kernel_with_additive_positions_warns(files, tmp_path):
    start = [
        "train",
        "--data",
        files / "log.csv",
        "--workdir",
        tmp_path / "run",
        *SMALL,
        "--training.epochs",
        "1",
    ]
    with pytest.warns(UserWarning, match="combined with additive 'learned' positions"):
        jaxrec(*start, "--attention", "kernel", "--encoder.positions", "learned")


def test_refused_overwrite_loses_nothing(small, tmp_path):
    """Bad input beside --overwrite: the run that is there must survive."""
    run, _ = small
    before = sorted(run.rglob("*"))
    refused(
        jaxrec("train", "--data", tmp_path / "absent.csv", "--workdir", run, "--overwrite", *SMALL), "no file"
    )
    assert sorted(run.rglob("*")) == before


class _Full:
    """Standard error on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_an_error_that_cannot_be_printed_is_still_a_status(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", _Full())
    assert main(["evaluate", str(tmp_path / "absent")]) == 1
    assert main(["no-such-command"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["audit", "--filtr", "k-core", "log.csv"], "--filtr (did you mean --data.filter?)"),
        (
            ["audit", "--filter", "k-core", "--split.strategi=temporal", "a.csv"],
            "--split.strategi (did you mean --split.strategy?)",
        ),
        (["recommend", "--histroy", "i1", "run"], "--histroy (did you mean --history?)"),
        (["similar", "--quite-another", "run", "i1"], "--quite-another"),
    ],
)
def test_an_unknown_option_before_the_commands_argument_is_named(arguments, told, capsys):
    """The argument was called missing, since the option before it had taken it."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    expected = f"jaxrec: unknown option {told}: `jaxrec {arguments[0]} --help` lists the options\n"
    assert capsys.readouterr().err == expected


def test_an_argument_that_is_missing_is_called_so(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "--filter", "k-core"])
    assert "Missing from jaxrec audit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "transpose"])
def test_an_occupied_directory_is_refused_before_the_log_is_read(tmp_path, command):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    refused(jaxrec(command, tmp_path / "log.csv", "--out", tmp_path / "out"), "is not empty", "nothing was")
