"""The command line in this process, for tests of whole runs."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple

from jaxrec.cli.main import main


class Outcome(NamedTuple):
    """Of a command: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output."""
        assert self.status == 0, self.err
        return json.loads(self.out.splitlines()[-1], parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def jaxrec(*arguments: object) -> Outcome:
    """``jaxrec ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())
