"""``--serve``: the web page, its pictures, events, metrics and controls. Starlette on uvicorn, in threads of its own.

Who may do what: on loopback, whoever is on this machine, if the request names this machine (a name that was bound anew
to 127.0.0.1 does not) and does not come from another site's page. On any other address, only with the token. The page
itself holds nothing secret and loads nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.errors import MaskletError, UsageError
from pipeline.live.board import Board
from pipeline.live.metrics import exposition
from pipeline.live.service import LiveService
from pipeline.live.urls import is_allowed
from pipeline.render.palette import colour, hex_colour

LOGGER = logging.getLogger("masklet.live")
_OPEN_PATHS = ("/", "/healthz", "/readyz")
"""Need no token: the page without data, and two words for a load balancer."""
_EVENT_EVERY_S = 0.1
_MAX_BODY_BYTES = 16_384
_MAX_PHRASES, _MAX_PHRASE_CHARACTERS = 32, 200
_STALE_AFTER_S = 30.0
_WORKING = ("live", "ended", "paused")
_PAST_EVENTS = 50
"""What a new viewer is told of the past."""
_NUM_COLOURS = 24
"""Then the palette begins again."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the page is."""

    host: str
    port: int
    token: str | None

    @property
    def url(self) -> str:
        """For a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


@contextmanager
def serve(service: LiveService, board: Board, where: str, token: str | None) -> Iterator[Address]:
    """Serve the page while the ``with`` block runs.

    Raises:
        UsageError: a bad address, one that is taken, or one that is not loopback and no token.
    """
    host, port = parse_address(where)
    if token is None and not is_loopback(host):
        raise UsageError(f"{host} can be reached from other machines", "--serve", "add --token, or serve on 127.0.0.1")
    bound = _bind(host, port)
    address = Address(host, bound.getsockname()[1], token)
    config = uvicorn.Config(
        build_app(service, board, address),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=256,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="page", daemon=True)
    thread.start()
    LOGGER.info("page: %s%s", address.url, "#token=..." if token else "")
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(5.0)
        bound.close()


def parse_address(where: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[::1]:PORT`` or ``:PORT`` (loopback)."""
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"bad address {where!r}", "--serve", "write HOST:PORT, such as 127.0.0.1:8765")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether every address of this host is this machine's own."""
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UsageError(f"unknown host {host!r}", "--serve", "use 127.0.0.1") from error
    return all(ipaddress.ip_address(a).is_loopback for a in found)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}", "--serve", error.strerror or str(error)) from error


def build_app(service: LiveService, board: Board, address: Address) -> Starlette:
    """The application; also what tests talk to."""
    page = Page(service, board)
    app = Starlette(
        routes=[
            Route("/", page.index),
            Route("/streams", page.streams, methods=["GET"]),
            Route("/streams", page.add, methods=["POST"]),
            Route("/streams/{id}", page.stream, methods=["GET"]),
            Route("/streams/{id}", page.change, methods=["PATCH"]),
            Route("/streams/{id}", page.remove, methods=["DELETE"]),
            Route("/streams/{id}/snapshot.jpg", page.snapshot),
            Route("/events", page.events),
            Route("/metrics", page.metrics),
            Route("/healthz", page.health),
            Route("/readyz", page.ready),
        ],
        exception_handlers={MaskletError: _explain},
    )
    app.add_middleware(Guard, address=address)
    return app


