"""What is wrong at the moment and needs somebody: logged when it begins and ends, shown in status and metrics."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

log = logging.getLogger("fastside")


class Alarm(NamedTuple):
    since: float
    """`time.monotonic` of its beginning."""
    text: str


class Alarms:
    """The alarms that are on, by name."""

    def __init__(self) -> None:
        self.on: dict[str, Alarm] = {}
        self.raised = 0
        """How many have begun so far."""

    def set(self, name: str, text: str | None) -> None:
        """Turn an alarm on, or off with None. One that goes on with another text keeps its beginning."""
        before = self.on.get(name)
        if text is None:
            if before is not None:
                del self.on[name]
                log.info("%s: over: %s", name, before.text)
            return
        if before is None:
            self.raised += 1
        if before is None or before.text != text:
            log.warning("%s: %s", name, text)
        self.on[name] = Alarm(before.since if before else time.monotonic(), text)
