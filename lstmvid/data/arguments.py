"""Arguments that have to be numbers of a kind, checked."""

from __future__ import annotations

import operator
from typing import Any


def integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """`value` as an integer; ValueError names the argument, what it is and what was expected."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {minimum}") from error
    if number < minimum:
        raise ValueError(f"{name} is {number}, expected at least {minimum}")
    return number
