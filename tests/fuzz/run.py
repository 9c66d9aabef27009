"""Builds the fuzzer of the HTTP/1.1 parser with clang and runs it for a bounded time.

Exit status: 0 nothing found, 1 something found, 2 it does not build, 3 there is no clang.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SANITIZE = "-fsanitize=fuzzer,address,undefined"
sys.path.insert(0, str(HERE.parent))

from http1_corpus import (  # noqa: E402
    INVALID_CHUNKS,
    INVALID_REQUESTS,
    INVALID_RESPONSES,
    VALID_CHUNKS,
    VALID_REQUESTS,
    VALID_RESPONSES,
)


def find_clang() -> str | None:
    """The newest clang, also under a name with a version as Debian installs it."""
    names = ["clang", *(f"clang-{version}" for version in range(25, 10, -1))]
    return next((path for name in names if (path := shutil.which(name))), None)


def build(clang: str, work: Path) -> Path:
    """Compiles the target into work; raises CalledProcessError with the compiler's words in stderr."""
    source = work / "http1_target.c"
    directives = "language_level=3,boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"
    cython = (sys.executable, "-m", "cython", "-X", directives, "-I", str(ROOT / "fastside"))
    run(*cython, str(HERE / "http1_target.pyx"), "-o", str(source))
    target = work / "http1_target.o"
    headers = sysconfig.get_paths()["include"]
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", SANITIZE]
    run(clang, *flags, "-w", "-c", f"-I{headers}", f"-I{ROOT / 'fastside'}", str(source), "-o", str(target))
    # The generated module also holds code for Python, which is never run here. Its symbols get a place each, so that
    # no Python library is needed to link; a call to one would crash and so be found.
    symbols = run("nm", "--undefined-only", "--format=just-symbols", str(target)).split()
    places = work / "python_symbols.c"
    places.write_text("".join(f"long {name}[64];\n" for name in symbols if re.match("_?Py", name)))
    program = work / "http1_target"
    run(clang, SANITIZE, str(target), "-x", "c", str(places), "-o", str(program))
    return program


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write_seeds(seeds: Path) -> None:
    seeds.mkdir(exist_ok=True)
    requests = [*(raw for raw, _ in VALID_REQUESTS), *(raw for each in INVALID_REQUESTS.values() for raw in each)]
    responses = [*(raw for raw, *_ in VALID_RESPONSES), *(raw for each in INVALID_RESPONSES.values() for raw in each)]
    chunks = [*VALID_CHUNKS, *(raw for each in INVALID_CHUNKS.values() for raw in each)]
    inputs = [
        *(b"\0\x20" + raw for raw in requests),
        *(b"\1\x20" + raw for raw in responses),
        *(b"\2\0" + raw for raw in chunks),
        *(b"\3\0" + raw for raw in requests),
        *(b"\3\1" + raw for raw in responses),
    ]
    for number, data in enumerate(inputs):
        (seeds / f"{number:04}").write_bytes(data)


def fuzz(program: Path, work: Path, seconds: int) -> int:
    """Runs for that many seconds; returns the fuzzer's exit status. A finding is left in work as crash-*."""
    write_seeds(work / "seeds")
    (work / "corpus").mkdir(exist_ok=True)
    command = [str(program), f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-seed=1"]
    command += [f"-artifact_prefix={work}/", "-print_final_stats=1", str(work / "corpus"), str(work / "seeds")]
    environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=16"}
    return subprocess.run(command, check=False, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="how long to fuzz (default: 20)")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="where to build (default: .fuzz)")
    arguments = parser.parse_args()
    clang = find_clang()
    if clang is None:
        print("no clang found; on Debian: apt-get install clang", file=sys.stderr)
        return 3
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        program = build(clang, arguments.work)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 2
    return 1 if fuzz(program, arguments.work, arguments.seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
