"""Serves the page to this machine alone, and lets it load nothing from any other."""

import os
import socket
from typing import Any

# Before Gradio is imported: it would ask its makers' server whether it is up to date, and count this use.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware

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
    """The page as an application. It answers only to names of this machine, so that no other site can reach it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
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
