"""Start of the HTTP server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from jaxrec.errors import ConfigError
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.service import ServerConfig, Service


def listen(config: ServerConfig) -> socket.socket:
    """Bind the port.

    Raises:
      ConfigError: it is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((config.host, config.port))
        server.listen(128)
    except OSError as error:
        server.close()
        raise ConfigError(
            f"--port {config.port} on --host {config.host} cannot be used: {error.strerror or error}; stop the program that "
            "listens there, or give another --port"
        ) from None
    return server


def allow_files(count: int) -> None:
    """Let the process have ``count`` open files, or as many as the system lets it; systems begin with few."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        count = min(count, most)
    if now != resource.RLIM_INFINITY and now < count:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))


def serve(recommender: Recommender, config: ServerConfig, ready: Callable[[str], object] = print) -> None:
    """Answer requests until a signal ends the process.

    Args:
      recommender: of a finished run.
      config: address and limits.
      ready: called with the address once the server listens.

    Raises:
      ConfigError: the extra ``serve`` is not installed, or the port cannot be used.
    """
    try:
        from jaxrec.serving.http_app import create_app
        from jaxrec.serving.http_protocol import build_server
    except ImportError as error:
        raise ConfigError(f"jaxrec serve needs its extra ({error}): pip install 'jaxrec[serve]'") from None
    server_socket = listen(config)
    # Of a client and, for its user state, of Redis.
    allow_files(2 * config.max_connections + 256)
    try:
        service = Service(recommender, config)
        app = create_app(service)
        server = build_server(app, config.timeout, config.max_connections)
        service.warm_up()
        address = f"[{config.host}]" if ":" in config.host else config.host
        ready(f"http://{address}:{server_socket.getsockname()[1]}")
        server.run(sockets=[server_socket])
    finally:
        server_socket.close()
