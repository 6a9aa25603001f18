"""Which addresses may be used without keys: those that only this machine can reach."""

from __future__ import annotations

import ipaddress

from fsm.errors import LocalError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host, told without asking any name service."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def split_host_port(name: str, address: str) -> tuple[str, int]:
    """``host:port`` or ``[host]:port`` as host (without brackets) and port; LocalError for anything else."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise LocalError(f"{name}={address!r}: expected host:port with a port from 0 to 65535, such as 127.0.0.1:0")
    if host == bare and ":" in bare:
        raise LocalError(f"{name}={address!r}: write an IPv6 host in brackets, such as [::1]:0")
    return bare, int(port)


def reach_of(address: str) -> tuple[str, bool]:
    """What a ZeroMQ address needs: ``(scheme, local)``, local if only this machine can reach it.

    Raises :class:`LocalError` for schemes other than ``tcp`` and ``ipc``, and for malformed addresses.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in ("tcp", "ipc") or not rest:
        raise LocalError(f"address={address!r}: expected tcp://host:port or ipc://path")
    if scheme == "ipc":
        return scheme, True
    host, _ = split_host_port("address", rest.removesuffix(":*") + ":0" if rest.endswith(":*") else rest)
    return scheme, is_loopback(host)
