"""The routes of the server: JSON in, JSON out, bounded in size and time; and a page to try them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxrec.errors import JaxrecError
from jaxrec.serving.batching import Overloaded
from jaxrec.serving.http_protocol import ANSWER_SHARE, MOST_HEADER_BYTES
from jaxrec.serving.requests import parse_json
from jaxrec.serving.service import HttpError, ServerConfig, Service, short


class Routes:
    """Endpoints of a service.

    Args:
      service: what the paths answer.
    """

    def __init__(self, service: Service):
        self.service = service

    def post(self, path: str, function: Callable[[dict[str, Any]], Awaitable[Any]]) -> Route:
        """Make a route whose body is a JSON object."""

        async def endpoint(request: Request) -> Response:
            async def answer() -> Any:
                return await function(await read_json(request, self.service.config))

            return await self._guarded(path, answer)

        return Route(path, endpoint, methods=["POST"])

    async def health(self, request: Request) -> Response:
        """Answer that the server works."""
        return JSONResponse(self.service.health())

    async def metrics(self, request: Request) -> Response:
        """Answer with figures for Prometheus."""
        text = prometheus_client.generate_latest(self.service.registry)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def items(self, request: Request) -> Response:
        """Answer with the items that a text names."""

        async def answer() -> Any:
            return await asyncio.to_thread(self.service.find, request.query_params.get("q", "")[:200])

        return await self._guarded("/items", answer)

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        text = (resources.files("jaxrec.serving") / "page.html").read_text("utf-8")
        policy = "default-src 'self' 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
        return HTMLResponse(text, headers={"content-security-policy": policy})

    async def _guarded(self, path: str, answer: Callable[[], Awaitable[Any]]) -> Response:
        """The answer, or a message for whatever prevents it; counted either way."""
        config, begin = self.service.config, time.perf_counter()
        limit = ANSWER_SHARE * config.timeout
        try:
            async with asyncio.timeout(limit):
                response: Response = JSONResponse(await answer())
        except HttpError as error:
            response = failure(error.status, error.message)
        except JaxrecError as error:
            response = failure(400, str(error))
        except Overloaded:
            response = failure(
                503, f"{config.max_waiting} requests are waiting (--max-waiting): try again later"
            )
        except TimeoutError:
            response = failure(503, f"no answer within {limit:g} seconds: try again later")
        except ClientDisconnect:
            response = Response(status_code=400)
        self.service.requests.labels(path, str(response.status_code)).inc()
        self.service.seconds.labels(path).observe(time.perf_counter() - begin)
        return response


def failure(status: int, message: str) -> Response:
    """An error as a JSON object; the rest of a body that was refused is not read."""
    headers = {"connection": "close"} if status in (408, 413, 431) else None
    return JSONResponse({"error": message}, status, headers)


async def read_json(request: Request, config: ServerConfig) -> dict[str, Any]:
    """Read a body within the limits of size and time.

    Raises:
      HttpError: it is too large, too slow, or no JSON object.
    """
    too_large = HttpError(413, f"the body must have at most {config.max_body} bytes (--max-body)")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > config.max_body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(config.timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > config.max_body:
                    raise too_large
    except TimeoutError:
        raise HttpError(408, f"the body must arrive within {config.timeout:g} seconds (--timeout)") from None
    try:
        value = parse_json(bytes(body))
    except ValueError as error:
        raise HttpError(400, f"the body must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the body must be a JSON object, got {short(value)}")
    return value


class HeaderLimit:
    """Answers requests whose headers are too large: the protocol counts those alone that arrive in pieces.

    Args:
      app: what answers the others.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app = self.app
        if scope["type"] == "http":
            size = len(scope["raw_path"]) + len(scope["query_string"])
            size += sum(len(name) + len(value) for name, value in scope["headers"])
            if size > MOST_HEADER_BYTES:
                app = failure(
                    431, f"path and headers must have at most {MOST_HEADER_BYTES} bytes, got {size}"
                )
        await app(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    paths = "/recommend, /similar, /explain, /events, /items, /health, /metrics"
    methods = (error.headers or {}).get("Allow", "another method")
    messages = {
        404: f"no such path: expected one of {paths}",
        405: f"this path takes {methods}, got {request.method}",
    }
    return failure(error.status_code, messages.get(error.status_code, str(error.detail)))


async def _server_error(request: Request, error: Exception) -> Response:
    return failure(500, "the server failed on this request; its log says why")


def create_app(service: Service) -> Starlette:
    """Build the ASGI application of a service."""
    routes = Routes(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.stop()
        if service.state is not None:
            await service.state.close()

    app = Starlette(
        routes=[
            routes.post("/recommend", service.recommend),
            routes.post("/similar", service.similar),
            routes.post("/explain", service.explain),
            routes.post("/events", service.events),
            Route("/items", routes.items),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/", routes.page),
        ],
        middleware=[Middleware(HeaderLimit)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
    )
    app.router.redirect_slashes = False  # the redirection would name a host that the client chose
    return app
