"""Balancing: shares, spread, stability of the consistent hash, and what is left out."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastside import _core
from table_support import addresses, load_probe, put


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_probe()


def weighted(*weights: int) -> list[list[Any]]:
    return [[f"10.0.{i >> 8}.{i & 255}", 80, weight] for i, weight in enumerate(weights)]


def make_table(endpoints: list[list[Any]], balance: str, **changes: Any) -> _core.Table:
    """A table with one service, "a"."""
    table = _core.Table(
        max_services=16, max_addresses=4096, table_bytes=4 << 20, workers=3, max_connections=1, stat_slots=2
    )
    table.apply([put("a", endpoints, balance=balance, **changes)])
    return table


BALANCES = ["round_robin", "least_request", "hash_source"]

# --- round robin


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=12), seed=st.integers(0, 2**64 - 1))
def test_round_robin_keeps_exact_proportions(probe: ModuleType, weights: list[int], seed: int) -> None:
    """In every run of as many calls as the weights add up to, from wherever a worker begins."""
    picker = probe.Picker(make_table(weighted(*weights), "round_robin"), seed)
    for _ in range(3):
        counts = Counter(picker.pick("a") for _ in range(sum(weights)))
        assert [counts[i] for i in range(len(weights))] == weights


def test_round_robin_of_equal_weights_takes_turns(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(weighted(7, 7, 7), "round_robin"))
    picks = [picker.pick("a") for _ in range(30)]
    assert all((after - before) % 3 == 1 for before, after in pairwise(picks))


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=2, max_size=12))
def test_round_robin_spreads_each_endpoint(probe: ModuleType, weights: list[int]) -> None:
    """No bursts and no droughts: in every stretch of calls, each endpoint has its share, give or take five calls."""
    picker = probe.Picker(make_table(weighted(*weights), "round_robin"))
    total = sum(weights)
    picks = [picker.pick("a") for _ in range(2 * total)]
    for endpoint, weight in enumerate(weights):
        # How far the calls so far are ahead of the share; a stretch's error is the difference of two of these.
        ahead = [0.0]
        for pick in picks:
            ahead.append(ahead[-1] + (pick == endpoint) - weight / total)
        assert max(ahead) - min(ahead) <= 5


def test_workers_begin_at_different_endpoints(probe: ModuleType) -> None:
    table = make_table(addresses(8), "round_robin")
    assert len({probe.Picker(table, seed).pick("a") for seed in range(64)}) > 4


# --- least request


def test_least_request_takes_the_less_loaded_of_two(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(addresses(2), "least_request"))
    # The sums over all workers count: 3 against 4.
    picker.set_inflight(0, "a", 0, 3)
    picker.set_inflight(1, "a", 1, 2)
    picker.set_inflight(2, "a", 1, 2)
    assert {picker.pick("a") for _ in range(200)} == {0}
    picker.set_inflight(2, "a", 0, 2)
    assert {picker.pick("a") for _ in range(200)} == {1}


def test_least_request_never_takes_the_most_loaded(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(addresses(5), "least_request"))
    for index in range(5):
        picker.set_inflight(0, "a", index, index)
    counts = Counter(picker.pick("a") for _ in range(5000))
    # Of two distinct endpoints the lesser: shares of 4, 3, 2, 1 and 0 tenths.
    for index in range(5):
        assert counts[index] == pytest.approx(500 * (4 - index), abs=150)
    assert counts[4] == 0


def test_least_request_counts_load_by_weight(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(weighted(1, 3), "least_request"))
    counts = Counter(picker.pick("a") for _ in range(4000))
    assert counts[1] == pytest.approx(3000, abs=150)  # at rest: by weight
    picker.set_inflight(0, "a", 0, 2)
    picker.set_inflight(0, "a", 1, 5)
    assert Counter(picker.pick("a") for _ in range(1000))[1] > 850  # 2 each against 5/3 each
    picker.set_inflight(0, "a", 1, 7)
    assert Counter(picker.pick("a") for _ in range(1000))[0] > 300  # 7/3 each: the light one's turn when both are drawn


def test_least_request_evens_out_the_load(probe: ModuleType) -> None:
    """Requests of random length: the fullest endpoint stays near the mean, far below what chance alone would do."""
    seed = random.Random(2)
    picker = probe.Picker(make_table(addresses(16), "least_request"))
    inflight = [0] * 16
    running: list[int] = []
    for _ in range(5000):
        index = picker.pick("a")
        inflight[index] += 1
        running.append(index)
        if len(running) > 320:
            done = running.pop(seed.randrange(len(running)))
            inflight[done] -= 1
            picker.set_inflight(0, "a", done, inflight[done])
        picker.set_inflight(0, "a", index, inflight[index])
    assert max(inflight) <= 26
    assert min(inflight) >= 14


# --- consistent hash


def owners(probe: ModuleType, table: _core.Table, names: list[str], keys: int = 20_000) -> list[str]:
    """The endpoint of each of many hashes."""
    picker = probe.Picker(table)
    return [names[picker.pick("a", probe.hash_of(key.to_bytes(4, "little")))] for key in range(keys)]


def names_of(endpoints: list[list[Any]]) -> list[str]:
    return [endpoint[0] for endpoint in endpoints]


@pytest.mark.parametrize("count", [2, 3, 10, 100, 700])
def test_the_hash_shares_evenly(probe: ModuleType, count: int) -> None:
    endpoints = addresses(count)
    counts = Counter(owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints)))
    mean = 20_000 / count
    assert set(counts) == set(names_of(endpoints))
    # The table's own unevenness and that of the sample: five standard deviations.
    assert max(counts.values()) <= mean * 1.03 + 5 * mean**0.5
    assert min(counts.values()) >= mean * 0.97 - 5 * mean**0.5


def test_the_hash_shares_by_weight(probe: ModuleType) -> None:
    weights = [1, 2, 3, 10, 100]
    endpoints = weighted(*weights)
    counts = Counter(owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints)))
    for (name, _, weight), _ in zip(endpoints, weights, strict=True):
        share = 20_000 * weight / sum(weights)
        assert counts[name] == pytest.approx(share, rel=0.1, abs=5 * share**0.5 + 40)


@pytest.mark.parametrize("count", [3, 4, 6, 11, 21, 50, 500])
def test_removing_an_endpoint_moves_little_beside_its_own_share(probe: ModuleType, count: int) -> None:
    endpoints = addresses(count)
    before = owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints))
    removed = endpoints.pop(count // 2)
    after = owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints))
    moved = sum(1 for old, new in zip(before, after, strict=True) if old != new and old != removed[0])
    assert removed[0] not in after
    assert moved / 20_000 < 0.05


def test_the_hash_depends_on_the_endpoints_alone(probe: ModuleType) -> None:
    """Not on their order, nor on the process: another sidecar sends the same key to the same endpoint."""
    endpoints = weighted(1, 1, 2, 5, 1, 1, 3)
    first = owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints), 2000)
    random.Random(3).shuffle(endpoints)
    second = owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints), 2000)
    assert first == second


def test_the_hash_serves_more_endpoints_than_the_largest_table_has_hundreds(probe: ModuleType) -> None:
    endpoints = addresses(4000)
    counts = Counter(owners(probe, make_table(endpoints, "hash_source"), names_of(endpoints)))
    assert len(counts) > 3900


def test_a_left_out_endpoint_falls_to_all_others(probe: ModuleType) -> None:
    """The keys of an ejected endpoint spread; all others stay where they are."""
    picker = probe.Picker(make_table(addresses(10), "hash_source"))
    hashes = [probe.hash_of(key.to_bytes(4, "little")) for key in range(20_000)]
    before = [picker.pick("a", h) for h in hashes]
    picker.failed("a", 4, 1, 1, 1000)
    after = [picker.pick("a", h) for h in hashes]
    heirs = Counter(new for old, new in zip(before, after, strict=True) if old == 4)
    assert [new for old, new in zip(before, after, strict=True) if old != 4] == [old for old in before if old != 4]
    assert set(heirs) == set(range(10)) - {4}
    assert max(heirs.values()) < sum(heirs.values()) / 3


def test_hash_bytes_has_no_pattern(probe: ModuleType) -> None:
    """Every input bit and every seed bit flips about half of the output bits, at any length."""
    seed = random.Random(5)
    for length in [1, 3, 7, 8, 9, 15, 16, 17, 33]:
        for bit in range(8 * length):
            flipped = 0
            for _ in range(50):
                data = seed.randbytes(length)
                other = (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(length, "little")
                flipped += (probe.hash_of(data) ^ probe.hash_of(other)).bit_count()
            assert 26 <= flipped / 50 <= 38
    # Zeros of different lengths are different.
    assert len({probe.hash_of(bytes(length)) for length in range(256)}) == 256
    assert len({probe.hash_of(b"", 1 << bit) for bit in range(64)}) == 64
    # Short sequential keys fill buckets evenly, whatever bits choose the bucket.
    for shift in (0, 8, 32, 56):
        buckets = Counter(probe.hash_of(b"svc-%d" % i) >> shift & 255 for i in range(25_600))
        assert max(buckets.values()) < 160
        assert min(buckets.values()) > 50


# --- what is left out


@pytest.mark.parametrize("balance", BALANCES)
def test_no_endpoints_no_choice(probe: ModuleType, balance: str) -> None:
    assert probe.Picker(make_table([], balance)).pick("a") is None


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (4, 1, 2, 9)])
def test_tried_endpoints_are_not_tried_again(probe: ModuleType, balance: str, weights: tuple[int, ...]) -> None:
    picker = probe.Picker(make_table(weighted(*weights), balance))
    for hash_value in range(200):
        tried: list[int] = []
        while (index := picker.pick("a", hash_value, tried=tried)) is not None:
            assert index not in tried
            tried.append(index)
        assert sorted(tried) == [0, 1, 2, 3]


@pytest.mark.parametrize("balance", BALANCES)
def test_one_usable_among_many_is_found(probe: ModuleType, balance: str) -> None:
    """Also where the policy's own order would hardly ever come to it."""
    picker = probe.Picker(make_table(weighted(*[60000] * 400, 1), balance))
    for index in range(400):
        picker.failed("a", index, 1, 1, 1000)
    assert {picker.pick("a", hash_value) for hash_value in range(50)} == {400}


