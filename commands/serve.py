"""``tresnet serve``: the gateway, with the bundled Triton unless another is named."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.console import fails_with_2


def serve(
    repository: Annotated[
        str | None,
        typer.Option(help="The bundled Triton's models. Default: model_repository.", metavar="DIR"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: 8080.", min=0, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes. Default: 1.", min=1, max=256)] = None,
    triton_url: Annotated[
        str | None,
        typer.Option(help="A Triton server to use, in place of the bundled one.", metavar="grpc://HOST:8001"),
    ] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="PEM file: serve HTTPS with it.", metavar="FILE")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file of its private key.", metavar="FILE")] = None,
) -> None:
    """Serve the model repository over HTTP.

    Every setting can also be given as an environment variable TRESNET_<NAME>; options come before them.
    """
    with fails_with_2():
        from app.server import run
        from app.settings import load_settings

        run(
            load_settings(
                repository=repository,
                host=host,
                port=port,
                workers=workers,
                triton_url=triton_url,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
            )
        )
