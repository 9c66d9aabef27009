"""Why a takeover request is refused."""

from __future__ import annotations


class TakeoverError(Exception):
    """A request that is refused: the HTTP status, what is wrong, and what to do about it."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
