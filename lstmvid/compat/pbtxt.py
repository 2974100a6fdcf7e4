"""Protobuf text format, read straight into frozen dataclasses.

`google.protobuf.text_format` needs compiled message descriptors, which a model file does not carry; here a dataclass is
the message type: its annotations say how a field's text reads (`int` is int32, `float` is 32-bit, `Identifier` is an
enum, a dataclass is a nested message, `tuple[X, ...]` is repeated, `X | None` is optional), its defaults stand for what
is left out, and a field without a default is required.

Format: https://protobuf.dev/reference/protobuf/textformat-spec/, without extensions and `Any`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

MessageT = TypeVar("MessageT")


class Identifier(str):
    """The name of an enum value. Any name is kept; the reader of the message knows which ones have a meaning."""


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # "word", "number", "string", "mark", "stray" or "end"
    text: str
    line: int

    def __str__(self) -> str:
        return "the end of the file" if self.kind == "end" else self.text


_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?)(?![\w.]))
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<mark>[{}<>\[\]:;,-])
      | (?P<stray>\S+)""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    rb"\\(?:(?P<plain>[abfnrtv\\'\"?])|(?P<oct>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})"
    rb"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<bad>.))"
)
_PLAIN_ESCAPES = dict(zip(b"abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))
_CLOSING = {"{": "}", "<": ">"}
_BOOLS = dict.fromkeys(("true", "True", "t", "1"), True) | dict.fromkeys(("false", "False", "f", "0"), False)


def parse(text: str, message_type: type[MessageT], *, source: str, given: dict[str, Any] | None = None) -> MessageT:
    """Read `text` as one message of the dataclass `message_type`.

    `source` is the name that errors carry; `given` are values of fields that don't come from the text.
    Raises `ValueError`, starting with `source:line:`, on bad syntax, an unknown or repeated field, a missing required
    one, or a value that is not of its field's type.
    """
    return _Parser(text, source).message(message_type, closing="", opened=1, given=given or {})


def dump(message: Any, *, leave_out: tuple[str, ...] = (), indent: str = "") -> str:
    """A message as text that `parse` reads back; fields at their defaults are left out, as are those in `leave_out`."""
    lines = []
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if field.name in leave_out or value is None or value == field.default:
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(item):
                lines.append(f"{indent}{field.name} {{\n{dump(item, indent=indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{field.name}: {_written(item)}\n")
    return "".join(lines)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(np.float32(value))  # the shortest that is read back as the same 32 bits
    if isinstance(value, int | Identifier):
        return str(value)
    printable = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord('"'): '\\"', ord("\\"): "\\\\"}
    return '"' + "".join(printable.get(byte, f"\\{byte:03o}") for byte in value.encode()) + '"'


class _Parser:
    """One pass over the tokens of one file, guided by the message types."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens: list[_Token] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "space":
                self._tokens.append(_Token(str(match.lastgroup), match.group(), line))
            line += match.group().count("\n")
        self._tokens.append(_Token("end", "", line))
        self._at = 0

    def message(self, message_type: type[MessageT], *, closing: str, opened: int, given: dict[str, Any]) -> MessageT:
        """Read fields up to and including the token `closing` (the end of the file if empty)."""
        values = dict(given)
        types = {name: kind for name, kind in _field_types(message_type).items() if name not in given}
        while not self._accept(closing):
            token = self._take("word", "a field name" if not closing else f"a field name or {closing!r}")
            if token.text not in types:
                raise self._error(token.line, f"unknown field {token.text!r}; known are {', '.join(types)}")
            kind, repeated = types[token.text]
            if not self._accept(":") and not dataclasses.is_dataclass(kind):
                raise self._error(token.line, f"expected ':' after {token.text!r}, got {self._here}")
            if repeated:
                values[token.text] = values.get(token.text, ()) + self._values(kind, token.text)
            elif token.text in values:
                raise self._error(token.line, f"{token.text!r} is given twice")
            else:
                values[token.text] = self._value(kind, token.text)
            if not self._accept(";"):
                self._accept(",")
        for field in dataclasses.fields(message_type):  # type: ignore[arg-type]
            if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
                raise self._error(opened, f"the required field {field.name!r} is missing")
        return message_type(**values)

    def _values(self, kind: type, name: str) -> tuple[Any, ...]:
        """One occurrence of a repeated field: a single value or a bracketed list."""
        if not self._accept("["):
            return (self._value(kind, name),)
        values: list[Any] = []
        while not self._accept("]"):
            if values and not self._accept(","):
                raise self._error(self._here.line, f"expected ',' or ']' in the list {name!r}, got {self._here}")
            values.append(self._value(kind, name))
        return tuple(values)

    def _value(self, kind: type, name: str) -> Any:
        if dataclasses.is_dataclass(kind):
            opening = self._take("mark", f"'{{' after {name!r}", among=_CLOSING)
            return self.message(kind, closing=_CLOSING[opening.text], opened=opening.line, given={})
        if kind is str:
            return self._string(name)
        sign = "-" if self._accept("-") else ""
        token = self._here
        if token.kind not in ("word", "number"):
            raise self._error(token.line, f"expected a value for {name!r}, got {token}")
        self._at += 1
        try:
            return _SCALARS[kind](sign + token.text)
        except ValueError as reason:
            raise self._error(token.line, f"{name!r} is {sign}{token.text}, expected {reason}") from None

    def _string(self, name: str) -> str:
        """One or more quoted strings; adjacent ones are joined."""
        first = self._take("string", f"a quoted string for {name!r}")
        parts = [first.text]
        while self._here.kind == "string":
            parts.append(self._take("string", "").text)
        try:
            return b"".join(_unescape(part[1:-1]) for part in parts).decode()
        except ValueError as reason:
            raise self._error(first.line, f"the string of {name!r} is malformed ({reason})") from None

    @property
    def _here(self) -> _Token:
        return self._tokens[self._at]

    def _accept(self, text: str) -> bool:
        """Step over the next token if it is exactly `text` (quoted strings keep their quotes, so never match)."""
        if self._here.text != text:
            return False
        self._at += 1
        return True

    def _take(self, kind: str, expected: str, *, among: Any = None) -> _Token:
        token = self._here
        if token.kind != kind or (among is not None and token.text not in among):
            raise self._error(token.line, f"expected {expected}, got {token}")
        self._at += 1
        return token

    def _error(self, line: int, sentence: str) -> ValueError:
        return ValueError(f"{self._source}:{line}: {sentence}")


