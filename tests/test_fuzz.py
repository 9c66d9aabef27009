"""The fuzzers of the parsers find nothing in a bounded time, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
TARGETS = sorted(path.name.removesuffix("_target.pyx") for path in FUZZ.glob("*_target.pyx"))
SECONDS = 15
NO_CLANG = 3


@pytest.mark.parametrize("target", TARGETS)
def test_fuzzer_finds_nothing(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ / "run.py"), target, "--seconds", str(SECONDS), "--work", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300, check=False)
    if result.returncode == NO_CLANG and os.environ.get("CI") != "true":
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr[-4000:]
    assert "DONE" in result.stderr  # it ran to the end of its time
