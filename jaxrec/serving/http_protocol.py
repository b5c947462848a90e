"""The uvicorn server with limits on the time that a client may take to send a request and to read the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Bytes of the request line and headers at most.
MOST_HEADER_BYTES = 16 * 1024
#: Seconds between the beginning of an answer and giving it up, for each second of the timeout of its request.
ANSWER_SHARE = 2


def build_server(app: Any, timeout: float, connections: int) -> uvicorn.Server:
    """Build the server of an ASGI application.

    Args:
      app: the application.
      timeout: seconds that a client may take to send the headers of a request, and again to read the answer.
      connections: open connections at most; further ones get status 503.
    """

    class TimedProtocol(H11Protocol):
        """Closes connections that take too long to send a request or to read an answer: slow ones would use them up."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._watch: asyncio.TimerHandle | None = self.loop.call_later(timeout, self._check)

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def connection_lost(self, error: Exception | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
            super().connection_lost(error)

        def _check(self) -> None:
            at_work = self.cycle is not None and not self.cycle.response_complete
            # To send the headers; then for the answer, and to read it.
            allowed = timeout * (1 + ANSWER_SHARE + 1) if at_work else timeout
            left = allowed - (self.loop.time() - self._idle_since)
            if left > 0:
                self._watch = self.loop.call_later(min(left, timeout), self._check)
            elif at_work or self.transport.get_write_buffer_size():
                self.transport.abort()  # to close would wait for the client to read
            else:
                self.transport.close()

    options = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        limit_concurrency=connections,
        timeout_keep_alive=max(1, int(timeout / 2)),
        timeout_graceful_shutdown=max(1, int(timeout)),
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        server_header=False,
    )
    return uvicorn.Server(options)
