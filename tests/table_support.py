"""Builds and imports table_probe, the tests' view of the table from the inside. Run as a program it only builds."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "table_probe"


@functools.cache
def load_probe() -> ModuleType:
    """The module, rebuilt when the extension's declarations or its own source have changed."""
    subprocess.run([sys.executable, __file__], cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    (path,) = BUILD.glob("table_probe.*.so")
    spec = importlib.util.spec_from_file_location("table_probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put(service: str, endpoints: list[list[Any]], **changes: Any) -> dict[str, Any]:
    """An update that makes an outbound HTTP service."""
    return {
        "op": "put",
        "direction": "outbound",
        "service": service,
        "protocol": "http",
        "balance": "round_robin",
        "retry": False,
        "single": False,
        "grouped": False,
        "request_ms": 0,
        "endpoints": endpoints,
        **changes,
    }


def delete(service: str, direction: str = "outbound") -> dict[str, Any]:
    """An update that removes a service."""
    return {"op": "del", "direction": direction, "service": service}


def addresses(count: int, weight: int = 1) -> list[list[Any]]:
    """That many endpoints."""
    return [[f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 8080, weight] for i in range(count)]


def fork(work: Callable[[], None]) -> int:
    """Runs work in a child process, which ends with status 0, or 1 after an exception. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def build() -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    probe = Extension(
        "table_probe",
        ["tests/table_probe.pyx"],
        include_dirs=["fastside"],
        depends=[str(path) for path in (ROOT / "fastside").rglob("*.pxd")],
        extra_compile_args=["-O2", "-g0"],
    )
    extensions = cythonize(
        [probe],
        build_dir=str(BUILD),
        include_path=[str(ROOT)],
        compiler_directives={"language_level": 3, "wraparound": False, "boundscheck": False, "cdivision": True},
    )
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.build_lib = command.build_temp = str(BUILD)
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    build()
