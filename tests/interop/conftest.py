"""Fixtures of the tests with real SDKs: `make interop` builds what they need and runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import require_root
from hosts import Hosts, two_hosts
from pairs import PAIRS, Pair, pair_id

LOG_BYTES = 4000


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory under which everything that runs writes its log."""
    return tmp_path_factory.mktemp("interop")


@pytest.fixture(scope="session")
def hosts(logs: Path) -> Iterator[Hosts]:
    """The caller's host and the provider's, with their sidecars."""
    require_root()
    with two_hosts(logs) as running:
        yield running


@pytest.fixture(scope="session", params=PAIRS, ids=pair_id)
def running_pair(hosts: Hosts, logs: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Pair(hosts, *request.param, logs) as running:
        yield running


@pytest.fixture
def pair(running_pair: Pair) -> Iterator[Pair]:
    """A consumer and a provider that call each other through their hosts' sidecars. The provider's gate is closed."""
    yield running_pair
    running_pair.recover()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of a pair together, so that each pair is started once."""
    items.sort(key=_pair_number)


def _pair_number(item: pytest.Item) -> int:
    assert isinstance(item, pytest.Function)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return PAIRS.index(params["running_pair"]) if "running_pair" in params else -1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the ends of the logs with a test that failed."""
    report = yield
    directory = getattr(item, "funcargs", {}).get("logs")
    if report.failed and directory:
        for path in sorted(directory.rglob("*.log")):
            report.sections.append((f"end of {path.relative_to(directory)}", path.read_text()[-LOG_BYTES:]))
    return report
