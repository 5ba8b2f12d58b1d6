"""Refuse every connection that does not go to loopback; Python imports this by itself where it is on the path."""

import ipaddress
import sys
from typing import Any


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        # A path is a Unix socket: it stays on this machine. None: a datagram socket that is connected already.
        host = address[0] if isinstance(address, tuple) else None
    else:
        return
    if host in (None, "", "localhost", b"localhost"):
        return
    try:
        loopback = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConnectionRefusedError(f"tests reach loopback only, not {host}")


sys.addaudithook(_refuse)
