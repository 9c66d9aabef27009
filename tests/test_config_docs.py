"""docs/configuration.md has every key with its true default, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from fastside.config import (
    Config,
    Drain,
    DubbodApi,
    Ejection,
    Limits,
    Listener,
    MeshApi,
    RegistrySource,
    ServicePolicy,
    Timeouts,
    parse_duration,
    parse_size,
)
from fastside.yaml_reader import Section

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = {
    "Top level": Config,
    "listeners": Listener,
    "mesh": MeshApi,
    "dubbod": DubbodApi,
    "registry": RegistrySource,
    "services": ServicePolicy,
    "timeouts": Timeouts,
    "limits": Limits,
    "drain": Drain,
    "ejection": Ejection,
}
IN_WORDS = {"required", "", "none", "own", "see below"}


def documented(title: str) -> dict[str, str]:
    """Keys and defaults in the table of a section."""
    chapters = re.split(r"^## (.*)$", (DOCS / "configuration.md").read_text(), flags=re.MULTILINE)
    text = chapters[chapters.index(title) + 1]
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\| ([^|]*) ?\|", text, flags=re.MULTILINE)
    return {key: default.strip().strip("`") for keys, default in rows for key in re.findall(r"\w+", keys)}


@pytest.mark.parametrize(("title", "section"), SECTIONS.items())
def test_every_key_is_documented_with_its_default(title: str, section: type[Section]) -> None:
    table = documented(title)
    assert table.keys() == set(section.__struct_fields__)
    for field in msgspec.structs.fields(section):
        shown = table[field.name]
        assert (shown == "required") == field.required
        if shown in IN_WORDS:
            continue
        default = field.default
        if default is None:
            assert shown == "null"
        elif isinstance(default, float):
            assert parse_duration(shown) == default
        elif isinstance(default, int):
            assert parse_size(int(shown) if shown.isdigit() else shown) == default
        else:
            assert shown == default
