"""Which column is the user, the item and the time: the usual names, or the ones that the caller gives."""

from __future__ import annotations

from collections.abc import Sequence

from jaxrec.errors import DataError

# Compared without case, '_', '-' and spaces: user_id, userId and User-ID are one name.
USUAL_NAMES = {
    "user": ("userid", "user", "uid", "visitorid", "customerid", "reviewerid", "sessionid", "session"),
    "item": (
        "itemid", "item", "iid", "movieid", "movie", "artistid", "trackid", "songid", "productid", "asin",
        "parentasin", "businessid", "bookid", "animeid", "gameid", "newsid", "articleid", "locationid",
        "poiid", "videoid",
    ),
    "time": (
        "timestamp", "time", "unixtime", "unixreviewtime", "datetime", "date", "ts", "eventtime", "createdat",
        "checkintime",
    ),
}  # fmt: skip


def _plain(name: str) -> str:
    return "".join(c for c in name.strip().lstrip("\ufeff").lower() if c not in "_- ")


def find_column(role: str, given: str | None, names: Sequence[str], *, required: bool = True) -> str | None:
    """The column for a role ("user", "item" or "time").

    Args:
      given: the caller's choice, or None to look for the usual names.
      names: columns of the table.
      required: whether None may be the answer.

    Raises:
      DataError: the given column is absent, or no or several usual names are present; the message lists the
        columns.
    """
    found = ", ".join(map(repr, names)) or "none"
    if given is not None:
        if given not in names:
            raise DataError(f"{role}_column {given!r} is not in the table: its columns are {found}")
        return given
    matches = [name for name in names if _plain(name) in USUAL_NAMES[role]]
    if len(matches) > 1:
        raise DataError(
            f"the {role} column is ambiguous: {', '.join(map(repr, matches))} all fit; "
            f"choose with {role}_column (columns found: {found})"
        )
    if not matches and required:
        raise DataError(
            f"no {role} column found: give {role}_column (columns found: {found}; "
            f"names looked for: {', '.join(USUAL_NAMES[role][:6])}, ...)"
        )
    return matches[0] if matches else None
