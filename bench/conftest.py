"""Registers the marker of the measurements."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bench: measures the running forwarder; takes up to a minute and both CPUs")
