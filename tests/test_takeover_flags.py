"""The flags of routing records that follow from other records."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastside.alarms import Alarms
from fastside.desired import DesiredTable, Key, Update
from fastside.takeover.flags import FlaggedTable


async def apply_nothing(updates: list[Update]) -> int:
    raise AssertionError("nothing is sent here")


def make() -> tuple[DesiredTable, FlaggedTable]:
    desired = DesiredTable(apply_nothing, Alarms(), lambda seconds: None)
    return desired, FlaggedTable(desired)


def record(service: str, *ports: int, direction: str = "inbound", protocol: str = "bolt") -> Update:
    endpoints = [["127.0.0.1", port, 1] for port in ports]
    return {"op": "put", "direction": direction, "service": service, "protocol": protocol, "endpoints": endpoints}


def flags(desired: DesiredTable, flag: str, direction: str = "inbound") -> set[str]:
    return {key.service for key, update in desired.records.items() if update[flag] and key.direction == direction}


def test_one_application_is_single_until_another_comes() -> None:
    desired, table = make()
    for service in ("a", "b"):
        table.put(record(service, 12200))
    assert flags(desired, "single") == {"a", "b"}
    table.put(record("d", 20880, protocol="dubbo"))
    assert flags(desired, "single") == {"a", "b", "d"}  # its connections are others
    table.put(record("c", 12201))
    assert flags(desired, "single") == {"d"}
    table.delete("inbound", "c")
    assert flags(desired, "single") == {"a", "b", "d"}
    table.put(record("b", 12200, 12201))
    assert flags(desired, "single") == {"d"}
    table.put(record("b", 12200))
    assert flags(desired, "single") == {"a", "b", "d"}


def test_the_flag_goes_before_the_second_address_comes() -> None:
    desired, table = make()
    table.put(record("a", 12200))
    order: list[tuple[str, bool]] = []
    put = desired.put
    desired.put = lambda update: (order.append((update["service"], update["single"])), put(update))[1]  # type: ignore[method-assign]
    table.put(record("b", 12201))
    assert order == [("a", False), ("b", False)]


def test_http_and_outbound_records_are_never_single() -> None:
    desired, table = make()
    table.put(record("web", 8080, protocol="http"))
    table.put(record("a", 12200, direction="outbound"))
    assert flags(desired, "single") == flags(desired, "single", "outbound") == set()


def test_a_service_is_grouped_while_there_is_a_group() -> None:
    desired, table = make()
    for direction in ("inbound", "outbound"):
        table.put(record("com.x.a:1.0", 1, direction=direction, protocol="dubbo"))
        table.put(record("com.x.a", 1, direction=direction, protocol="dubbo"))
    table.put(record("g/com.x.a:1.0", 1, direction="outbound", protocol="dubbo"))
    table.put(record("h/com.x.a:1.0", 1, direction="outbound", protocol="dubbo"))
    assert flags(desired, "grouped") == set()
    assert flags(desired, "grouped", "outbound") == {"com.x.a:1.0"}
    table.put(record("com.x.a:1.0", 2, direction="outbound", protocol="dubbo"))
    table.delete("outbound", "g/com.x.a:1.0")
    assert flags(desired, "grouped", "outbound") == {"com.x.a:1.0"}
    table.delete("outbound", "h/com.x.a:1.0")
    assert flags(desired, "grouped", "outbound") == set()
    table.put(record("g/com.x.b", 1, protocol="bolt"))
    table.put(record("com.x.b", 1, protocol="bolt"))
    table.put(record("g/com.x.c", 1, protocol="dubbo"))
    table.put(record("com.x.c", 1, protocol="dubbo"))
    assert flags(desired, "grouped") == {"com.x.c"}


def expected(records: dict[Key, Update]) -> dict[Key, Any]:
    """The same, by looking at everything."""
    flagged = {}
    for key, update in records.items():
        protocol = update["protocol"]
        alike = [one for other, one in records.items() if (other.direction, one["protocol"]) == ("inbound", protocol)]
        addresses = {(ip, port) for one in alike for ip, port, _ in one["endpoints"]}
        grouped = {
            other.service.partition("/")[2]
            for other, one in records.items()
            if (other.direction, one["protocol"]) == (key.direction, "dubbo") and "/" in other.service
        }
        flagged[key] = {
            **update,
            "single": protocol in ("bolt", "dubbo") and key.direction == "inbound" and len(addresses) == 1,
            "grouped": protocol == "dubbo" and key.service in grouped,
        }
    return flagged


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "g/a", "h/a", "g/b"]),
        st.sampled_from(["inbound", "outbound"]),
        st.sampled_from(["http", "bolt", "dubbo", "dubbo"]),
        st.none() | st.lists(st.integers(1, 3), max_size=2, unique=True),
    ),
    max_size=30,
)


@given(steps=STEPS)
def test_any_order_comes_to_the_same(steps: list[tuple[str, str, str, list[int] | None]]) -> None:
    desired, table = make()
    records: dict[Key, Update] = {}
    for service, direction, protocol, ports in steps:
        if ports is None:
            table.delete(direction, service)
            records.pop(Key(direction, service), None)
        else:
            update = record(service, *ports, direction=direction, protocol=protocol)
            table.put(update)
            records[Key(direction, service)] = update
        assert desired.records == expected(records)
