"""Answers from an exported artefact, with jax and numpy alone: a copy of this file lies in every artefact.

JAX reads exported programs with the package flatbuffers: ``pip install jax flatbuffers``.

    python artefact/runtime.py --history tt0111161 tt0468569 -k 10

or, with the artefact's directory on the path:

    from runtime import Artefact
    Artefact("artefact").recommend([["tt0111161", "tt0468569"]], k=10)
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

FORMAT, VERSION = "jaxrec.artefact", 1

#: Histories whose scores for all items are in memory together.
ROWS = 64


class ArtefactError(ValueError):
    """An artefact cannot be used, or a request is not of its form."""


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json`` and check format, version and every checksum.

    Raises:
      ArtefactError: the artefact is missing, of another version, incomplete or changed.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{folder} must be the directory of an artefact that jaxrec export wrote: {error}"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(f"{folder / 'manifest.json'} is not the manifest of an artefact of jaxrec")
    if manifest.get("version") != VERSION:
        raise ArtefactError(
            f"the artefact {folder} has version {manifest.get('version')}, and this runtime reads version {VERSION}: use "
            "the runtime.py of the artefact, or export the run again"
        )
    if digest_of(manifest) != manifest.get("digest"):
        raise ArtefactError(f"{folder / 'manifest.json'} was changed since the export: export the run again")
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise ArtefactError(f"the artefact {folder} lacks {name}: copy it again, or export the run again")
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                raise ArtefactError(
                    f"{file} was changed since the export (its checksum is another): copy it again, or export the run again"
                )
    return manifest


class Artefact:
    """An exported model with its catalogue.

    Args:
      folder: directory that ``jaxrec export`` wrote.

    Raises:
      ArtefactError: it is missing, of another version, incomplete, changed, or not for this platform.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.model = self.manifest["model"]
        platform = jax.default_backend()
        names = {"gpu": "cuda"}
        if names.get(platform, platform) not in self.manifest["platforms"]:
            raise ArtefactError(
                f"the artefact was exported for {', '.join(self.manifest['platforms'])}, and JAX runs on {platform}: "
                "export the run again with --platforms, or set JAX_PLATFORMS"
            )
        try:
            import flatbuffers  # noqa: F401 - JAX reads programs with it
        except ImportError:
            raise ArtefactError(
                "JAX reads exported programs with flatbuffers: pip install flatbuffers"
            ) from None
        try:
            self._encode = jax.export.deserialize(bytearray((folder / "encode.bin").read_bytes()))
            table = jax.export.deserialize(bytearray((folder / "table.bin").read_bytes()))
        except Exception as error:
            raise ArtefactError(
                f"JAX {jax.__version__} cannot read a program of JAX {self.manifest['jax']}: {error}"
            ) from None

        def array(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", allow_pickle=False)

        self._weights = [jnp.asarray(array(f"weights-{i:03d}")) for i in range(self.model["weights"])]
        self._vectors, self._bias = table.call(self._weights)
        self.item_ids = _strings(array("item_ids_bytes"), array("item_ids_offsets"))
        self.titles = None
        if self.model["titles"]:
            self.titles = _strings(array("item_titles_bytes"), array("item_titles_offsets"))
        self._numbers = {name: number for number, name in enumerate(self.item_ids, start=1)}
        self._counts = array("item_counts") if self.model["counts"] else None
        self._keys = tie_keys(np.arange(len(self.item_ids) + 1), self.model["tie_seed"])
        self._score = jax.jit(_scores)

    @property
    def n_items(self) -> int:
        """V."""
        return len(self.item_ids)

    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        remove_seen: bool | None = None,
        timestamps: Sequence[Sequence[int]] | None = None,
        exclude: Iterable[Any] = (),
        allow: Iterable[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Recommend the best next items for each history, as `jaxrec.Recommender.recommend` does.

        Args:
          histories: original item ids, oldest first. Unknown ids are ignored and named in the answer; without any known
            id the answer is the most popular items.
          k: length of the lists.
          remove_seen: leave out the items of the history; None = as the run was evaluated.
          timestamps: seconds since 1970 of each interaction, where the model reads them.
          exclude: ids that are no candidates.
          allow: ids of the only candidates; None = all.

        Returns:
          Dictionaries with items, titles, scores, unknown and popular.

        Raises:
          ArtefactError: an argument is not of this form, or a filter has an unknown id.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.n_items:
            raise ArtefactError(
                f"k must be an integer from 1 to the catalogue's {self.n_items} items, got {k!r}"
            )
        if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
            raise ArtefactError("histories must be a list of lists of item ids, one list per user")
        if self.model["needs_times"] and timestamps is None and any(map(len, histories)):
            raise ArtefactError("this model needs the time of each interaction: give timestamps=")
        if timestamps is not None and list(map(len, timestamps)) != list(map(len, histories)):
            raise ArtefactError("timestamps must have one entry for each interaction of each history")
        for each in timestamps or ():
            _check_times(each)
        remove_seen = self.model["remove_seen"] if remove_seen is None else remove_seen
        removed = np.zeros(self.n_items + 1, bool)
        removed[0] = True
        if allow is not None:
            removed[:] = True
            removed[self._items("allow", allow)] = False
        removed[self._items("exclude", exclude)] = True
        answers: list[dict[str, Any]] = []
        for start in range(0, len(histories), ROWS):
            part = slice(start, start + ROWS)
            times = None if timestamps is None else timestamps[part]
            answers += self._recommend(histories[part], times, k, remove_seen, removed)
        return answers

    def _recommend(
        self, histories: Any, times: Any, k: int, remove_seen: bool, removed: np.ndarray
    ) -> list[dict[str, Any]]:
        length, longest = self.model["max_length"], self.model["longest_history"]
        names = [[self._text(item) for item in history] for history in histories]
        numbers = [np.array([self._numbers.get(name, 0) for name in each], np.int32) for each in names]
        known = [each[each > 0] for each in numbers]
        rows = 1
        while rows < len(known):
            rows *= 8
        items, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
        seconds = np.zeros((rows, length), np.int32)
        for row, each in enumerate(known):
            last = each[-longest:]
            items[row, : len(last)], lengths[row] = last, len(last)
            if self.model["needs_times"] and len(last):
                present = np.asarray(times[row], np.int64)[numbers[row] > 0]
                since = np.minimum(present - present.min(), np.iinfo(np.int32).max)[-longest:]
                seconds[row, : len(last)] = since
        states = self._encode.call(self._weights, items, lengths, seconds)
        scores = np.array(self._score(states, lengths, self._vectors, self._bias))
        return [
            self._answer(
                scores[row], known[row], names[row], k, _with(removed, known[row] if remove_seen else [])
            )
            for row in range(len(known))
        ]

    def _answer(
        self, scores: np.ndarray, known: np.ndarray, names: list[str], k: int, removed: np.ndarray
    ) -> dict[str, Any]:
        popular = not len(known) and self._counts is not None
        if popular:
            assert self._counts is not None
            scores = self._counts.astype(np.float64)
        scores = np.where(removed, -np.inf, scores[: self.n_items + 1])
        least = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero((scores >= least) & (scores > -np.inf))
        best = candidates[np.lexsort((self._keys[candidates], -scores[candidates]))][:k]
        return {
            "items": [self.item_ids[item - 1] for item in best],
            "titles": None if self.titles is None else [self.titles[item - 1] for item in best],
            "scores": [float(score) for score in scores[best]],
            "unknown": [name for name in names if name not in self._numbers],
            "popular": popular,
        }

    def _text(self, item: Any) -> str:
        """An id as text; a whole number that comes as a float is that integer, if the artefact does not know it as it is."""
        whole = isinstance(item, (float, np.floating)) and float(item).is_integer()
        return str(int(item)) if whole and str(item) not in self._numbers else str(item)

    def _items(self, name: str, ids: Any) -> list[int]:
        if isinstance(ids, str):
            raise ArtefactError(f"{name} must be a list of item ids, got {ids!r}")
        texts = [self._text(item) for item in ids]
        unknown = [text for text in texts if text not in self._numbers]
        if unknown:
            raise ArtefactError(
                f"{name} must hold ids of the catalogue, got {', '.join(map(repr, unknown[:5]))}"
            )
        return [self._numbers[text] for text in texts]


def _check_times(timestamps: Any) -> None:
    message = "timestamps must be whole seconds since 1970, oldest first"
    try:
        kind, seconds = np.asarray(timestamps).dtype.kind, np.asarray(timestamps, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{message}; {error}") from None
    if seconds.ndim != 1:
        raise ArtefactError(f"{message}; got lists as entries of one history")
    if kind in "mM":  # in days or nanoseconds, as their type has it
        raise ArtefactError(f"{message}; got dates: convert them to seconds")
    if not ((np.abs(seconds) < 2.0**62).all() and (np.diff(seconds) >= 0).all()):  # NaN is not below
        raise ArtefactError(f"{message}; got {seconds[:5].tolist()}")


def _with(removed: np.ndarray, items: Any) -> np.ndarray:
    if not len(items):
        return removed
    own = removed.copy()
    own[items] = True
    return own


def _scores(states: jax.Array, lengths: jax.Array, vectors: jax.Array, bias: jax.Array) -> jax.Array:
    """float32[b, V+1]; an empty history has the zero state."""
    states = jnp.where(lengths[:, None] > 0, states, jnp.float32(0))
    product = jnp.matmul(states, vectors.T, precision=jax.lax.Precision.HIGHEST)
    return product + bias[None, :]


def tie_keys(items: np.ndarray, seed: int) -> np.ndarray:
    """uint32, the order of items with equal scores, as in `jaxrec.evaluation.tie_order`."""
    keys = items.astype(np.uint32) ^ np.uint32(seed)
    for shift, factor in ((16, 0x7A4B2D35), (13, 0x9C8E6F4B), (15, 0x3F5D1E27)):
        keys = (keys ^ (keys >> np.uint32(shift))) * np.uint32(factor)
    return keys ^ (keys >> np.uint32(16))


def _strings(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    blob, bounds = data.tobytes(), offsets.tolist()
    return [blob[start:stop].decode() for start, stop in itertools.pairwise(bounds)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one history on the command line, as a JSON object; return the exit status."""
    parser = argparse.ArgumentParser(description="Recommend the next items for a history, from an artefact.")
    parser.add_argument(
        "--artefact", default=str(Path(__file__).parent), help="default: this file's directory"
    )
    parser.add_argument("--history", nargs="*", required=True, help="original item ids, oldest first")
    parser.add_argument("--timestamps", nargs="*", type=int, help="seconds since 1970 of each")
    parser.add_argument("-k", type=int, default=10, help="how many items")
    options = parser.parse_args(arguments)
    try:
        times = None if options.timestamps is None else [options.timestamps]
        answer = Artefact(options.artefact).recommend([options.history], options.k, timestamps=times)[0]
    except ArtefactError as error:
        print(f"runtime: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
