"""Builds the fuzzers of the parsers with clang and runs each for a bounded time.

Each target is a file NAME_target.pyx beside this one, and starts from the messages of its corpus.

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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MAX_LENGTH = 4096
SANITIZE = "-fsanitize=fuzzer,address,undefined"
sys.path.insert(0, str(HERE.parent))

import bolt_corpus  # noqa: E402
import dubbo_corpus  # noqa: E402
import http1_corpus  # noqa: E402
import sniff_corpus  # noqa: E402


def messages(valid: Iterable[tuple[Any, ...]], invalid: Mapping[str, list[bytes]]) -> list[bytes]:
    """The raw messages of a corpus."""
    return [raw for raw, *_ in valid] + [raw for refused in invalid.values() for raw in refused]


def http1_seeds() -> list[bytes]:
    corpus = http1_corpus
    requests = messages(corpus.VALID_REQUESTS, corpus.INVALID_REQUESTS)
    responses = messages(corpus.VALID_RESPONSES, corpus.INVALID_RESPONSES)
    chunks = messages([(raw,) for raw in corpus.VALID_CHUNKS], corpus.INVALID_CHUNKS)
    return [
        *(b"\0\x20" + raw for raw in requests),
        *(b"\1\x20" + raw for raw in responses),
        *(b"\2\0" + raw for raw in chunks),
        *(b"\3\0" + raw for raw in requests),
        *(b"\3\1" + raw for raw in responses),
    ]


def bolt_seeds() -> list[bytes]:
    return [b"\x12\x34\x56\x78" + raw for raw in messages(bolt_corpus.VALID, bolt_corpus.INVALID)]


def sniff_seeds() -> list[bytes]:
    hellos = [
        raw for raw in (*(raw for raw, _ in sniff_corpus.GOOD), *sniff_corpus.BAD.values()) if len(raw) < MAX_LENGTH
    ]
    return [
        *(b"\0" + raw[:64] for _, raw, _ in sniff_corpus.BEGINNINGS),
        *(b"\0" + raw for raw in hellos),
        *(b"\1\x20" + raw[9:] for raw in hellos),
    ]


def dubbo_seeds() -> list[bytes]:
    captured = (raw for name in dubbo_corpus.CAPTURE_NAMES for raw in dubbo_corpus.capture(name))
    frames = [*messages(dubbo_corpus.VALID, dubbo_corpus.INVALID), *captured]
    return [b"\1\0\0\0\0\0\0\0\5" + raw for raw in frames if len(raw) < MAX_LENGTH]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "http1": http1_seeds,
    "bolt": bolt_seeds,
    "dubbo": dubbo_seeds,
    "sniff": sniff_seeds,
}


def find_clang() -> str | None:
    """The newest clang, also under a name with a version as Debian installs it."""
    names = ["clang", *(f"clang-{version}" for version in range(25, 10, -1))]
    return next((path for name in names if (path := shutil.which(name))), None)


def build(clang: str, name: str, work: Path) -> Path:
    """Compiles the target of that name into work; raises CalledProcessError with the compiler's words in stderr."""
    source = work / "target.c"
    directives = "language_level=3,boundscheck=False,wraparound=False,initializedcheck=False,cdivision=True"
    cython = (sys.executable, "-m", "cython", "-X", directives, "-I", str(ROOT / "fastside"))
    run(*cython, str(HERE / f"{name}_target.pyx"), "-o", str(source))
    target = work / "target.o"
    headers = sysconfig.get_paths()["include"]
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", SANITIZE]
    run(clang, *flags, "-w", "-c", f"-I{headers}", f"-I{ROOT / 'fastside'}", str(source), "-o", str(target))
    # The generated module also holds code for Python, which is never run here. Its symbols get a place each, so that
    # no Python library is needed to link; a call to one would crash and so be found.
    symbols = run("nm", "--undefined-only", "--format=just-symbols", str(target)).split()
    places = work / "python_symbols.c"
    places.write_text("".join(f"long {name}[64];\n" for name in symbols if re.match("_?Py", name)))
    program = work / "target"
    run(clang, SANITIZE, str(target), "-x", "c", str(places), "-o", str(program))
    return program


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fuzz(program: Path, seeds: list[bytes], work: Path, seconds: int) -> int:
    """Runs for that many seconds; returns the fuzzer's exit status. A finding is left in work as crash-*."""
    for folder in ("seeds", "corpus"):
        (work / folder).mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (work / "seeds" / f"{number:04}").write_bytes(data)
    command = [str(program), f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-timeout=10", "-seed=1"]
    command += [f"-artifact_prefix={work}/", "-print_final_stats=1", str(work / "corpus"), str(work / "seeds")]
    environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=16"}
    return subprocess.run(command, check=False, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(SEEDS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=20, help="how long to fuzz each (default: 20)")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="where to build (default: .fuzz)")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(SEEDS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    clang = find_clang()
    if clang is None:
        print("no clang found; on Debian: apt-get install clang", file=sys.stderr)
        return 3
    found = False
    for name in arguments.targets or SEEDS:
        work = arguments.work / name
        work.mkdir(parents=True, exist_ok=True)
        try:
            program = build(clang, name, work)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            return 2
        found |= fuzz(program, SEEDS[name](), work, arguments.seconds) != 0
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
