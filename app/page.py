"""The pages for people: the demo at ``/``, the API's description at ``/docs``, and the files of both below ``/page/``.

Static files go out, with headers that let a browser run nothing but them and ask nobody but this service.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

PREFIX = "/page/"
_METHODS = ["GET", "HEAD"]
_FOLDER = Path(__file__).with_name("page")
_SWAGGER_UI = ("fastapi_swagger", "resources")  # the package that carries Swagger UI's own files

_NOTHING_ELSE = "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; {_NOTHING_ELSE}"
)  # fmt: skip
# Swagger UI writes styles into its elements.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " + _NOTHING_ELSE
)


def add_pages(app: FastAPI) -> None:
    """Add the routes; the files are read when they are asked for, and their ETags spare sending them twice."""
    files = StaticFiles(directory=_FOLDER, packages=[_SWAGGER_UI])

    async def send(request: Request, name: str, policy: str) -> Response:
        response = await files.get_response(name, request.scope)
        # The names never change, so a browser asks each time whether the file has.
        response.headers.update({"Cache-Control": "no-cache", "Content-Security-Policy": policy})
        return response

    @app.api_route("/", methods=_METHODS, include_in_schema=False)
    async def home(request: Request) -> Response:
        return await send(request, "index.html", _PAGE_POLICY)

    @app.api_route("/docs", methods=_METHODS, include_in_schema=False)
    async def docs(request: Request) -> Response:
        return await send(request, "docs.html", _DOCS_POLICY)

    @app.api_route(PREFIX + "{name:path}", methods=_METHODS, include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        return await send(request, name, _PAGE_POLICY)
