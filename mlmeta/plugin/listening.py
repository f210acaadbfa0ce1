"""Where the server listens, as its own command line says, and whether others can reach it there."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", 8000
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Listening:
    """An address that uvicorn listens on.

    Attributes:
        host: As it was given.
    """

    scheme: str
    host: str
    port: int

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    @property
    def uri(self) -> str:
        """Where processes of this machine reach it."""
        host = _ANY.get(self.host, self.host)
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def find_listening(arguments: Sequence[str]) -> Listening | None:
    """Return where uvicorn listens, read from the command line of its processes; None where it is none of uvicorn's.

    Uvicorn's workers are spawned, and so have the ``sys.argv`` of their supervisor.
    """
    options = dict(itertools.pairwise(arguments))
    options |= dict(one.split("=", 1) for one in arguments if one.startswith("--") and "=" in one)
    if "--host" not in options and "--port" not in options:
        return None
    port = options.get("--port", str(_DEFAULT_PORT))
    if not port.isdecimal():
        return None
    scheme = "https" if "--ssl-certfile" in options else "http"
    return Listening(scheme, options.get("--host", _DEFAULT_HOST), int(port))
