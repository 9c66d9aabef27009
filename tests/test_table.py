"""The routing table: what updates do, what is refused, and that memory comes back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastside import _core
from table_support import addresses, delete, fork, load_probe, put


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_probe()


def make_table(**limits: int) -> _core.Table:
    return _core.Table(
        **{
            "max_services": 64,
            "max_addresses": 256,
            "table_bytes": 1 << 20,
            "workers": 2,
            "max_connections": 64,
            "stat_slots": 8,
            **limits,
        }
    )


def content(table: _core.Table) -> dict[tuple[str, str], dict[str, Any]]:
    """All services as the updates that would make them."""
    found = {}
    for direction in ("outbound", "inbound"):
        for name in table.services(direction):
            service = table.lookup(direction, name)
            assert service is not None
            del service["sid"], service["stat_slot"]
            found[direction, name] = {"op": "put", **service}
    return found


def everything(table: _core.Table) -> tuple[Any, ...]:
    """What a refused update must leave as it is."""
    sizes = {
        name: table.memory()[name]
        for name in ("services", "endpoints", "arena_used", "arena_free", "arena_retired", "table_bytes")
    }
    return content(table), table.settings(), table.version, table.applied_ns, sizes


# --- updates


def test_put_and_lookup_give_the_same() -> None:
    table = make_table()
    update = put(
        "svc-a",
        [["10.0.0.1", 80, 1], ["10.0.0.2", 65535, 65535], ["2001:db8::1", 1, 7]],
        protocol="tcp",
        balance="hash_header",
        hash_header="X-User",
        retry=True,
        single=True,
        grouped=True,
        request_ms=1234,
    )
    assert table.apply([update]) == 1
    assert content(table) == {("outbound", "svc-a"): {**update, "hash_header": "x-user"}}
    assert table.lookup("inbound", "svc-a") is None
    assert table.lookup("outbound", "svc-b") is None
    assert table.lookup("outbound", "") is None
    assert table.lookup("outbound", "x" * 256) is None


def test_directions_are_separate() -> None:
    table = make_table()
    table.apply([put("a", addresses(1)), put("a", addresses(2), direction="inbound")])
    table.apply([delete("a")])
    assert table.services("outbound") == []
    assert table.services("inbound") == ["a"]


@pytest.mark.parametrize("count", [0, 1, 2, 65535])
def test_any_number_of_endpoints(count: int) -> None:
    table = make_table(max_addresses=65535, table_bytes=16 << 20)
    update = put("a", addresses(count))
    table.apply([update])
    assert content(table) == {("outbound", "a"): update}


def test_names_of_any_bytes_up_to_255() -> None:
    table = make_table()
    names = ["a", "x" * 255, "ä" * 127, "a\0b", "日本"]
    table.apply([put(name, []) for name in names])
    assert sorted(table.services("outbound")) == sorted(names)
    assert all(table.lookup("outbound", name) for name in names)


def test_mapped_ipv4_is_ipv4() -> None:
    table = make_table()
    table.apply([put("a", [["::ffff:10.0.0.1", 80, 1], ["10.0.0.1", 80, 1]])])
    found = table.lookup("outbound", "a")
    assert found is not None
    assert found["endpoints"] == [["10.0.0.1", 80, 1]] * 2
    assert table.memory()["addresses"] == 1


def test_the_later_of_two_updates_in_a_batch_counts() -> None:
    table = make_table()
    table.apply([put("a", addresses(1)), delete("a"), put("b", addresses(2)), put("a", addresses(3))])
    assert content(table) == {
        ("outbound", "a"): put("a", addresses(3)),
        ("outbound", "b"): put("b", addresses(2)),
    }
    table.apply([put("a", addresses(9)), delete("a")])
    assert table.services("outbound") == ["b"]
    assert table.memory()["endpoints"] == 2


def test_a_service_keeps_its_number_and_its_statistics() -> None:
    table = make_table()
    table.apply([put("a", []), put("b", [])])
    before = table.lookup("outbound", "a")
    table.apply([put("a", addresses(5), balance="hash_source")])
    after = table.lookup("outbound", "a")
    assert before is not None
    assert after is not None
    assert (before["sid"], before["stat_slot"]) == (after["sid"], after["stat_slot"])


def test_services_beyond_the_statistics_share_slot_0_until_one_is_free() -> None:
    table = make_table(stat_slots=3)
    table.apply([put(name, []) for name in "abc"])
    slots = {name: (table.lookup("outbound", name) or {})["stat_slot"] for name in "abc"}
    assert sorted(slots.values()) == [0, 1, 2]
    table.apply([delete("a")])
    table.reclaim()
    table.apply([put("c", [])])
    assert (table.lookup("outbound", "c") or {})["stat_slot"] == slots["a"]


def test_settings() -> None:
    table = make_table()
    assert set(table.settings().values()) == {0}
    table.apply([{"op": "settings", "values": {"connect_ms": 1000, "head_bytes": 65536}}])
    table.apply([{"op": "settings", "values": {"connect_ms": 0xFFFFFFFF}}])
    assert table.settings()["connect_ms"] == 0xFFFFFFFF
    assert table.settings()["head_bytes"] == 65536
    assert table.reclaim() == 1


def loops(table: _core.Table, service: str) -> list[bool]:
    return [endpoint["loop"] for endpoint in table.explain_pick("outbound", service)]


def test_own_listeners_are_loops() -> None:
    table = make_table()
    table.apply([put("a", [["10.0.0.1", 80, 1], ["10.0.0.1", 81, 1], ["::1", 80, 1]])])
    table.apply([{"op": "listeners", "addresses": [["10.0.0.1", 81], ["::1", 80], ["10.9.9.9", 9]]}])
    assert loops(table, "a") == [False, True, True]
    # Also for addresses that come later, in the same batch or after it.
    table.apply([put("b", [["10.9.9.9", 9, 1], ["10.0.0.2", 80, 1]])])
    assert loops(table, "b") == [True, False]
    table.apply([put("c", [["10.0.0.3", 1, 1]]), {"op": "listeners", "addresses": [["10.0.0.3", 1]]}])
    assert loops(table, "a") == [False, False, False]
    assert loops(table, "b") == [False, False]
    assert loops(table, "c") == [True]


# --- refused updates

GOOD = put("svc-a", [["10.0.0.1", 80, 1]])


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (7, "updates[1]: int given; a map with the key 'op' is needed"),
        ({}, "updates[1]: op: None is unknown; use put, del, settings or listeners"),
        ({**GOOD, "direction": "up"}, "direction: 'up' is unknown; use one of outbound, inbound"),
        ({**GOOD, "service": ""}, "a service name has 1 to 255 bytes, not 0"),
        ({**GOOD, "service": "ä" * 128}, "a service name has 1 to 255 bytes, not 256"),
        ({**GOOD, "service": 5}, "updates[1]: outbound: service: a name is missing"),
        ({**GOOD, "service": "\ud800"}, "surrogates not allowed"),
        ({**GOOD, "protocol": "udp"}, "updates[1]: outbound 'svc-a': protocol: 'udp' is unknown; use one of http"),
        ({**GOOD, "balance": None}, "balance: None is unknown; use one of round_robin, least_request, hash_source"),
        ({**GOOD, "balance": "hash_header"}, "hash_header: None is not a header name"),
        ({**GOOD, "balance": "hash_header", "hash_header": "a b"}, "hash_header: 'a b' is not a header name"),
        ({**GOOD, "retry": 1}, "retry: 1 given; use true or false"),
        ({**GOOD, "single": None}, "single: None given; use true or false"),
        ({**GOOD, "request_ms": 1 << 31}, "request_ms 2147483648 is out of range; use 0..2147483647"),
        ({**GOOD, "request_ms": 1 << 100}, "request_ms 1267650600228229401496703205376 is out of range"),
        ({**GOOD, "request_ms": True}, "request_ms: True given; a whole number from 0 to 2147483647 is needed"),
        ({**GOOD, "weight": 1}, "'weight' is not a key of this update; known are balance, direction, endpoints"),
        ({**GOOD, "endpoints": "10.0.0.1:80"}, "endpoints: a list of [ip, port, weight] is needed"),
        ({**GOOD, "endpoints": [["10.0.0.1", 80]]}, "endpoints[0]: ['10.0.0.1', 80] given; [ip, port, weight]"),
        ({**GOOD, "endpoints": [["10.0.0.1", 0, 1]]}, "endpoints[0]: port 0 is out of range; use 1..65535"),
        ({**GOOD, "endpoints": [["10.0.0.1", 80, 0]]}, "endpoints[0]: weight 0 is out of range; use 1..65535"),
        ({**GOOD, "endpoints": [["10.0.0.1", 80, 1], ["10.0.0", 80, 1]]}, "endpoints[1]: ip: '10.0.0' is not an IPv4"),
        ({**GOOD, "endpoints": [["10.0.0.1\0", 80, 1]]}, "is not an IPv4 or IPv6 address"),
        ({**GOOD, "endpoints": [["fe80::1%eth0", 80, 1]]}, "is not an IPv4 or IPv6 address"),
        ({**GOOD, "endpoints": [["host", 80, 1]]}, "'host' is not an IPv4 or IPv6 address"),
        ({**GOOD, "endpoints": [[10, 80, 1]]}, "ip: 10 given; an IPv4 or IPv6 address as text is needed"),
        ({**GOOD, "endpoints": [["10.0.0.1", 80, 1]] * 65536}, "65536 given; a service has at most 65535"),
        ({**GOOD, "endpoints": [["10.0.0.1", 80, 65535]] * 32769}, "add up to 2147516415; they must stay below 21474"),
        ({"op": "del", "direction": "outbound", "service": "a", "x": 1}, "'x' is not a key of this update; known are"),
        ({"op": "del", "direction": "outbound"}, "outbound: service: a name is missing"),
        ({"op": "settings", "values": {"conect_ms": 1}}, "settings: 'conect_ms' is unknown; known are connect_ms"),
        ({"op": "settings", "values": {"connect_ms": -1}}, "connect_ms -1 is out of range; use 0..4294967295"),
        ({"op": "settings", "values": []}, "settings: values: a map of names to numbers is needed"),
        ({"op": "settings"}, "settings: values: a map of names to numbers is needed"),
        ({"op": "listeners", "addresses": [["10.0.0.1", 80, 1]]}, "listeners: addresses[0]: ['10.0.0.1', 80, 1] given"),
        ({"op": "listeners", "addresses": [["*", 80]]}, "listeners: addresses[0]: ip: '*' is not an IPv4 or IPv6"),
        ({"op": "listeners"}, "listeners: addresses: a list of [ip, port] is needed"),
    ],
)
def test_a_bad_update_is_named_and_nothing_of_its_batch_happens(update: Any, message: str) -> None:
    table = make_table()
    table.apply([put("kept", addresses(3), balance="hash_source")])
    before = everything(table)
    batch = [put("svc-a", addresses(7)), update, put("kept", []), {"op": "settings", "values": {"attempts": 3}}]
    with pytest.raises(ValueError, match=r"^updates\[1\]: |surrogates") as caught:
        table.apply(batch)
    assert message in str(caught.value)
    assert everything(table) == before


KEYS = st.sampled_from([*GOOD, "hash_header", "values", "addresses"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=4)
    | st.sampled_from([*GOOD.values(), "del", "settings", "listeners", "hash_header", "10.0.0.1", "attempts"])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), dropped=st.sets(KEYS, max_size=1))
def test_any_update_is_applied_or_refused(changes: dict[str, Any], dropped: set[str]) -> None:
    """What comes from another process may be anything; the master must live on, with the table as it was."""
    table = make_table()
    table.apply([GOOD])
    before = everything(table)
    update = {key: value for key, value in {**GOOD, **changes}.items() if key not in dropped}
    try:
        table.apply([GOOD, update])
    except ValueError:
        assert everything(table) == before
    else:
        assert table.version == 2


def test_a_batch_is_a_list() -> None:
    with pytest.raises(ValueError, match="updates: dict given; a list is needed"):
        make_table().apply(GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "batch", "message"),
    [
        ({"max_services": 4}, [put(str(i), []) for i in range(4)], "services: 4 more do not fit: of 4, 1 are in use"),
        ({"max_addresses": 4}, [put("a", addresses(5))], "addresses: all 4 are in use"),
        (
            {"table_bytes": 24576, "max_addresses": 100},
            [put(str(i), addresses(100)) for i in range(9)],
            "does not fit into the table: of 8192 bytes",
        ),
        (
            {"table_bytes": 24576, "max_addresses": 100},
            [put("a", addresses(7), balance="hash_source"), put("b", addresses(100), balance="hash_source")],
            "raise limits.table_bytes",
        ),
    ],
)
def test_a_full_table_refuses_the_batch_and_stays(
    limits: dict[str, int], batch: list[dict[str, Any]], message: str
) -> None:
    table = make_table(**limits)
    table.apply([put("kept", addresses(3))])
    before = everything(table)
    settings_update = {"op": "settings", "values": {"attempts": 3}}
    for _ in range(5):
        with pytest.raises(_core.TableFull) as caught:
            table.apply([settings_update, *batch])
        assert message in str(caught.value)
        assert everything(table) == before
    # There is room for what fits.
    table.apply([put("kept", addresses(4))])
    assert content(table) == {("outbound", "kept"): put("kept", addresses(4))}


def test_a_table_that_cannot_hold_its_limits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"table_bytes 4096 is out of range: 64 services and 256 addresses take \d+"):
        make_table(table_bytes=4096)
    with pytest.raises(ValueError, match=r"workers 65 is out of range; use 1\.\.64"):
        make_table(workers=65)


# --- memory comes back


def test_a_record_in_reach_of_a_worker_is_not_used_again(probe: ModuleType) -> None:
    table = make_table()
    table.apply([put("a", addresses(3))])
    table.reclaim()
    probe.enter(table, 1)
    table.apply([put("a", addresses(4))])
    assert table.reclaim() == 0
    assert table.memory()["arena_retired"] > 0
    # A worker that enters after the update cannot reach the old record; it holds back nothing.
    probe.enter(table, 0)
    assert table.reclaim() == 0
    probe.leave(table, 1)
    assert table.reclaim() == 1
    assert table.memory()["arena_retired"] == 0


def test_numbers_are_used_again_only_out_of_reach(probe: ModuleType) -> None:
    table = make_table(max_services=2, max_addresses=2)
    table.apply([put("a", addresses(2)), put("b", [])])
    probe.enter(table, 0)
    table.apply([delete("a")])
    with pytest.raises(_core.TableFull, match="1 are in use and 1 wait until no worker reads them"):
        table.apply([put("c", [])])
    with pytest.raises(_core.TableFull, match="addresses: all 2 are in use or wait"):
        table.apply([put("b", [["10.9.9.9", 1, 1]])])
    probe.leave(table, 0)
    table.apply([put("c", []), put("b", [["10.9.9.9", 1, 1]])])
    assert sorted(table.services("outbound")) == ["b", "c"]


def test_a_number_used_again_has_another_generation(probe: ModuleType) -> None:
    """A worker that remembers a deleted service does not take its successor for it."""
    table = make_table(max_services=1)
    picker = probe.Picker(table)
    seen = set()
    for name in "abcd":
        table.apply([put(name, [])])
        sid, gen = picker.sid_of(name)
        assert probe.has_sid(table, sid, gen)
        table.apply([put(name, addresses(1))])
        assert picker.sid_of(name) == (sid, gen)
        table.apply([delete(name)])
        assert not probe.has_sid(table, sid, gen)
        seen.add((sid, gen))
    assert {sid for sid, _ in seen} == {0}
    assert len(seen) == 4


def test_an_address_with_requests_under_way_is_not_used_again(probe: ModuleType) -> None:
    table = make_table(max_addresses=1)
    table.apply([put("a", addresses(1))])
    picker = probe.Picker(table)
    number, gen = picker.address_of("a", 0)
    picker.set_inflight(1, "a", 0, 2)
    table.apply([put("a", [])])
    with pytest.raises(_core.TableFull, match="addresses"):
        table.apply([put("b", [["10.9.9.9", 1, 1]])])
    # The same address may come back at any time, and is still itself.
    table.apply([put("a", addresses(1))])
    assert picker.address_of("a", 0) == (number, gen)
    table.apply([put("a", [])])
    table.reset_worker(1)
    table.apply([put("b", [["10.9.9.9", 1, 1]])])
    assert picker.address_of("b", 0) == (number, gen + 1)


def test_a_new_address_inherits_no_ejection(probe: ModuleType) -> None:
    table = make_table(max_addresses=1)
    table.apply([put("a", addresses(1))])
    picker = probe.Picker(table)
    picker.failed("a", 0, 1000, 1, 0xFFFFFFFF)
    assert table.explain_pick("outbound", "a")[0]["ejected_for_ms"] > 0
    table.apply([put("a", [])])
    table.apply([put("a", [["10.9.9.9", 1, 1]])])
    assert table.explain_pick("outbound", "a")[0]["ejected_for_ms"] == 0


def test_endless_change_needs_no_more_memory() -> None:
    table = make_table(max_services=16, max_addresses=64, table_bytes=1 << 20)
    seed = random.Random(1)
    live: dict[str, dict[str, Any]] = {}
    for _ in range(20_000):
        name = str(seed.randrange(16))
        if name in live and seed.random() < 0.3:
            table.apply([delete(name)])
            del live[name]
        else:
            start = seed.randrange(64)
            numbers = range(start, start + seed.randrange(4))
            endpoints = [[f"10.0.{i % 64}.1", 80, seed.randrange(1, 9)] for i in numbers]
            update = put(name, endpoints, balance=seed.choice(["round_robin", "least_request", "hash_source"]))
            table.apply([update])
            live[name] = update
    assert content(table) == {("outbound", name): update for name, update in live.items()}
    table.apply([delete(name) for name in live])
    table.apply([])
    table.reclaim()
    sizes = table.memory()
    assert sizes["services"] == sizes["endpoints"] == sizes["addresses"] == sizes["arena_retired"] == 0
    assert sizes["arena_used"] - sizes["arena_free"] == 64  # the settings


# --- against a model

NAMES = [f"s{i}" for i in range(6)]
ENDPOINTS = st.lists(
    st.tuples(st.sampled_from([f"10.0.0.{i}" for i in range(12)]), st.just(80), st.integers(1, 5)).map(list), max_size=6
)
PUTS = st.builds(
    put,
    st.sampled_from(NAMES),
    ENDPOINTS,
    direction=st.sampled_from(["outbound", "inbound"]),
    protocol=st.sampled_from(_core.PROTOCOLS),
    balance=st.sampled_from(["round_robin", "least_request", "hash_source"]),
    retry=st.booleans(),
    single=st.booleans(),
    grouped=st.booleans(),
    request_ms=st.integers(0, 9),
)
DELETES = st.builds(delete, st.sampled_from(NAMES), st.sampled_from(["outbound", "inbound"]))
BATCHES = st.lists(st.one_of(PUTS, PUTS, DELETES), max_size=8)
# A worker enters or leaves, or memory is reclaimed, between batches.
STEPS = st.lists(st.one_of(BATCHES, BATCHES, st.sampled_from(["enter", "leave", "reclaim"])), max_size=30)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_a_dict_does(probe: ModuleType, steps: list[Any]) -> None:
    table = make_table(max_services=8, max_addresses=16, table_bytes=32 << 10)
    model: dict[tuple[str, str], dict[str, Any]] = {}
    for step in steps:
        if step == "enter":
            probe.enter(table, 0)
        elif step == "leave":
            probe.leave(table, 0)
        elif step == "reclaim":
            table.reclaim()
        else:
            try:
                table.apply(step)
            except _core.TableFull:
                assert content(table) == model
                continue
            for update in step:
                key = update["direction"], update["service"]
                if update["op"] == "put":
                    model[key] = update
                else:
                    model.pop(key, None)
        assert content(table) == model
        assert table.memory()["services"] == len(model)
        assert table.memory()["endpoints"] == sum(len(update["endpoints"]) for update in model.values())
    probe.leave(table, 0)
    table.apply([delete(name, direction) for direction, name in model])
    table.reclaim()
    sizes = table.memory()
    assert sizes["addresses"] == sizes["arena_retired"] == 0
    assert sizes["arena_used"] - sizes["arena_free"] == 64


# --- other processes


def test_attach_reads_what_the_writer_wrote() -> None:
    table = make_table()
    reader = _core.Table.attach(table.table_fd, table.state_fd)
    assert reader.services("outbound") == []
    table.apply([put("a", addresses(3)), {"op": "settings", "values": {"attempts": 3}}])
    assert content(reader) == content(table)
    assert reader.settings() == table.settings()
    assert reader.version == 1
    assert reader.table_fd != table.table_fd
    for change in (
        lambda: reader.apply([]),
        lambda: reader.reclaim(),
        lambda: reader.reset_worker(0),
        lambda: reader.set_slot_owner(0, 1),
    ):
        with pytest.raises(RuntimeError, match="for reading only; the master is its writer"):
            change()


def test_a_sealed_table_is_read_only() -> None:
    table = make_table()
    table.apply([put("a", addresses(3))])
    table.seal()
    assert table.services("outbound") == ["a"]
    with pytest.raises(RuntimeError, match="for reading only"):
        table.apply([])


def copy_of(fd: int) -> int:
    copy = os.memfd_create("copy")
    os.sendfile(copy, fd, 0, os.fstat(fd).st_size)
    return copy


@pytest.fixture
def filled() -> _core.Table:
    table = make_table(max_services=16, max_addresses=32, table_bytes=128 << 10)
    table.apply([put(f"s{i}", addresses(i % 5, i + 1), balance=_core.BALANCES[i % 3]) for i in range(12)])
    table.apply([delete("s3"), put("s4", addresses(9))])
    return table


def test_attach_refuses_what_is_no_table(filled: _core.Table) -> None:
    empty = os.memfd_create("empty")
    zeros = os.memfd_create("zeros")
    os.ftruncate(zeros, os.fstat(filled.table_fd).st_size)
    short = copy_of(filled.table_fd)
    os.ftruncate(short, os.fstat(short).st_size - 4096)
    for fd in (empty, zeros, short, filled.state_fd):
        with pytest.raises(ValueError, match=r"not a routing table|of another version or damaged"):
            _core.Table.attach(fd, filled.state_fd)
    with pytest.raises(ValueError, match=r"workers' state is of another version or damaged"):
        _core.Table.attach(filled.table_fd, filled.table_fd)
    for fd in (empty, zeros, short):
        os.close(fd)


def read_all(table: _core.Table) -> int:
    """Reads everything; returns how often the answer was that the table is damaged."""
    reads: list[Callable[[], Any]] = [lambda: table.services("outbound"), table.settings]
    for i in range(12):
        reads.append(partial(table.lookup, "outbound", f"s{i}"))
        reads.append(partial(table.explain_pick, "outbound", f"s{i}", 99))
    errors = 0
    for read in reads:
        try:
            read()
        except ValueError:
            errors += 1
    return errors


def test_a_damaged_table_gives_errors_and_no_crash(filled: _core.Table) -> None:
    """Wrong bytes anywhere: every read gives a value or a ValueError. In a child process, which must not crash."""

    def damage_and_read() -> None:
        seed = random.Random(7)
        sizes = filled.memory()
        arena = sizes["table_bytes"] - sizes["arena_bytes"]
        errors = 0
        for _ in range(1000):
            damaged = copy_of(filled.table_fd)
            first = seed.choice([0, arena])
            for _ in range(seed.choice([1, 2, 8, 64])):
                value = seed.choice([0, 1, 8, 255, seed.randrange(256)])
                os.pwrite(damaged, bytes([value]), seed.randrange(first, arena + sizes["arena_used"]))
            try:
                errors += read_all(_core.Table.attach(damaged, filled.state_fd))
            except ValueError:
                errors += 1
            os.close(damaged)
        assert errors > 100

    assert os.waitpid(fork(damage_and_read), 0)[1] == 0


# --- workers' blocks


def test_reset_worker_clears_its_own_cells_only(probe: ModuleType) -> None:
    table = make_table(max_addresses=5000, table_bytes=1 << 20)
    table.apply([put("a", addresses(5000))])
    picker = probe.Picker(table)
    for slot in (0, 1):
        for index in (0, 1023, 1024, 4999):
            picker.set_inflight(slot, "a", index, slot + 1)
        probe.enter(table, slot)
    table.reset_worker(0)
    inflight = [endpoint["inflight"] for endpoint in table.explain_pick("outbound", "a")]
    assert [inflight[index] for index in (0, 1023, 1024, 4999)] == [2, 2, 2, 2]
    assert sum(inflight) == 8
    table.apply([put("a", [])])
    assert table.reclaim() == 0  # worker 1 is still inside
    table.reset_worker(1)
    assert table.reclaim() == 1
    assert table.worker(1) == {
        "pid": 0,
        "state": "down",
        "applied_version": 0,
        "listeners_version": 0,
        "heartbeat_ns": 0,
        "connections": 0,
        "asleep": True,
    }
    for call in (table.reset_worker, table.worker, lambda slot: table.set_slot_owner(0, slot)):
        with pytest.raises(IndexError, match="worker 2 of 2"):
            call(2)
