"""Settings that check themselves: dataclasses whose fields carry their rules, in sections of a whole run's settings.

Every setting carries the words for what it accepts, so that one message serves a wrong type, a NaN and a value out of
range alike, whether it came from a YAML file, the command line or Python.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


def setting(default: Any, expected: str, accepts: Callable[[Any], bool], null: str | None = None) -> Any:
    """A dataclass field with its rule; `null` says what None stands for, where it is allowed."""
    if null is not None:
        expected += f", or null for {null}"
    return field(
        default=default,
        metadata={
            "expected": expected,
            "accepts": lambda value: null is not None if value is None else accepts(value),
        },
    )


def integer(default: int | None, minimum: int, null: str | None = None) -> Any:
    """An integer from `minimum` up."""
    return setting(
        default, f"an integer of at least {minimum}", lambda value: type(value) is int and value >= minimum, null
    )


def number(default: float | None, minimum: float, maximum: float = math.inf, null: str | None = None) -> Any:
    """A finite number in a closed range."""

    def accepts(value: Any) -> bool:
        return is_finite(value) and minimum <= value <= maximum

    limits = f"of at least {minimum:g}" if math.isinf(maximum) else f"from {minimum:g} to {maximum:g}"
    return setting(default, f"a finite number {limits}", accepts, null)


def positive(default: float | None, maximum: float = math.inf, null: str | None = None) -> Any:
    """A finite number in a range open below and above."""

    def accepts(value: Any) -> bool:
        return is_finite(value) and 0 < value < maximum

    limits = "above 0" if math.isinf(maximum) else f"between 0 and {maximum:g}"
    return setting(default, f"a finite number {limits}", accepts, null)


def is_finite(value: Any) -> bool:
    """Whether it is a number, and neither infinite nor NaN; true and false are none."""
    return type(value) in (int, float) and math.isfinite(value)


def choice(default: str | None, *choices: str, null: str | None = None) -> Any:
    """One of several words."""
    return setting(default, f"one of {', '.join(choices)}", lambda value: value in choices, null)


def flag(default: bool) -> Any:
    """True or false."""
    return setting(default, "true or false", lambda value: isinstance(value, bool))


def text(default: str | None, expected: str, null: str | None = None) -> Any:
    """A text that isn't empty; `expected` says what it stands for."""
    return setting(default, expected, lambda value: isinstance(value, str) and value != "", null)


class Section:
    """Settings that check themselves: a dataclass whose fields carry their rules."""

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if "accepts" in setting.metadata and not setting.metadata["accepts"](value):
                raise ValueError(f"{setting.name} is {value!r}, expected {setting.metadata['expected']}")


@dataclass(kw_only=True)
class Run(Section):
    """All settings of a run: some of its own, and sections, which are the fields whose default is a `Section`."""

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """The sections by name."""
        return {
            setting.name: setting.default_factory
            for setting in dataclasses.fields(cls)
            if isinstance(setting.default_factory, type) and issubclass(setting.default_factory, Section)
        }

    @classmethod
    def expected(cls, key: str) -> str:
        """What a setting accepts, by its full name such as ``model.hidden_size``, in words."""
        section, _, name = key.rpartition(".")
        settings = dataclasses.fields(cls.sections()[section] if section else cls)
        return next(setting.metadata["expected"] for setting in settings if setting.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as YAML and checkpoints without code need them."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """Build it from what `to_dict` gives; sections and settings that are missing take their defaults.

        Raises:
            ValueError: a key that doesn't exist or a value that is not accepted; the message starts with the key, as
                in ``model.hidden_size is 0, expected an integer of at least 1``.
        """
        names, sections = [setting.name for setting in dataclasses.fields(cls)], cls.sections()
        arguments: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in names:
                raise ValueError(f"{name} is no setting; there are {', '.join(names)}")
            arguments[name] = _section(name, sections[name], value) if name in sections else value
        return cls(**arguments)


def _plain(value: Any) -> Any:
    """The same without tuples."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _section(section: str, kind: type[Section], values: Any) -> Section:
    if not isinstance(values, dict):
        raise ValueError(f"{section} is {values!r}, expected settings by name")
    names = [setting.name for setting in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise ValueError(f"{section}.{name} is no setting; {section} has {', '.join(names)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None