@pytest.mark.parametrize("balance", BALANCES)
def test_an_ejected_endpoint_is_left_out_until_its_time(probe: ModuleType, balance: str) -> None:
    picker = probe.Picker(make_table(addresses(3), balance))
    now = 1_000_000
    picker.failed("a", 1, now, 1, 500)
    hashes = range(0, 1 << 20, 999)
    assert {picker.pick("a", h, now + 499) for h in hashes} == {0, 2}
    assert {picker.pick("a", h, now + 500) for h in hashes} == {0, 1, 2}


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("weights", [(1, 1, 1), (8, 5, 4)])
def test_when_all_are_ejected_none_is(probe: ModuleType, balance: str, weights: tuple[int, ...]) -> None:
    picker = probe.Picker(make_table(weighted(*weights), balance))
    for index in range(3):
        picker.failed("a", index, 1, 1, 1000)
    hashes = range(0, 1 << 20, 999)
    assert {picker.pick("a", h) for h in hashes} == {0, 1, 2}
    assert {picker.pick("a", h, tried=[1]) for h in hashes} == {0, 2}
    assert picker.pick("a", tried=[0, 1, 2]) is None
    # One of those that were not tried is back: it alone is taken.
    picker.succeeded("a", 2)
    assert {picker.pick("a", h, tried=[1]) for h in hashes} == {2}


