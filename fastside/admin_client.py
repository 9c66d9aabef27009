"""Client of the admin API: HTTP/JSON over the sidecar's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any


class AdminError(Exception):
    """The sidecar refused; str() says why."""


class NoSidecar(AdminError):
    """Nobody answers at the socket, or it may not be used by this user."""


class AdminClient:
    """Asks the sidecar whose admin socket is at `path`. One connection per call; `timeout` in seconds."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, target: str) -> Any:
        """Return the decoded answer. Raises NoSidecar or AdminError."""
        return self._call("GET", target, None)

    def post(self, target: str, body: Any = None) -> Any:
        """Return the decoded answer. Raises NoSidecar or AdminError."""
        return self._call("POST", target, {} if body is None else body)

    def _call(self, method: str, target: str, body: Any) -> Any:
        connection = _UnixConnection(self.path, self.timeout)
        try:
            encoded = None if body is None else json.dumps(body)
            connection.request(method, target, encoded, {"Content-Type": "application/json"} if encoded else {})
            response = connection.getresponse()
            text = response.read()
        except PermissionError:
            raise NoSidecar(f"{self.path} may only be used by the sidecar's own user and by root") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoSidecar(f"no sidecar answers at {self.path}") from None
        except TimeoutError:
            raise AdminError(f"no answer from {self.path} within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"{self.path}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            raise AdminError(f"{self.path} did not answer in JSON: {text[:200]!r}") from None
        if response.status >= 400:
            raise AdminError(_reason(answer, response.status))
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _reason(answer: Any, status: int) -> str:
    if not isinstance(answer, dict) or "error" not in answer:
        return f"the sidecar answered with status {status}"
    return f"{answer['error']}\n{answer['hint']}" if answer.get("hint") else str(answer["error"])
