"""``grpc://…``, as the operator names one Triton server or several, to the name that gRPC resolves."""

from __future__ import annotations

import ipaddress


def channel_target(url: str) -> str:
    """What gRPC calls ``grpc://HOST:PORT``, all of whose addresses are used, or ``grpc://IP:PORT,IP:PORT``.

    Raises:
        ValueError: for anything else, saying what is wrong.
    """
    scheme, _, rest = url.partition("://")
    places = rest.split(",")
    hosts = [place.rpartition(":")[0] for place in places]
    if scheme != "grpc" or not all(hosts) or not all(place.rpartition(":")[2].isdecimal() for place in places):
        raise ValueError(f"{url!r} is not grpc://HOST:PORT")
    if len(places) == 1:
        return f"dns:///{rest}"
    try:
        versions = {ipaddress.ip_address(host.strip("[]")).version for host in hosts}
    except ValueError:
        raise ValueError(
            f"{url!r}: several servers are named by IP addresses, or by one name that has them all"
        ) from None
    if len(versions) > 1:
        raise ValueError(f"{url!r}: IPv4 and IPv6 addresses do not mix")
    return f"ipv{versions.pop()}:{rest}"


def is_this_machine(url: str) -> bool:
    """Whether ``url`` names one server at a loopback address."""
    host, _, _ = url.partition("://")[2].rpartition(":")
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
