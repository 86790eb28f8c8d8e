"""The address of a server: had before its model loads, and told as a URL."""

from __future__ import annotations

import socket

from bagpiper_jax.errors import UserError


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet; port 0 takes a free one.

    Raises:
      UserError: there is no such port, or the address cannot be had.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port} is none: choose one from 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as e:
        raise UserError(f"cannot listen on {host}:{port}: {e}; choose another --port") from e
    return listener


def url(listener: socket.socket) -> str:
    """http://host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