def test_round_robin_shares_the_load_of_an_ejected_endpoint(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(addresses(4), "round_robin"))
    picker.failed("a", 1, 1, 1, 1000)
    counts = Counter(picker.pick("a") for _ in range(300))
    assert counts == {0: 100, 2: 100, 3: 100}


def test_round_robin_takes_turns_among_the_few_that_are_left(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(addresses(60), "round_robin"))
    for index in range(60):
        if index not in (30, 31, 50):
            picker.failed("a", index, 1, 1, 1000)
    assert Counter(picker.pick("a") for _ in range(300)) == {30: 100, 31: 100, 50: 100}


def test_consecutive_failures_eject_for_doubling_times(probe: ModuleType) -> None:
    table = make_table(addresses(2), "round_robin")
    picker = probe.Picker(table)

    def ejected(now: int) -> bool:
        return 0 not in {picker.pick("a", 0, now) for _ in range(8)}

    now = 1000
    for _ in range(2):
        picker.failed("a", 0, now, 3, 100)
        assert not ejected(now)
    picker.failed("a", 0, now, 3, 100)
    for lasts in [100, 200, 400, 800, 1600, 3200, 3200, 3200]:
        assert ejected(now + lasts - 1)
        # Attempts that began before do not count.
        picker.failed("a", 0, now + lasts - 1, 3, 100)
        now += lasts
        assert not ejected(now)
        picker.failed("a", 0, now, 3, 100)
    picker.succeeded("a", 0)
    assert not ejected(now)
    for _ in range(2):
        picker.failed("a", 0, now, 3, 100)
        picker.succeeded("a", 0)
    picker.failed("a", 0, now, 3, 100)
    assert not ejected(now)


def test_ejection_can_be_off(probe: ModuleType) -> None:
    picker = probe.Picker(make_table(addresses(2), "round_robin"))
    for _ in range(100):
        picker.failed("a", 0, 1, 0, 1000)
    assert {picker.pick("a") for _ in range(4)} == {0, 1}


# --- what explain shows


def test_explain_shows_what_balancing_looks_at(probe: ModuleType) -> None:
    table = make_table(weighted(1, 2, 1), "hash_header", hash_header="x-user")
    table.apply([{"op": "listeners", "addresses": [["10.0.0.2", 80]]}])
    picker = probe.Picker(table)
    picker.set_inflight(0, "a", 1, 4)
    picker.set_inflight(2, "a", 1, 1)
    picker.failed("a", 0, 1, 1, 0xFFFFFFFF)
    for key in range(20):
        value = probe.hash_of(b"%d" % key)
        explained = table.explain_pick("outbound", "a", value)
        (chosen,) = [i for i, endpoint in enumerate(explained) if endpoint.pop("chosen")]
        assert chosen == picker.pick("a", value)
        ejected_for = explained[0].pop("ejected_for_ms")
        assert 0 < ejected_for < 0xFFFFFFFF
        assert explained == [
            {"address": "10.0.0.0:80", "weight": 1, "inflight": 0, "failures": 1, "loop": False},
            {"address": "10.0.0.1:80", "weight": 2, "inflight": 5, "failures": 0, "loop": False, "ejected_for_ms": 0},
            {"address": "10.0.0.2:80", "weight": 1, "inflight": 0, "failures": 0, "loop": True, "ejected_for_ms": 0},
        ]
    assert table.explain_pick("outbound", "b") == []
