"""Flags of routing records that follow from other records.

* single: an inbound record of a multiplexed protocol, when all inbound records of that protocol have one and the same
  address. A connection from another sidecar can then be passed to it as a whole, whatever services its calls are for.
* grouped: a Dubbo record without a group, when the same interface and version is there with a group as well. The
  group is behind a call's arguments; only then it must be looked for.
"""

from __future__ import annotations

from collections import Counter

from fastside.desired import DesiredTable, Key, Update

MULTIPLEXED = ("bolt", "dubbo")
"""Protocols of which one connection carries calls for many services."""


class FlaggedTable:
    """A desired table that takes records without these flags and keeps them right as records come and go."""

    def __init__(self, desired: DesiredTable) -> None:
        self._desired = desired
        self._addresses: dict[str, Counter[tuple[str, int]]] = {protocol: Counter() for protocol in MULTIPLEXED}
        """How many inbound records of a protocol have each address."""
        self._groups: Counter[Key] = Counter()
        """How many groups a Dubbo service has, by its key without one."""

    def put(self, update: Update) -> None:
        """Want this record."""
        self._replace(Key(update["direction"], update["service"]), update)

    def delete(self, direction: str, service: str) -> None:
        """Want no record."""
        self._replace(Key(direction, service), None)

    def _replace(self, key: Key, update: Update | None) -> None:
        before = {protocol: self._is_single(protocol) for protocol in MULTIPLEXED}
        self._count(key, self._desired.records.get(key), -1)
        self._count(key, update, 1)
        # Others first, so that no worker sees a second address while a record still says that there is one.
        for protocol, was_single in before.items():
            if self._is_single(protocol) != was_single:
                self._refresh_inbound(protocol, key)
        if (plain := self._desired.records.get(_without_group(key))) is not None and _without_group(key) != key:
            self._put(plain)
        if update is not None:
            self._put(update)
        else:
            self._desired.delete(*key)

    def _refresh_inbound(self, protocol: str, but: Key) -> None:
        for key, record in list(self._desired.records.items()):
            if key.direction == "inbound" and record["protocol"] == protocol and key != but:
                self._put(record)

    def _put(self, record: Update) -> None:
        key, protocol = Key(record["direction"], record["service"]), record["protocol"]
        single = key.direction == "inbound" and self._is_single(protocol)
        self._desired.put({**record, "single": single, "grouped": protocol == "dubbo" and self._groups[key] > 0})

    def _is_single(self, protocol: str) -> bool:
        return protocol in MULTIPLEXED and len(self._addresses[protocol]) == 1

    def _count(self, key: Key, record: Update | None, change: int) -> None:
        if record is None or record["protocol"] not in MULTIPLEXED:
            return
        if key.direction == "inbound":
            addresses = self._addresses[record["protocol"]]
            for ip, port, _ in record["endpoints"]:
                addresses[ip, port] += change
                if not addresses[ip, port]:
                    del addresses[ip, port]
        if record["protocol"] == "dubbo" and _without_group(key) != key:
            self._groups[_without_group(key)] += change


def _without_group(key: Key) -> Key:
    """The key of interface[:version] for one of group/interface[:version]."""
    return Key(key.direction, key.service.partition("/")[2] or key.service)
