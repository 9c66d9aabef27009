"""Which endpoints stay in use: the state machine, on a clock of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastside.registry import Address, Endpoint, Listing
from fastside.registry.view import State, View

A, B, C = (Endpoint(Address(f"10.0.0.{n}", 20881)) for n in (1, 2, 3))
PROTECTION, STALE = 60.0, 3600.0


def listing(*endpoints, epoch="e1", index=1, deregistered=()):
    return Listing("svc-a", epoch, index, endpoints, frozenset(endpoint.address for endpoint in deregistered))


def states(view):
    return {known.endpoint: known.state for known in view.endpoints}


@pytest.fixture
def view():
    view = View(PROTECTION, STALE, now=0.0)
    view.listing(listing(A, B), now=0.0)
    return view


def test_a_new_view_has_nothing():
    view = View(PROTECTION, STALE, now=0.0)
    assert (view.state, view.endpoints, view.answered, view.deadline()) == (State.GONE, [], False, None)


def test_listed_is_fresh(view):
    assert view.state is State.FRESH
    assert states(view) == {A: State.FRESH, B: State.FRESH}
    assert view.deadline() is None


def test_missing_from_a_list_counts_at_once(view):
    assert view.listing(listing(A), now=1.0)
    assert states(view) == {A: State.FRESH}


def test_an_empty_list_is_honoured_after_the_protection(view):
    assert view.listing(listing(), now=10.0)
    assert view.state is State.PROTECTED
    assert states(view) == {A: State.PROTECTED, B: State.PROTECTED}
    assert view.deadline() == 10.0 + PROTECTION
    assert not view.expire(now=10.0 + PROTECTION - 0.1)
    assert not view.listing(listing(), now=20.0)  # the same again does not prolong it
    assert view.expire(now=10.0 + PROTECTION)
    assert (view.state, view.endpoints) == (State.GONE, [])


def test_deregistered_counts_at_once_even_in_an_empty_list(view):
    view.listing(listing(deregistered=[A]), now=10.0)
    assert states(view) == {B: State.PROTECTED}
    view.listing(listing(deregistered=[B]), now=11.0)
    assert view.state is State.GONE


def test_what_comes_back_is_fresh_again(view):
    view.listing(listing(), now=10.0)
    view.listing(listing(A, C), now=11.0)
    assert states(view) == {A: State.FRESH, C: State.FRESH, B: State.PROTECTED}
    assert view.state is State.PROTECTED


def test_while_the_registry_is_away_everything_is_stale(view):
    assert view.away(now=5.0)
    assert not view.away(now=6.0)
    assert states(view) == {A: State.STALE, B: State.STALE}
    assert view.deadline() == 5.0 + STALE
    assert view.current(now=100.0)
    assert view.state is State.FRESH


def test_stale_ends(view):
    view.away(now=5.0)
    assert view.expire(now=5.0 + STALE)
    assert (view.state, view.endpoints) == (State.GONE, [])


def test_a_registry_that_lost_its_memory_does_not_drop_endpoints(view):
    view.away(now=5.0)
    view.listing(listing(epoch="e2"), now=6.0)
    assert states(view) == {A: State.PROTECTED, B: State.PROTECTED}
    view.listing(listing(A, epoch="e2", index=2), now=7.0)  # A was quicker to register again than B
    assert states(view) == {A: State.FRESH, B: State.PROTECTED}
    view.listing(listing(A, B, epoch="e2", index=3), now=8.0)
    assert view.state is State.FRESH


def test_after_the_grace_of_a_new_epoch_missing_counts_at_once_again(view):
    view.listing(listing(A, B, epoch="e2"), now=6.0)
    view.listing(listing(A, epoch="e2"), now=6.0 + PROTECTION)
    assert states(view) == {A: State.FRESH}


def test_a_changed_weight_is_a_change(view):
    heavier = A._replace(weight=3)
    assert view.listing(listing(heavier, B), now=1.0)
    assert states(view) == {heavier: State.FRESH, B: State.FRESH}


def test_a_restart_keeps_the_endpoints_and_their_ages(view):
    view.listing(listing(), now=10.0)
    view.listing(listing(C), now=20.0)
    view.away(now=30.0)
    saved = view.save(now=35.0)
    again = View.restore(saved, PROTECTION, STALE, now=1000.0, age=4.0)  # another process, another monotonic clock
    assert states(again) == {C: State.STALE, A: State.PROTECTED, B: State.PROTECTED}
    assert again.deadline() == 1000.0 - (25.0 + 4.0) + PROTECTION
    assert again.expire(now=1000.0 + PROTECTION - 29.0)
    assert states(again) == {C: State.STALE}
    assert again.expire(now=1000.0 + STALE - 9.0)
    assert again.state is State.GONE


def test_a_snapshot_that_is_too_old_is_gone(view):
    again = View.restore(view.save(now=0.0), PROTECTION, STALE, now=50.0, age=STALE)
    assert again.state is State.GONE


def test_after_a_restart_the_same_epoch_is_trusted_at_once(view):
    again = View.restore(view.save(now=0.0), PROTECTION, STALE, now=50.0, age=1.0)
    again.listing(listing(A), now=51.0)
    assert states(again) == {A: State.FRESH}


endpoints = st.lists(st.sampled_from([A, B, C]), unique=True)
steps = st.one_of(
    st.tuples(st.just("listing"), endpoints, st.sampled_from(["e1", "e2"]), endpoints),
    st.tuples(st.just("away")),
    st.tuples(st.just("current")),
    st.tuples(st.just("expire")),
)


@given(st.lists(st.tuples(st.floats(0.0, 40.0), steps), max_size=30))
def test_whatever_happens(history):
    """Listed endpoints are in use, deregistered ones are not, and nothing outlives its time or is reported wrongly."""
    view, now = View(PROTECTION, STALE, now=0.0), 0.0
    for pause, step in history:
        now += pause
        before = (view.state, states(view))
        if step[0] == "listing":
            _, listed, epoch, gone = step
            gone = [endpoint for endpoint in gone if endpoint not in listed]
            changed = view.listing(listing(*listed, epoch=epoch, deregistered=gone), now)
            assert all(states(view).get(endpoint) is State.FRESH for endpoint in listed)
            assert not any(endpoint in states(view) for endpoint in gone)
        else:
            changed = getattr(view, step[0])(now)
        assert changed == ((view.state, states(view)) != before)
        deadline = view.deadline()
        assert deadline is None or deadline > now or step[0] == "away"
        assert len(view.endpoints) == len({known.endpoint.address for known in view.endpoints})
    view.expire(now + STALE + PROTECTION)
    view.away(now)
    view.expire(now + STALE + PROTECTION)
    assert view.endpoints == []
