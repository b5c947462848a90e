"""`jaxrec serve`."""

import dataclasses
from typing import Annotated

import tyro

from jaxrec.cli.common import parse


def serve(arguments: list[str]) -> int:
    """Run ``jaxrec serve`` until a signal ends it; return the exit status."""
    from jaxrec.serving.service import ServerConfig

    @dataclasses.dataclass(frozen=True)
    class Serve:
        """Answer over HTTP: /recommend, /similar, /explain, /events, /items, /health, /metrics, and a page at /."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run directory")]
        server: Annotated[ServerConfig, tyro.conf.arg(name="")] = ServerConfig()
        seed: Annotated[int | None, tyro.conf.arg(help="which of the run's models; default: the first")] = (
            None
        )

    options = parse(Serve, arguments, "serve")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving import Recommender
    from jaxrec.serving.server import serve as run_server

    enable_compilation_cache()
    recommender = Recommender.load(options.run, options.seed)

    def ready(address: str) -> None:
        print(
            f"jaxrec: {recommender.items.n_items:,} items of {options.run} at {address}; stop with Ctrl-C",
            flush=True,
        )

    try:
        run_server(recommender, options.server, ready)
    except KeyboardInterrupt:
        print("jaxrec: the server has stopped", flush=True)
    return 0