async def _explain(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


class Guard(BaseHTTPMiddleware):
    """Lets a request through if it comes from where it may."""

    def __init__(self, app: Any, address: Address) -> None:
        super().__init__(app)
        self._address = address

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse, or answer with headers that keep the page shut to other sites."""
        refusal = self._refusal(request)
        response = refusal if refusal is not None else await call_next(request)
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        headers.setdefault("Cache-Control", "no-store")
        return response

    def _refusal(self, request: Request) -> Response | None:
        if self._address.token is None and not _names_this_machine(request.headers.get("host", "")):
            return PlainTextResponse("unknown host\n", 421)
        if _is_cross_site(request):
            return PlainTextResponse("cross-site requests are refused\n", 403)
        request.state.is_trusted = self._has_token(request)
        if not request.state.is_trusted and request.url.path not in _OPEN_PATHS:
            return PlainTextResponse("a token is needed\n", 401, {"WWW-Authenticate": "Bearer"})
        if request.method in ("POST", "PATCH", "DELETE", "PUT"):
            return _bad_write(request)
        return None

    def _has_token(self, request: Request) -> bool:
        """Whether no token is needed, or the right one came."""
        if self._address.token is None:
            return True
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self._address.token.encode())


def _names_this_machine(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_cross_site(request: Request) -> bool:
    """Whether another site's page asks (Fetch metadata where the browser sends it, ``Origin`` otherwise)."""
    site = request.headers.get("sec-fetch-site")
    if site in ("cross-site", "same-site"):
        # A link from elsewhere may open the page, nothing more.
        opens_page = request.headers.get("sec-fetch-mode") == "navigate" and request.url.path == "/"
        return not (request.method == "GET" and opens_page)
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")


def _bad_write(request: Request) -> Response | None:
    """Changes come as JSON (which another site's form cannot send) of reasonable size."""
    if request.method != "DELETE" and request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return PlainTextResponse("send application/json\n", 415)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _MAX_BODY_BYTES or "transfer-encoding" in request.headers:
        return PlainTextResponse("too much\n", 413)
    return None


class Page:
    """The answers. What changes something is done by the tracking loop, between two frames."""

    def __init__(self, service: LiveService, board: Board) -> None:
        self._service, self._board = service, board
        html = resources.files("pipeline.live").joinpath("live.html").read_text(encoding="utf-8")
        self._html = html.replace("%PALETTE%", json.dumps([hex_colour(colour(i)) for i in range(1, _NUM_COLOURS + 1)]))
        self._viewers = 0

    async def index(self, _: Request) -> Response:
        """The page; its script and style carry a nonce, nothing else may run or load."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(self._html.replace("%NONCE%", nonce), headers={"Content-Security-Policy": policy})

    async def streams(self, _: Request) -> Response:
        """Every camera, and the sinks."""
        return JSONResponse({"streams": self._board.status, "sinks": self._board.sinks, "can_add": self._can_add})

    @property
    def _can_add(self) -> bool:
        return bool(self._service.config.live.allow_urls)

    async def stream(self, request: Request) -> Response:
        """One camera, with its timeline."""
        stream_id = request.path_params["id"]
        found = next((s for s in self._board.status if s["id"] == stream_id), None)
        if found is None:
            return _unknown(stream_id)
        return JSONResponse({**found, "timeline": self._board.timeline(stream_id), "now_wall_s": time.time()})

    async def add(self, request: Request) -> Response:
        """``{"url", "phrases"}``: one more camera, if the allow-list has it."""
        body = await _json(request)
        url = body.get("url")
        if not isinstance(url, str) or not is_allowed(url, self._service.config.live.allow_urls):
            raise UsageError("this address is not on the list of allowed ones", "live.allow_urls")
        phrases = _phrases(body) or list(self._service.config.prompts)
        spec = await run_in_threadpool(self._service.request_camera, url, phrases)
        return JSONResponse({"id": spec.stream_id}, 201)

    async def change(self, request: Request) -> Response:
        """``{"paused": bool}`` and/or ``{"phrases": [...]}``."""
        stream_id = request.path_params["id"]
        if stream_id not in self._service.stream_ids():
            return _unknown(stream_id)
        body = await _json(request)
        phrases = _phrases(body)
        if phrases is not None:
            await run_in_threadpool(self._service.request_phrases, stream_id, phrases)
        if isinstance(body.get("paused"), bool):
            await run_in_threadpool(self._service.request_pause, stream_id, body["paused"])
        return JSONResponse({"id": stream_id})

    async def remove(self, request: Request) -> Response:
        """Let a camera go."""
        stream_id = request.path_params["id"]
        if stream_id not in self._service.stream_ids():
            return _unknown(stream_id)
        await run_in_threadpool(self._service.request_removal, stream_id)
        return JSONResponse({"id": stream_id})

    async def snapshot(self, request: Request) -> Response:
        """The latest picture with masks, ids and phrases."""
        stream_id = request.path_params["id"]
        if stream_id not in self._service.stream_ids():
            return _unknown(stream_id)
        data = await run_in_threadpool(self._board.snapshot, stream_id)
        return Response(data, media_type="image/jpeg") if data is not None else Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Server-sent events: ``event`` for each event, ``status`` a few times a second."""
        if self._viewers >= self._service.config.live.max_viewers:
            return PlainTextResponse("too many viewers\n", 503)
        last = request.headers.get("last-event-id", "")
        start = int(last) if last.isdecimal() else self._board.num_events - _PAST_EVENTS
        return StreamingResponse(self._feed(request, start), media_type="text/event-stream")

    async def _feed(self, request: Request, number: int) -> AsyncIterator[str]:
        self._viewers += 1
        try:
            while not await request.is_disconnected():
                for last, event in self._board.events_after(number):
                    number = last
                    yield f"id: {last}\nevent: event\ndata: {json.dumps(event.to_dict())}\n\n"
                status: dict[str, Any] = {
                    "streams": self._board.status,
                    "sinks": self._board.sinks,
                    "can_add": self._can_add,
                    "now_wall_s": time.time(),
                }
                yield f"event: status\ndata: {json.dumps(status)}\n\n"
                await asyncio.sleep(_EVENT_EVERY_S)
        finally:
            self._viewers -= 1

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(exposition(self._service), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(self, _: Request) -> Response:
        """Whether the tracking loop turns."""
        alive = time.monotonic() - self._service.last_turn_s < _STALE_AFTER_S
        return PlainTextResponse("ok\n" if alive else "the tracking loop stands still\n", 200 if alive else 503)

    async def ready(self, request: Request) -> Response:
        """Whether at least one camera works, or none is asked for; to who may know, the body says which do not."""
        status = self._board.status
        waiting = [s for s in status if s["state"] not in _WORKING]
        ready = self._board.is_ready and (len(waiting) < len(status) or not status)
        lines = [
            "ready" if ready else "not ready",
            *(f"{s['id']}: {s['state']}" for s in waiting if request.state.is_trusted),
        ]
        return PlainTextResponse("\n".join(lines) + "\n", 200 if ready else 503)


def _unknown(stream_id: str) -> Response:
    return JSONResponse({"error": f"no such stream: {stream_id}"}, 404)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict):
        raise UsageError("the request is not a JSON object")
    return body


def _phrases(body: dict[str, Any]) -> list[str] | None:
    """The request's phrases, cleaned; ``None`` if it has none.

    Raises:
        UsageError: not a list of short texts.
    """
    phrases = body.get("phrases")
    if phrases is None:
        return None
    if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
        raise UsageError("phrases must be a list of texts")
    cleaned = list(dict.fromkeys(" ".join(p.split()) for p in phrases))
    if not cleaned or not all(cleaned):
        raise UsageError("an empty phrase finds nothing")
    if len(cleaned) > _MAX_PHRASES or max(map(len, cleaned)) > _MAX_PHRASE_CHARACTERS:
        raise UsageError(f"at most {_MAX_PHRASES} phrases of {_MAX_PHRASE_CHARACTERS} characters")
    return cleaned
