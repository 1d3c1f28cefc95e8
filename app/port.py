"""Whether the gateway's address can be listened on, asked before Triton is started."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from app.settings import Settings
from tresnet.errors import UserError

_HAS_IPV6 = Path("/proc/net/if_inet6").exists()


def try_port(settings: Settings) -> None:
    """Bind and let go.

    Raises:
        OSError: if the address cannot be listened on.
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        if family == socket.AF_INET6 and not _HAS_IPV6:
            continue  # as the server does
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the server will, beside IPv4
            probe.bind(address)


def check_port(settings: Settings, remedy: str) -> None:
    """As :func:`try_port`, for people.

    Raises:
        UserError: if the address cannot be listened on, with the remedy if it is only the port that is taken.
    """
    try:
        try_port(settings)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {settings.port} is in use; {remedy}") from error
        raise UserError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
