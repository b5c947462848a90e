"""Downloads of archives: resumed where they broke off, compared with their checksum, and complete or absent."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxrec.data.named import DATASETS, PublicDataset, data_home, describe_archive
from jaxrec.errors import DataError
from jaxrec.files import write_atomically

#: Seconds without an answer after which a server counts as gone.
TIMEOUT = 60.0
_BLOCK = 2**20
_PAGE = (b"<!doctype html", b"<html")


def fetch(name: str, *, accept_licence: bool = False, progress: bool = True) -> list[Path]:
    """Download the archives of a public dataset into the data directory; those that are there are not fetched again.

    Args:
      name: of the dataset.
      accept_licence: whether the caller accepts its licence; once accepted for a dataset, it stays so.
      progress: show a progress bar.

    Returns:
      The archives, in the order of the dataset's ``files``.

    Raises:
      DataError: the licence is not accepted, the dataset has no direct link, or a download failed.
    """
    part = DATASETS[name]
    if not isinstance(part, PublicDataset) or not part.downloads:
        page = (
            f": download it from {part.url} and give --archive FILE"
            if isinstance(part, PublicDataset)
            else ""
        )
        raise DataError(f"{name} has no direct link{page}")
    accepted = data_home() / f"{name}.licence-accepted"
    if not accepted.exists() and not accept_licence:
        raise DataError(
            f"the licence of {name} must be accepted before the first download: {part.licence} ({part.url}); cite "
            f"{part.citation}. Give --accept-licence to accept it"
        )
    if not accepted.exists():
        print(f"{name}: {part.licence} ({part.url}); cite {part.citation}", file=sys.stderr)
    data_home().mkdir(parents=True, exist_ok=True)
    write_atomically(accepted, f"{part.licence}\n{part.citation}\n")
    paths = []
    for number, (file, url) in enumerate(zip(part.files, part.downloads, strict=False)):
        digests = {"sha256": part.sha256, "md5": part.md5} if number == 0 else {}
        paths.append(download(url, data_home() / file, progress=progress, **digests))
    return paths


def download(
    url: str, target: Path, *, sha256: Sequence[str] = (), md5: Sequence[str] = (), progress: bool = True
) -> Path:
    """Download a file, unless it is there.

    The bytes go to ``<target>.part``, from which a later call continues, and the file appears whole or not at all.

    Args:
      url: http or https.
      target: file to write.
      sha256: known digests, as for `describe_archive`.
      md5: the same in MD5.
      progress: show a progress bar.

    Raises:
      DataError: the server fails, breaks off or sends something else, or the checksum is wrong; the message says what to do.
    """
    if target.exists():
        return target
    if not url.lower().startswith(("http://", "https://")):
        raise DataError(f"cannot download {url!r}: expected an http or https address")
    part = target.with_name(f"{target.name}.part")
    try:
        _receive(url, part, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(
            f"{url} answers {error.code} {error.reason}: try later, or download it by hand"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DataError(
            f"no connection to {url} ({reason}): run it again to continue, or download it by hand"
        ) from None
    if target.suffix.lower() not in (".html", ".htm") and _is_page(part):
        part.unlink()
        raise DataError(
            f"{url} gave a web page in place of {target.name}: download it by hand and give --archive FILE"
        )
    try:
        describe_archive(part, sha256=sha256, md5=md5)
    except DataError as error:
        part.unlink()
        raise DataError(f"the download of {url} is not the published file and was removed: {error}") from None
    part.replace(target)
    return target


def _receive(url: str, part: Path, progress: bool) -> None:
    """Append to ``part`` what is missing of the file."""
    present = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "jaxrec"})
    if present:
        request.add_header("Range", f"bytes={present}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not present:
            error.close()
            raise
        # Nothing follows what is there: the file was complete, or it is another one now.
        error.close()
        part.unlink()
        _receive(url, part, progress)
        return
    with answer:
        start = _start_of(answer, present)
        expected = answer.headers.get("Content-Length")
        total = None if expected is None or not expected.isdigit() else start + int(expected)
        with (
            part.open("ab") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress
            ) as bar,
        ):
            file.truncate(start)
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    received = part.stat().st_size
    if total is not None and received != total:
        raise DataError(
            f"{url} broke off after {received:,} of {total:,} bytes: run it again to continue from there"
        )


def _start_of(answer: Any, present: int) -> int:
    """First byte of an answer: that of the range that was asked for, or 0 from a server that sends it all."""
    if answer.status != 206:
        return 0
    content_range = answer.headers.get("Content-Range", "")
    first = content_range.removeprefix("bytes ").split("-")[0]
    if first != str(present):
        raise DataError(
            f"{answer.url} sent the range {content_range!r}, expected one from byte {present}: try again later"
        )
    return present


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(200).lstrip().lower().startswith(_PAGE)
