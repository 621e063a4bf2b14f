"""Serves the page to this machine alone, and lets it load nothing from any other."""

import os
import socket
from typing import Any

# Before Gradio is imported: it would ask its makers' server whether it is up to date, and count this use.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

from knnstore.errors import UsageError
from knnstore.explore.explorer import Explorer
from knnstore.explore.page import STYLE, make_page

HOST = "127.0.0.1"
# The browser refuses whatever isn't from here: fonts, scripts, pictures, calls. Gradio makes functions of the page's
# own templates, hence 'unsafe-eval'.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)


# What no page sends: a pasted text is far shorter, and nothing is uploaded.
_LARGEST_BODY = 2**22


class _OwnPage:
    """Answers to this page, and to what is no web page; refuses what another page asks for, on every route.

    A browser says who asks: by Origin (``null`` for a page that hides itself), Sec-Fetch-Site, or Referer. Bodies are
    bounded, and files are refused, whoever sends them.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _is_foreign(headers):
            refusal: Any = PlainTextResponse("another page may not ask this one", 403)
        elif headers.get("content-type", "").strip().lower().startswith("multipart/") or "upload" in scope["path"]:
            refusal = PlainTextResponse("no files are taken here", 403)
        elif not _is_small(headers.get("content-length", "0")):
            refusal = PlainTextResponse(f"more than {_LARGEST_BODY} bytes", 413)
        else:
            await self._app(scope, _bounded(receive), send)
            return
        if scope["type"] == "websocket":
            refusal = WebSocketClose(1008)
        await refusal(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    own = f"http://{headers.get('host', '')}"
    if any(origin != own for origin in headers.getlist("origin")):
        return True
    if any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site")):
        return True
    return any(not f"{referer}/".startswith(f"{own}/") for referer in headers.getlist("referer"))


def _is_small(length: str) -> bool:
    return length.isascii() and length.isdigit() and int(length) <= _LARGEST_BODY


def _bounded(receive: Any) -> Any:
    """``receive``, which ends the connection where a body that doesn't say its length is too long."""
    left = _LARGEST_BODY

    async def bounded() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body") or b"")
        return {"type": "http.disconnect"} if left < 0 else message

    return bounded


class _Headers:
    """Adds the policy to every answer, streamed ones as well."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, with_headers)


def make_app(explorer: Explorer) -> FastAPI:
    """The page as an application. It answers only to names of this machine and to itself: no other site reaches it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_OwnPage)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(_Headers)
    theme = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return gr.mount_gradio_app(
        app, make_page(explorer), path="/", server_name=HOST, css=STYLE, theme=theme, footer_links=[], ssr_mode=False
    )


def open_port(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes any free one. Raises UsageError if it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"--port {port} can't be used ({error.strerror}): give another, or 0 for any free one"
        ) from error
    return listening


def make_server(app: FastAPI) -> uvicorn.Server:
    """What answers, until Ctrl-C. A page that is still open keeps a connection, which isn't waited for then."""
    return uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer on the socket until Ctrl-C."""
    make_server(app).run(sockets=[listening])
