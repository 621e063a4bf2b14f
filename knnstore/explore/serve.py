"""Serve the page to this machine only, and prevent it from loading anything from elsewhere."""

import os
import socket
from typing import Any

# Set before Gradio is imported: otherwise it checks for updates and reports usage to its makers.
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
# The browser blocks everything from elsewhere: fonts, scripts, images, requests. Gradio compiles the page's templates
# to functions, hence 'unsafe-eval'.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)


# Far more than the page sends: pasted texts are shorter, and nothing is uploaded.
_LARGEST_BODY = 2**22


class _OwnPage:
    """Refuses requests from other web pages on every route; requests of this page or from programs are answered.

    A browser sends the origin of a request as Origin (``null`` if hidden), Sec-Fetch-Site or Referer. Bodies are
    limited and files are refused for all senders.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _is_foreign(headers):
            refusal: Any = PlainTextResponse("requests from other pages are refused", 403)
        elif headers.get("content-type", "").strip().lower().startswith("multipart/") or "upload" in scope["path"]:
            refusal = PlainTextResponse("files are refused", 403)
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
    """Wrap ``receive`` to end the connection if a body without a declared length is too long."""
    left = _LARGEST_BODY

    async def bounded() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body") or b"")
        return {"type": "http.disconnect"} if left < 0 else message

    return bounded


class _Headers:
    """Adds the policy to every response, including streamed ones."""

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
    """Return the page as an application, which answers only to names of this machine and to its own origin."""
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
    """Return a socket on loopback; port 0 means any free port. Raises UsageError if the port is in use."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        fault, remedy = f"can't be used ({error.strerror})", "give another port, or 0 for any free port"
        raise UsageError.about("port", port, fault, remedy=remedy) from error
    return listening


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return a server that runs until Ctrl-C, without waiting for the connections of open pages then."""
    return uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve on the socket until Ctrl-C."""
    make_server(app).run(sockets=[listening])
