"""Which endpoints of a service stay in use, whatever its registry says or fails to say.

A registry that is away, restarted or confused must not take running services down, and an address that its owner took
out must not be called again. So each endpoint is

* fresh: the registry lists it;
* stale: the registry is away, and listed it last. It stays for `stale` seconds;
* protected: the registry does not list it, but sent an empty list, or has lost its memory (a new epoch) since. It stays
  for `protection` seconds after it went missing;
* gone: taken out by its owner (at once), missing from a list that is not empty (at once), or past its time.

A pure state machine: it is told the time (seconds, monotonic) and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fastside.registry import Address, Endpoint, Listing


class State(StrEnum):
    FRESH = "fresh"
    STALE = "stale"
    PROTECTED = "protected"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class KnownEndpoint:
    """An endpoint in use, and why it is."""

    endpoint: Endpoint
    state: State


@dataclass(slots=True)
class Saved:
    """A view as a snapshot keeps it; ages in seconds at the time of saving."""

    epoch: str = ""
    away: float | None = None
    endpoints: list[tuple[Endpoint, float | None]] = field(default_factory=list)
    """With the seconds for which the registry has not listed it; None = it does."""


class View:
    """The endpoints of one service. Every method returns whether what `endpoints` or `state` say changed.

    protection, stale: seconds. A new view knows no endpoint and has not heard from the registry.
    """

    def __init__(self, protection: float, stale: float, now: float) -> None:
        self.index = 0
        self.epoch = ""
        self.answered = False
        """Whether the registry has said anything yet, in this process or before a restart."""
        self._protection = protection
        self._stale = stale
        self._away_since: float | None = now
        self._grace_until = now
        self._listed: dict[Address, Endpoint] = {}
        self._missing: dict[Address, tuple[Endpoint, float]] = {}  # since when

    @classmethod
    def restore(cls, saved: Saved, protection: float, stale: float, now: float, age: float) -> View:
        """The view that a snapshot of age seconds has kept. It is stale until the registry is heard."""
        view = cls(protection, stale, now)
        view.answered = True
        view.epoch = saved.epoch
        view._away_since = now - age - (saved.away or 0.0)
        for endpoint, missing in saved.endpoints:
            if missing is None:
                view._listed[endpoint.address] = endpoint
            else:
                view._missing[endpoint.address] = (endpoint, now - age - missing)
        view.expire(now)
        return view

    def save(self, now: float) -> Saved:
        """What `restore` needs."""
        away = None if self._away_since is None else now - self._away_since
        listed: list[tuple[Endpoint, float | None]] = [(endpoint, None) for endpoint in self._listed.values()]
        return Saved(self.epoch, away, listed + [(endpoint, now - since) for endpoint, since in self._missing.values()])

    def listing(self, listing: Listing, now: float) -> bool:
        """The registry said what it has."""
        before = self._picture()
        if listing.epoch != self.epoch:
            if self.epoch:
                # A registry without memory: its first lists are as empty as those that registered again are few.
                self._grace_until = now + self._protection
            self.epoch = listing.epoch
        self.index = listing.index
        self.answered = True
        self._away_since = None
        keep = not listing.endpoints or now < self._grace_until
        listed = {endpoint.address: endpoint for endpoint in listing.endpoints}
        for address, endpoint in self._listed.items():
            if keep and address not in listed:
                self._missing[address] = (endpoint, now)
        self._listed = listed
        for address in (*listed, *listing.deregistered):
            self._missing.pop(address, None)
        self._drop_overdue(now)
        return self._picture() != before

    def current(self, now: float) -> bool:
        """The registry was reached, and nothing has changed since its last listing."""
        before = self._picture()
        self._away_since = None
        self._drop_overdue(now)
        return self._picture() != before

    def away(self, now: float) -> bool:
        """The registry cannot be reached."""
        if self._away_since is not None:
            return False
        before = self._picture()
        self._away_since = now
        return self._picture() != before

    def expire(self, now: float) -> bool:
        """Time has passed; see `deadline`."""
        before = self._picture()
        self._drop_overdue(now)
        return self._picture() != before

    def tune(self, protection: float, stale: float) -> None:
        """Take other times from a new configuration."""
        self._protection = protection
        self._stale = stale

    def deadline(self) -> float | None:
        """When `expire` has something to do if nothing else happens; None = never."""
        times = [since + self._protection for _, since in self._missing.values()]
        if self._away_since is not None and self._listed:
            times.append(self._away_since + self._stale)
        return min(times, default=None)

    @property
    def endpoints(self) -> list[KnownEndpoint]:
        """What may be called."""
        state = State.FRESH if self._away_since is None else State.STALE
        known = [KnownEndpoint(endpoint, state) for endpoint in self._listed.values()]
        return known + [KnownEndpoint(endpoint, State.PROTECTED) for endpoint, _ in self._missing.values()]

    @property
    def state(self) -> State:
        """Of the service as a whole: the worst of its endpoints in use; gone without any."""
        if not self._listed and not self._missing:
            return State.GONE
        if self._away_since is not None:
            return State.STALE
        return State.PROTECTED if self._missing else State.FRESH

    def _picture(self) -> tuple[State, frozenset[Endpoint], frozenset[Endpoint]]:
        missing = frozenset(endpoint for endpoint, _ in self._missing.values())
        return self.state, frozenset(self._listed.values()), missing

    def _drop_overdue(self, now: float) -> None:
        overdue = [address for address, (_, since) in self._missing.items() if since + self._protection <= now]
        for address in overdue:
            del self._missing[address]
        if self._away_since is not None and self._away_since + self._stale <= now:
            self._listed.clear()
