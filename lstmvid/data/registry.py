"""Data sets by name. A new one is a file in this folder with a function that opens it, and a line in `SOURCES`.

That function takes the path of the data and a `lstmvid.data.sequences.Cut`, and keyword arguments with defaults: the
settings that this data set alone has. It returns `lstmvid.data.sequences.Splits`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from lstmvid.data.sequences import Cut, Splits, check_clips

MOVING_MNIST = "moving_mnist"  # made on the fly, so with settings of its own and no path

SOURCES = {
    "avenue": "lstmvid.data.avenue:open_avenue",
    "frames": "lstmvid.data.frames:open_frames",
    "human36m": "lstmvid.data.human36m:open_human36m",
    "kth": "lstmvid.data.kth:open_kth",
    "percepts": "lstmvid.data.percepts_source:open_percepts",
    "taxibj": "lstmvid.data.taxibj:open_taxibj",
    "video": "lstmvid.data.video_source:open_video",
    "weatherbench": "lstmvid.data.weatherbench:open_weatherbench",
}


def source_names() -> list[str]:
    """All names, Moving MNIST's among them."""
    return [MOVING_MNIST, *SOURCES]


def open_source(name: str, path: str, cut: Cut, options: dict[str, Any] | None = None) -> Splits:
    """Open a data set and look at the first clip of each part.

    Args:
        name: a key of `SOURCES`.
        path: its file or folder.
        cut: how to cut it.
        options: settings that it alone has.

    Raises:
        ValueError, FileNotFoundError: naming the setting or the file, before any work has begun.
        ModuleNotFoundError: a package is missing that reads it.
    """
    check_options(name, options or {})
    splits = _opener(name)(path, cut, **(options or {}))
    for part in ("training", "validation", "test"):
        check_clips(getattr(splits, part), cut, f"{path} ({part})")
    return splits


def source_options(name: str) -> dict[str, Any]:
    """The settings that a data set alone has, with their defaults."""
    if name not in SOURCES:
        return {}
    parameters = inspect.signature(_opener(name)).parameters.values()
    return {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Refuse settings that a data set doesn't have, and values of another type than the default's.

    Raises:
        ValueError: the sentence starts with ``options.<name>``.
    """
    known = source_options(name)
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"options.{option} is no setting of the source {name}; {has}")
        default = known[option]
        if default is None or value is None:
            continue  # the data set's own affair
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits and not (isinstance(default, list | tuple) and isinstance(value, list | tuple)):
            raise ValueError(f"options.{option} is {value!r}, expected {_ARTICLES.get(type(default), 'a list')}")


_ARTICLES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
}


def _opener(name: str) -> Callable[..., Splits]:
    module, function = SOURCES[name].split(":")
    return getattr(importlib.import_module(module), function)
