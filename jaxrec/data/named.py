"""Registry of public datasets: their archives, licences, citations and the filters of papers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.errors import ConfigError, DataError
from jaxrec.registry import Registry

#: Name -> loader, a function of a `jaxrec.data.DataConfig` that gives a `RawDataset`, or anything else that
#: `jaxrec.data.load_dataset` takes. Loaders of your own: ``@DATASETS.register("mine")``.
DATASETS: Registry[Callable[[Any], Any]] = Registry("dataset")


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """Interactions and items as an archive has them.

    Attributes:
      interactions: a table with the columns user, item and, where known, timestamp and rating, in file order.
      source: name, size and checksum of the files, for ``meta["source"]``.
      items: a table with the columns item, title and others, or None.
      attributes: {item id: [attribute, ...]}, or None.
      options: fields of `jaxrec.data.DataConfig` that apply unless the caller chose otherwise.
      meta: further entries of the dataset's ``meta``.
    """

    interactions: Any
    source: Mapping[str, Any]
    items: Any = None
    attributes: Mapping[str, Sequence[str]] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    """A public dataset: its provenance, and the function that reads its archives.

    Attributes:
      name: public name, by which it is registered.
      read: function of the archives' paths that gives a `RawDataset`.
      title: name in full.
      url: official source of the archive, or the page that leads to it.
      licence: terms of use, in short.
      citation: the paper to cite.
      files: usual names of the archives; those after the first ``required`` are optional.
      rules: name -> options of `jaxrec.data.DataConfig`; the first is the default.
      size: users, items and interactions of the source, before any rule.
      required: number of files without which nothing can be read.
      sha256: known digests of the first archive; none are compared where this and ``md5`` are empty.
      md5: the same in MD5.
      downloads: direct links to ``files``; empty where there is none or the licence forbids one.
    """

    name: str
    read: Callable[..., RawDataset]
    title: str
    url: str
    licence: str
    citation: str
    files: tuple[str, ...]
    rules: Mapping[str, Mapping[str, Any]]
    size: str = ""
    required: int = 1
    sha256: tuple[str, ...] = ()
    md5: tuple[str, ...] = ()
    downloads: tuple[str, ...] = ()

    def __call__(self, config: Any) -> RawDataset:
        """Read the archives under the rule that ``config`` names.

        Raises:
          ConfigError: no such rule.
          DataError: an archive is absent, damaged or of another edition.
        """
        rule = config.rule or next(iter(self.rules))
        if rule not in self.rules:
            raise ConfigError(
                f"--data.rule of {self.name} must be one of {', '.join(self.rules)}; got {config.rule!r}"
            )
        paths = [Path(path) for path in config.archive] or self.on_disk()
        if len(paths) < self.required:
            automatic = (
                f"; jaxrec prepare {self.name} --download --out DIRECTORY does both" if self.downloads else ""
            )
            raise DataError(
                f"{self.name} needs {', '.join(self.files[: self.required])}: "
                f"download it from {self.url} and give --data.archive FILE, or put it in {data_home()}{automatic}"
            )
        if len(paths) > len(self.files):
            raise ConfigError(
                f"--data.archive of {self.name} takes at most {len(self.files)} files ({', '.join(self.files)}); "
                f"got {len(paths)}"
            )
        source = describe_archive(paths[0], sha256=self.sha256, md5=self.md5, verify=not config.other_edition)
        others = [describe_archive(path) for path in paths[1:]]
        raw = self.read(*paths)
        return dataclasses.replace(
            raw,
            source={**source, "url": self.url, **raw.source, **({"more": others} if others else {})},
            options={**raw.options, **self.rules[rule]},
            meta={"name": self.name, "rule": rule, "license": self.licence, **raw.meta},
        )

    def on_disk(self) -> list[Path]:
        """Return the archives that lie in the data directory, as far as they are there in the order of ``files``."""
        present = []
        for file in self.files:
            if not (data_home() / file).is_file():
                break
            present.append(data_home() / file)
        return present


def public_dataset(
    name: str, **about: Any
) -> Callable[[Callable[..., RawDataset]], Callable[..., RawDataset]]:
    """Decorate a function that reads archives, to register it as a `PublicDataset`.

    Args:
      name: public name.
      **about: the other fields of `PublicDataset`.
    """

    def register(read: Callable[..., RawDataset]) -> Callable[..., RawDataset]:
        DATASETS.register(name)(PublicDataset(name=name, read=read, **about))
        return read

    return register


def data_home() -> Path:
    """Return the directory of downloaded archives: ``$JAXREC_DATA``, or ``~/.cache/jaxrec/datasets``."""
    return Path(os.environ.get("JAXREC_DATA") or "~/.cache/jaxrec/datasets").expanduser()


def describe_archive(
    path: Path, *, sha256: Sequence[str] = (), md5: Sequence[str] = (), verify: bool = True
) -> dict[str, Any]:
    """Return name, size and SHA-256 of an archive, after comparing its checksum.

    Args:
      path: of the archive.
      sha256: known digests; the file must have one of these or of ``md5``. Without any, nothing is compared.
      md5: the same in MD5.
      verify: False to accept another edition; the digest is recorded all the same.

    Raises:
      DataError: no such file, or a digest that is not known.
    """
    if not path.is_file():
        raise DataError(f"archive {str(path)!r} does not exist: download it from its official source")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if verify and (md5 or sha256) and digest not in sha256:
        with path.open("rb") as file:
            other = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if other not in md5:
            expected = ", ".join([*(f"sha256 {d}" for d in sha256), *(f"md5 {d}" for d in md5)])
            raise DataError(
                f"archive {path.name!r} has sha256 {digest} and md5 {other}, expected {expected}: it is damaged or "
                "another edition; download it again, or give --data.other-edition to read it as it is"
            )
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
