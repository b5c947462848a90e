"""`jaxrec recommend`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from jaxrec.cli.common import emit, parse, read_ids


@dataclasses.dataclass(frozen=True)
class Recommend:
    """The next items for one history, from a saved run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="run directory")]
    history: Annotated[tuple[str, ...], tyro.conf.arg(help="original item ids, oldest first")]
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many items")] = 10
    seed: Annotated[int | None, tyro.conf.arg(help="which of the run's models; default: the first")] = None
    keep_seen: Annotated[bool, tyro.conf.arg(help="allow items of the history in the answer")] = False
    exclude: Annotated[str, tyro.conf.arg(help="file of item ids that are no candidates, one per line")] = ""
    allow: Annotated[str, tyro.conf.arg(help="file of the only candidates, one item id per line")] = ""
    json: Annotated[bool, tyro.conf.arg(help="print the answer as one JSON object")] = False


def recommend(arguments: list[str]) -> int:
    """Run ``jaxrec recommend``; return the exit status."""
    options = parse(Recommend, arguments, "recommend")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving import Recommender

    enable_compilation_cache()
    recommender = Recommender.load(options.run, options.seed)
    remove_seen = False if options.keep_seen else None
    answer = recommender.recommend(
        [list(options.history)],
        options.k,
        remove_seen=remove_seen,
        exclude=read_ids(options.exclude) if options.exclude else (),
        allow=read_ids(options.allow) if options.allow else None,
    )[0]
    titles = answer.titles or [""] * len(answer.items)
    lines = [
        f"{place:>3}  {item:<12} {title}  ({score:.3f})"
        for place, (item, title, score) in enumerate(
            zip(answer.items, titles, answer.scores, strict=True), start=1
        )
    ]
    if answer.unknown:
        print(f"jaxrec: ignored unknown items: {', '.join(answer.unknown)}", file=sys.stderr)
    if answer.popular:
        print(
            "jaxrec: no item of the history is known; these are the most popular items, with their numbers of training "
            "interactions",
            file=sys.stderr,
        )
    emit(dataclasses.asdict(answer), "\n".join(lines), options.json)
    return 0
