"""What a reload changes, in words, and what it cannot change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fastside.config import Config

FIXED = ("workers", "accept", "runtime_dir", "state_dir", "api", "mesh", "dubbod", "metrics")
FIXED_LIMITS = ("connections", "services", "addresses", "table_bytes", "service_series")
"""What the shared memory and the processes were made with."""

_MISSING = object()


def effective(running: Config, new: Config) -> Config:
    """The new configuration as far as it can be applied live."""
    limits = {name: getattr(running.limits, name) for name in FIXED_LIMITS}
    fixed: dict[str, Any] = {name: getattr(running, name) for name in FIXED}
    return msgspec.structs.replace(new, limits=msgspec.structs.replace(new.limits, **limits), **fixed)


def changes(running: Config, new: Config) -> list[str]:
    """One line per difference, by the key's path."""
    fixed = (*FIXED, *(f"limits.{name}" for name in FIXED_LIMITS))
    lines = []
    for path, old_value, new_value in _differences("", _plain(running), _plain(new)):
        if old_value is _MISSING:
            line = f"{path}: added"
        elif new_value is _MISSING:
            line = f"{path}: removed"
        else:
            line = f"{path}: {_show(old_value)} -> {_show(new_value)}"
        late = any(path == name or path.startswith(f"{name}.") for name in fixed)
        lines.append(f"{line} (takes effect at the next start)" if late else line)
    return lines


def _plain(config: Config) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config)
    plain["listeners"] = {listener["name"]: listener for listener in plain["listeners"]}
    return plain


def _differences(path: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(f"{path}.{key}" if path else key, old.get(key, _MISSING), new.get(key, _MISSING))
    elif old != new:
        yield path, old, new


def _show(value: object) -> str:
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
