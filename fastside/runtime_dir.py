"""The directory of a running sidecar's sockets and records, and the lock that keeps it to one master."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO


class RuntimeDirError(Exception):
    """The directory cannot be used; str() says why and what to do."""


class RuntimeDir:
    """Held by the live master. What holds it ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the directory where it is missing, and lock it. Raises RuntimeDirError."""
        self.path = path
        _make_private(path)
        self._lock_path = path / "master.lock"
        self._lock = _lock(self._lock_path)

    def close(self) -> None:
        """Remove the lock; the directory and what others keep there stay."""
        self._lock_path.unlink(missing_ok=True)  # while it is held: nobody else can hold it then
        self._lock.close()


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise RuntimeDirError(
                f"runtime_dir {path} belongs to user {status.st_uid}, not to {os.geteuid()}; use another directory"
            )
        path.chmod(0o700)
    except OSError as error:
        raise RuntimeDirError(f"runtime_dir {path} cannot be used: {error.strerror}; use another directory") from error


def _lock(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            # A POSIX lock, for the children must not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            pid = file.read().strip()
            file.close()
            raise RuntimeDirError(
                f"already running as pid {pid or '(starting)'}; stop it, or use another runtime_dir than {path.parent}"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # its last owner removed it in between
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
