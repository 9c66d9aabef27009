"""Reads YAML into msgspec Structs and says where every problem is.

msgspec stops at the first problem and knows no lines, so the document is walked here along the types of the Structs,
and msgspec checks the single values. All problems of a file are found in one pass.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
import yaml

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_constructor = yaml.constructor.SafeConstructor()
_STRING = "tag:yaml.org,2002:str"
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "text", type(None): "nothing"}

Parsers = Mapping[object, Callable[[Any], Any]]
S = TypeVar("S", bound="Section")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping in the document."""

    shorthand: ClassVar[str] = ""
    """The field that a plain scalar in place of the mapping stands for."""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values of fields that are absent, when they depend on the fields that are given."""
        return {}


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and where. Lines and columns count from 1."""

    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        text = f"{self.line}:{self.column}: {self.key + ': ' if self.key else ''}{self.message}"
        return text.replace("\n", "\\n")


class Reader:
    """Turns one document into a Section; `problems` lists what was wrong with it.

    `parsers` maps the annotation of a field to a function that takes the YAML scalar and returns the value, or raises
    ValueError with a message that says what would be right.
    """

    def __init__(self, parsers: Parsers) -> None:
        self.problems: list[Problem] = []
        self._parsers = parsers
        self._places: dict[str, yaml.Mark] = {}

    def read(self, text: str, section: type[S]) -> S | None:
        """Return the document as `section`, or None if there are problems."""
        if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(text):
            before = text[: unprintable.start()]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            self.problems.append(Problem(line, column, "", f"not valid YAML: the character {unprintable[0]!r}"))
            return None
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            self.problems.append(Problem(line, column, "", f"not valid YAML: {error.problem or error.context}"))
            return None
        except RecursionError:
            self.problems.append(Problem(1, 1, "", "not valid YAML: nested too deeply"))
            return None
        if node is None:
            return section()
        result: S = self._section(node, section, "")
        return None if self.problems else result

    def add(self, key: str, message: str) -> None:
        """Record a problem with `key`, found after reading; the place is that of the nearest key in the document."""
        place = key
        while place and place not in self._places:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        mark = self._places.get(place)
        self.problems.append(Problem(mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, key, message))

    def _refuse(self, node: yaml.Node, key: str, message: str) -> None:
        self.problems.append(Problem(node.start_mark.line + 1, node.start_mark.column + 1, key, message))

    def _section(self, node: yaml.Node, section: type[Section], path: str) -> Any:
        self._places[path] = node.start_mark
        hints = _hints(section)
        if isinstance(node, yaml.ScalarNode) and section.shorthand:
            value = self._value(node, hints[section.shorthand], path)
            return value if value is _BAD else section(**{section.shorthand: value})
        if not isinstance(node, yaml.MappingNode) and not _is_null(node):
            self._refuse(node, path, f"expected keys and values, got {_describe(node)}")
            return _BAD
        found = len(self.problems)
        given = {
            name: self._value(child, hints[name], f"{path}.{name}" if path else name)
            for name, child in self._entries(node, path, hints)
        }
        fields = {**section.defaults(given), **given}
        for field in msgspec.structs.fields(section):
            if field.required and field.name not in fields:
                self._refuse(node, path, f"`{field.name}` is missing; say {_expected(hints[field.name])}")
        return _BAD if found < len(self.problems) else section(**fields)

    def _entries(self, node: yaml.Node, path: str, names: Iterable[str] | None) -> list[tuple[str, yaml.Node]]:
        """Keys and values of a mapping (or of nothing): known ones if `names` is given, and each of them once."""
        entries: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if not key:
                self._refuse(key_node, path, "a key must be text")
            elif names is not None and key not in names:
                self._refuse(key_node, path, f"unknown key `{key}`; {suggest(key, names)}")
            elif names is None and key_node.tag != _STRING:
                self._refuse(key_node, path, f"YAML reads the key {key} as {_describe(key_node)}; put it in quotes")
            elif key in entries:
                self._refuse(key_node, path, f"`{key}` is given twice; keep one of them")
            else:
                entries[key] = value_node
        return list(entries.items())

    def _value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value of `node`; _BAD if it was refused as a whole (then a problem is recorded)."""
        self._places[path] = node.start_mark
        kind, nullable = _strip_none(kind)
        if nullable and _is_null(node):
            return None
        origin = typing.get_origin(kind)
        if isinstance(kind, type) and issubclass(kind, Section):
            return self._section(node, kind, path)
        if origin is list:
            return self._list(node, typing.get_args(kind)[0], path)
        if origin is dict:
            return self._dict(node, typing.get_args(kind)[1], path)
        return self._scalar(node, kind, path)

    def _list(self, node: yaml.Node, kind: Any, path: str) -> Any:
        if _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._refuse(node, path, f"expected a list, got {_describe(node)}")
            return _BAD
        return [self._value(child, kind, f"{path}[{index}]") for index, child in enumerate(node.value)]

    def _dict(self, node: yaml.Node, kind: Any, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode) and not _is_null(node):
            self._refuse(node, path, f"expected keys and values, got {_describe(node)}")
            return _BAD
        return {name: self._value(child, kind, f"{path}.{name}") for name, child in self._entries(node, path, None)}

    def _scalar(self, node: yaml.Node, kind: Any, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, path, f"expected {_expected(kind)}, got {_describe(node)}")
            return _BAD
        try:
            value = _construct(node)
            if kind in self._parsers:
                value = self._parsers[kind](value)
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
            hint = suggest(node.value, choices) if choices else f"expected {_expected(kind)}, got {_describe(node)}"
            self._refuse(node, path, f"`{node.value}` is not one of the choices; {hint}" if choices else hint)
        except (ValueError, yaml.YAMLError) as error:
            self._refuse(node, path, getattr(error, "problem", None) or str(error))
        return _BAD


_BAD: Any = object()


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return "did you mean `x`?" if one choice is close to word, else the list of choices."""
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"use one of {', '.join(names)}"


def _hints(section: type[Section]) -> dict[str, Any]:
    """Annotations of the fields of a Section, those of ClassVars left out."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.__struct_fields__}


def _strip_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    rest = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    return (rest[0], True) if len(rest) == 1 else (kind, False)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _construct(node: yaml.ScalarNode) -> Any:
    if ":" in node.value and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return node.value  # YAML 1.1 reads 1:30 as the sexagesimal 90; nobody means that
    return _constructor.construct_object(node)


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if not isinstance(node, yaml.ScalarNode):
        return "a list"
    try:
        value = _construct(node)
    except (ValueError, yaml.YAMLError):
        return f"`{node.value}`"
    kind = _KINDS.get(type(value), "a date")
    return kind if value is None else f"{kind} (`{node.value}`)"


def _expected(kind: Any) -> str:
    """What may stand in a field of this type, in words."""
    kind, _ = _strip_none(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " or ".join(typing.get_args(kind))
    if origin is typing.Annotated:
        base, *metas = typing.get_args(kind)
        for meta in metas:
            if meta.description:
                return str(meta.description)
            if base is int:
                return f"a whole number from {meta.ge} to {meta.le}"
        return _expected(base)
    return {str: "text (in quotes if YAML reads it as something else)", bool: "true or false"}.get(kind, "a value")
