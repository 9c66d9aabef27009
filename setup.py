"""Builds the one extension module; everything else is in pyproject.toml.

FASTSIDE_DEBUG=1 compiles with bounds checks and line tables; FASTSIDE_CFLAGS and FASTSIDE_LDFLAGS add compiler flags
(the sanitizer builds use them). FASTSIDE_CORE=0 leaves the module out: `make build` installs the package in place and
then compiles once.
"""

import os
import shlex

from setuptools import Extension, setup

DEBUG = os.environ.get("FASTSIDE_DEBUG") == "1"
HERE = os.path.dirname(os.path.abspath(__file__))

core = Extension(
    "fastside._core",
    ["fastside/_core.pyx"],
    include_dirs=["fastside"],
    depends=sorted(
        os.path.join("fastside/core", name)
        for name in os.listdir(os.path.join(HERE, "fastside/core"))
        if name.endswith((".pyx", ".pxd", ".h"))
    ),
    extra_compile_args=[
        "-O1" if DEBUG else "-O2",
        "-g",
        "-Wall",
        "-Wno-unused-function",
        "-Wno-sign-compare",  # Cython's loops over unsigned ranges
        *shlex.split(os.environ.get("FASTSIDE_CFLAGS", "")),
    ],
    extra_link_args=shlex.split(os.environ.get("FASTSIDE_LDFLAGS", "")),
)
core.cython_directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
}

setup(ext_modules=[] if os.environ.get("FASTSIDE_CORE") == "0" else [core])
