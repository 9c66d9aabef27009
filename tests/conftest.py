"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import Origin, Sidecar


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A running sidecar on the test configuration."""
    with Sidecar() as running:
        yield running


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A running HTTP/1.1 origin."""
    with Origin() as running:
        yield running
