"""The page's HTTP server. All paths begin with a random token, so that neither another user of this machine nor another
web page in this user's browser can see it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from emostream.errors import EmostreamError
from emostream.stream.control import Request as ControlRequest
from emostream.stream.export import jsonl, to_csv, to_vtt
from emostream.stream.page.events import Events
from emostream.stream.page.metrics import RunMetrics
from emostream.stream.page.state import PageState

PERIOD_S = 0.1  # between two checks for new data
_HURRIED_S, _HURRIED_FOR_S = 0.02, 2.0  # the same until a new page has sound and faces, at most so long
_AT_ONCE = 12  # labels included in the page itself; the socket then sends all of them
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_EXPORTS = {"jsonl": (jsonl, "application/x-ndjson"), "csv": (to_csv, "text/csv"), "vtt": (to_vtt, "text/vtt")}
Steer = Callable[[ControlRequest], str]


class Guard:
    """Only lets in requests that name this server as their host, do not come from another page, and know the token."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str], secure: bool) -> None:
        self._app, self._token, self._hosts = app, token, hosts
        self._scheme = "https" if secure else "http"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        allowed = self._is_here(headers.get("host", "")) and (origin is None or self._is_ours(origin))
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        if allowed and scope["path"] == "/healthz":
            await self._app(scope, receive, send)
        elif allowed and hmac.compare_digest(first.encode(), self._token.encode()):
            if scope["path"] == f"/{first}" and scope["type"] == "http":  # the page's links are relative to its address
                await RedirectResponse(f"{first}/")(scope, receive, send)
                return
            await self._app({**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, text = (404, "not found\n") if allowed else (403, "not from here\n")
            await PlainTextResponse(text, status)(scope, receive, send)

    def _is_here(self, host: str) -> bool:
        """Whether a host is this server; "*.example.org" matches each name directly below example.org."""
        host = host.lower()
        return host in self._hosts or f"*.{host.partition('.')[2]}" in self._hosts

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:  # not a valid address
            return False
        return parts.scheme == self._scheme and self._is_here(parts.netloc)


def make_app(
    state: PageState,
    token: str,
    hosts: frozenset[str],
    steer: Steer | None,
    *,
    secure: bool = False,
    count_labels: bool = False,
) -> ASGIApp:
    """The page's application. ``hosts``: accepted Host headers, such as "127.0.0.1:8800"; ``steer``: carries out a
    request to the run and returns its answer (without it, nothing can be changed); ``secure``: served over https;
    ``count_labels``: metrics count each label by name."""
    metrics = RunMetrics(state, count_labels)
    before, after, policy = _document()

    async def page(request: Request) -> Response:
        state.expect()
        now, _, _ = _news(state, max(0, state.labelled - _AT_ONCE), 0)
        now = now.replace("<", "\\u003c")  # so that no word ends the element
        return Response(before + now + after, media_type="text/html", headers=_HEADERS | policy)

    async def health(request: Request) -> Response:
        found = state.status()
        fine = found is not None and any(stream.can_label for stream in found[1].streams.values())
        return PlainTextResponse("ok\n" if fine else "no labels can come\n", 200 if fine else 503)

    async def utterances(request: Request) -> Response:
        try:
            since = int(request.query_params.get("since", "0"))
        except ValueError:
            return JSONResponse({"error": "since is a number"}, 400)
        labels = state.labels(since)
        last = labels[-1].number if labels else min(max(since, 0), state.labelled)
        body = f'{{"next":{last},"utterances":[{",".join(label.payload for label in labels)}]}}'
        return Response(body, media_type="application/json", headers=_HEADERS)

    async def export(request: Request) -> Response:
        form = request.path_params["form"]
        if form not in _EXPORTS:
            return PlainTextResponse("not found\n", 404)
        write, kind = _EXPORTS[form]
        name = {"Content-Disposition": f'attachment; filename="labels.{form}"'}
        content = write([label.emotion for label in state.labels()])
        return Response(content, media_type=kind, headers=_HEADERS | name)

    async def metric(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def control(request: Request) -> Response:
        if steer is None:
            return JSONResponse({"ok": False, "text": "this run cannot be steered"}, 409)
        if request.headers.get("content-type") != "application/json":  # a form on another page cannot send this
            return JSONResponse({"ok": False, "text": "send application/json"}, 415)
        try:
            asked = await request.json()
            wanted = ControlRequest(
                command=asked["command"], streams=list(asked.get("streams", [])),
                for_s=asked.get("for_s"), value=str(asked.get("value", "")),
            )  # fmt: skip
            if wanted.command not in ("mute", "unmute", "pause", "resume", "set"):
                raise ValueError(wanted.command)
            text = await run_in_threadpool(steer, wanted)
        except EmostreamError as error:
            return JSONResponse({"ok": False, "text": str(error)}, 409)
        except (ValueError, KeyError, TypeError, AttributeError):
            return JSONResponse({"ok": False, "text": "no such request"}, 400)
        return JSONResponse({"ok": True, "text": text})

    async def socket(websocket: WebSocket) -> None:
        form = websocket.query_params.get("format", "messages")
        await websocket.accept()
        reader = {"page": _page, "events": _events}.get(form, _messages)
        state.look(+1 if form == "page" else 0)
        leaving = asyncio.ensure_future(_until_gone(websocket))
        try:
            writing = asyncio.ensure_future(reader(websocket, state))
            await asyncio.wait({leaving, writing}, return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
        finally:
            leaving.cancel()
            state.look(-1 if form == "page" else 0)

    return Guard(
        Starlette(
            routes=[
                Route("/", page),
                Route("/healthz", health),
                Route("/metrics", metric),
                Route("/api/utterances", utterances),
                Route("/api/labels.{form}", export),
                Route("/api/control", control, methods=["POST"]),
                WebSocketRoute("/ws", socket),
            ]
        ),
        token,
        hosts,
        secure,
    )


async def _until_gone(websocket: WebSocket) -> None:
    try:
        while True:
            await websocket.receive_text()
    except (WebSocketDisconnect, KeyError, RuntimeError):
        return


async def _messages(websocket: WebSocket, state: PageState) -> None:
    """Send the public messages unchanged. A slow reader gets the newest estimate, and all of the last 500 labels."""
    number, version = state.labelled, 0
    while True:
        for label in state.labels(number):
            number = label.number
            await websocket.send_text(label.payload)
        before, (version, windows) = version, state.windows(version)
        for payload, _ in windows:
            await websocket.send_text(payload)
        if (found := state.status(before)) is not None:
            await websocket.send_text(found[0])
        await asyncio.sleep(PERIOD_S)


async def _events(websocket: WebSocket, state: PageState) -> None:
    events, number, version = Events(), state.labelled, 0
    while True:
        out: list[dict[str, Any]] = []
        for label in state.labels(number):
            number = label.number
            out += events.of(label.emotion)
        before, (version, windows) = version, state.windows(version)
        out += [event for _, emotion in windows for event in events.of(emotion)]
        if (found := state.status(before)) is not None:
            out.append(events.health(found[1]))
        for event in out:
            await websocket.send_text(json.dumps(event))
        await asyncio.sleep(PERIOD_S)


async def _page(websocket: WebSocket, state: PageState) -> None:
    """Send what the page draws: ten times a second one message with everything new, so that nothing queues up."""
    number, version = 0, 0
    hurried_until = time.monotonic() + _HURRIED_FOR_S
    while True:
        news, number, version = _news(state, number, version)
        await websocket.send_text(news)
        hurried = not state.senses() and time.monotonic() < hurried_until
        await asyncio.sleep(_HURRIED_S if hurried else PERIOD_S)


def _news(state: PageState, number: int, version: int) -> tuple[str, int, int]:
    """What is newer than this label and this version, as JSON, and the newest label and version. Faces and sound are
    always the current ones."""
    labels = state.labels(number)
    number = labels[-1].number if labels else number
    before, (version, windows) = version, state.windows(version)
    found = state.status(before)
    parts = [
        f'"labels":[{",".join(label.payload for label in labels)}]',
        f'"windows":[{",".join(payload for payload, _ in windows)}]',
        f'"status":{found[0] if found else "null"}',
        f'"sources":{json.dumps(state.sources(before))}',
        f'"settings":{json.dumps(state.settings(before))}',
        f'"senses":{json.dumps(state.senses())}',
        f'"pictures":{json.dumps(state.pictures(before))}',
    ]
    return "{" + ",".join(parts) + "}", number, version


def _document() -> tuple[str, str, dict[str, str]]:
    """The page as a single file, so that a browser can draw it without a second request: the parts before and after the
    current state, and the content security policy, which allows only this style and this script."""
    folder = files(__package__).joinpath("static")
    text, style, trouble, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css", "trouble.js", "page.js")
    )
    script = trouble + script
    before, after = text.replace("/* page.css */", style).replace("/* page.js */", script).split("/* now */")
    allowed = {
        f"{kind}-src": f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        for kind, content in (("style", style), ("script", script))
    }
    others = {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    policy = "; ".join(f"{name} {value}" for name, value in (others | allowed).items())
    return before, after, {"Content-Security-Policy": policy}