@functools.cache
def _field_types(message_type: type) -> dict[str, tuple[type, bool]]:
    """Field name -> (type of one value, whether it repeats), from the dataclass's annotations."""
    hints = get_type_hints(message_type)
    types = {}
    for field in dataclasses.fields(message_type):
        hint = hints[field.name]
        inner = [argument for argument in get_args(hint) if argument not in (type(None), ...)]
        types[field.name] = (inner[0] if inner else hint, get_origin(hint) is tuple)
    return types


def _int32(text: str) -> int:
    digits = text.removeprefix("-")
    if not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", digits):
        raise ValueError("an integer")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") and digits.strip("0") else 10
    try:
        value = int(text, base)
    except ValueError:
        raise ValueError("an integer") from None
    if not -(2**31) <= value < 2**31:
        raise ValueError("an integer of 32 bits")
    return value


def _float32(text: str) -> float:
    """The nearest 32-bit float, which is what the original programs computed with."""
    digits = text.lower()
    if not digits.endswith("inf"):
        digits = digits.removesuffix("f")  # 0.5f is a number in this format
    try:
        with np.errstate(over="ignore"):
            value = float(np.float32(float(digits)))
    except ValueError:
        raise ValueError("a number") from None
    if value != value:
        raise ValueError("a number")  # no setting has a meaning for nan, and it would spread in silence
    return value


def _bool(text: str) -> bool:
    if text not in _BOOLS:
        raise ValueError("true or false")
    return _BOOLS[text]


def _identifier(text: str) -> Identifier:
    if not text.isidentifier():
        raise ValueError("a name without quotes")
    return Identifier(text)


_SCALARS = {int: _int32, float: _float32, bool: _bool, Identifier: _identifier}


def _unescape(text: str) -> bytes:
    """The bytes of a string's inside. Escapes may spell out single UTF-8 bytes, so text exists only after joining."""

    def replace(match: re.Match[bytes]) -> bytes:
        kind, code = match.lastgroup, match.group(str(match.lastgroup))
        if kind == "plain":
            return bytes([_PLAIN_ESCAPES[code[0]]])
        if kind in ("oct", "hex"):
            return bytes([int(code, 8 if kind == "oct" else 16)])
        if kind == "bad":
            raise ValueError(f"unknown escape \\{code.decode(errors='replace')}")
        return chr(int(code, 16)).encode()

    return _ESCAPE.sub(replace, text.encode())
