"""What is true of the package as a whole: type stubs, packaging, the start-up cost of the command."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import fastside
from fastside import _core

ROOT = Path(__file__).parents[1]


def stub_names() -> dict[str, set[str]]:
    """Names in _core.pyi: those of the module under "", those of each class under its name."""
    names: dict[str, set[str]] = {"": set()}
    for node in ast.parse((ROOT / "fastside/_core.pyi").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[""].add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names[""].add(node.name)
        elif isinstance(node, ast.ClassDef):
            names[""].add(node.name)
            names[node.name] = {
                part.target.id if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) else part.name
                for part in node.body
                if isinstance(part, (ast.AnnAssign, ast.FunctionDef))
            }
    return names


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stub_has_every_public_name_of_the_extension_and_no_other() -> None:
    stub = stub_names()
    assert stub[""] == public(_core)
    for name, methods in stub.items():
        if name and not issubclass(getattr(_core, name), Exception):
            assert methods - {"__init__"} == public(getattr(_core, name)), name


def test_the_command_starts_without_what_it_does_not_need() -> None:
    heavy = {"aiohttp", "prometheus_client", "asyncio", "yaml", "msgspec", "fastside._core"}
    code = "import sys, fastside.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and a wheel built from that sdist, as a release has them."""
    directory = tmp_path_factory.mktemp("dist")
    build = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    env = os.environ | {"FASTSIDE_DEBUG": "", "FASTSIDE_CFLAGS": "-O0 -g0"}

    def run(hook: str, where: Path) -> None:
        result = subprocess.run(
            [sys.executable, "-c", build, hook, str(directory)], cwd=where, env=env, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr

    source = tmp_path_factory.mktemp("source") / "fastside"
    left_out = (".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_core.c", "_core.html")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    run("build_sdist", source)
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", next(directory.glob("*.tar.gz")), "-C", unpacked], check=True)
    run("build_wheel", next(unpacked.iterdir()))
    return directory


def test_the_wheel_has_what_runs_and_nothing_else(distributions: Path) -> None:
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastside").rglob("*.py")}
    others = {name for name in names if not name.endswith(".py")}
    assert names - others == modules
    extension = {name for name in others if name.endswith(".so")}
    assert len(extension) == 1
    assert others - extension == {"fastside/_core.pyi", "fastside/py.typed", "fastside/takeover/openapi.yaml"}


def test_the_wheel_runs_in_an_environment_without_cython(distributions: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment's site-packages by a path file; the package from the wheel alone."""
    venv.create(tmp_path / "env", with_pip=True)
    bin_dir = tmp_path / "env/bin"
    wheel = next(distributions.glob("*.whl"))
    subprocess.run([bin_dir / "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = Path(
        subprocess.check_output(
            [bin_dir / "python", "-c", "import site; print(site.getsitepackages()[0])"], text=True
        ).strip()
    )
    for name in ("click", "msgspec", "yaml"):
        module = __import__(name)
        assert module.__file__
        (site / name).symlink_to(Path(module.__file__).parent)
    config = tmp_path / "fastside.yaml"
    config.write_text("workers: 1\n")
    version = subprocess.check_output([bin_dir / "fastside", "--version"], text=True)
    assert version == f"fastside {fastside.__version__}\n"
    checked = subprocess.run([bin_dir / "fastside", "check", config], capture_output=True, text=True, check=True)
    assert checked.stdout.startswith(f"{config}: ok")
    code = "from fastside import _core; print(_core.parse_request(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')['host'])"
    assert subprocess.check_output([bin_dir / "python", "-c", code], text=True) == "a\n"
