"""Fixtures of the tests with real SDKs: `make interop` builds what they need and runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import require_root
from hosts import Hosts, two_hosts
from pairs import PAIRS, Pair

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


@pytest.fixture(scope="session", params=PAIRS, ids=lambda pair: "-to-".join(map(str, pair)))
def pair(hosts: Hosts, logs: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A consumer and a provider that call each other through their hosts' sidecars."""
    with Pair(hosts, *request.param, logs) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the ends of the logs with a test that failed."""
    report = yield
    directory = getattr(item, "funcargs", {}).get("logs")
    if report.failed and directory:
        for path in sorted(directory.rglob("*.log")):
            report.sections.append((f"end of {path.relative_to(directory)}", path.read_text()[-LOG_BYTES:]))
    return report
