"""The C tools of the measurements, compiled when they are first needed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def tool(name: str) -> Path:
    """Return the path of the compiled bench/NAME.c. Raises subprocess.CalledProcessError if it does not compile."""
    source = HERE / f"{name}.c"
    texts = [source.read_bytes(), *(header.read_bytes() for header in sorted(HERE.glob("*.h")))]
    digest = hashlib.sha256(b"".join(texts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastside-bench"
    binary = folder / f"{name}-{digest}"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", unfinished, source], check=True)
        unfinished.replace(binary)
    return binary
