"""WeatherBench: global fields such as the temperature at 2 m, hour by hour, from its yearly NetCDF files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmvid.data.sequences import Cut, Splits, Windows, existing

_UNITS = re.compile(r"(second|minute|hour|day)s? since (\d{1,4}-\d{1,2}-\d{1,2})(?:[T ](\d{1,2}):(\d{1,2}))?")
_CLASSIC = b"CDF"  # how files of NetCDF 3 begin


def open_weatherbench(
    path: str | Path,
    cut: Cut,
    *,
    variable: str = "t2m",
    training_years: Sequence[int] = (2010, 2015),
    validation_years: Sequence[int] = (2016, 2016),
    test_years: Sequence[int] = (2017, 2018),
    stride: int = 1,
) -> Splits:
    """Cut clips out of the files of one variable, normalised by the mean and standard deviation of the training years.

    All frames of the years asked for are kept in memory: 72 MB a year for 32 x 64 values an hour. A file may hold any
    part of a year; where hours are missing between files or in them, no clip reaches across.

    Args:
        path: the folder with the variable's ``*.nc``, such as ``2m_temperature_5.625deg``, or the one above it.
        cut: how long clips are.
        variable: the field's name in the files, ``(time, lat, lon)``.
        training_years, validation_years, test_years: first and last year of each part.
        stride: frames from the start of a clip to that of the next.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: a file is no NetCDF 4, lacks the variable or its times, or is damaged; a part has no clip.

    Source: Rasp et al., "WeatherBench" (arXiv 2002.00469); years and normalisation as in OpenSTL.
    """
    years = {"training": training_years, "validation": validation_years, "test": test_years}
    for part, range_ in years.items():
        if len(range_) != 2 or not all(type(year) is int for year in range_) or range_[0] > range_[1]:
            raise ValueError(f"options.{part}_years is {list(range_)}, expected the first and the last year")
    ranges = sorted(map(tuple, years.values()))
    if any(before[1] >= after[0] for before, after in itertools.pairwise(ranges)):
        raise ValueError(f"options has years that are in two parts: {ranges}, expected none")
    if stride < 1:
        raise ValueError(f"options.stride is {stride}, expected at least 1")
    path = existing(path, "WeatherBench folder")
    times, fields, unit = _read_all(_files(path, variable), variable, years.values())
    mean, std = _statistics(fields[_between(times, training_years)])
    clips = {}
    for part, (first, last) in years.items():
        mask = _between(times, (first, last))
        try:
            sequences = [((field - mean) / std)[:, None] for field in _runs(times[mask], fields[mask])]
            clips[part] = Windows(sequences, cut.num_frames, stride=stride)
        except ValueError as error:
            raise ValueError(f"{path} has too little for {part}, {first} to {last}: {error}") from error
    return Splits(**clips, mean=float(mean), std=float(std), unit=unit)


def _files(path: Path, variable: str) -> list[Path]:
    """The files in a folder or, if there is none, in the folders in it that have the variable."""
    if files := sorted(path.glob("*.nc")):
        return files
    files = [file for file in sorted(path.glob("*/*.nc")) if _has(file, variable)]
    if not files:
        raise FileNotFoundError(f"There is no .nc file in {path}, and none in a folder in it that has {variable}")
    return files


def _has(path: Path, variable: str) -> bool:
    with _opened(path) as file:
        return variable in file


def _read_all(files: list[Path], variable: str, years: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Times, fields ``(T, lat, lon)`` of the years asked for, in the order of time, and the unit."""
    times, fields, unit = [], [], ""
    for path in files:
        with _opened(path) as file:
            if variable not in file or "time" not in file:
                raise ValueError(f"{path} has the variables {', '.join(file)}, expected {variable} and time")
            field, time = file[variable], _times(file["time"], path)
            if field.ndim != 3 or len(field) != len(time):
                raise ValueError(f"{path} has {variable} of shape {field.shape}, expected ({len(time)}, lat, lon)")
            unit = _text(field.attrs.get("units", unit))
            wanted = np.any([_between(time, range_) for range_ in years], axis=0)
            if wanted.any():
                times.append(time[wanted])
                fields.append(_values(field, path)[wanted])
    shapes = {field.shape[1:] for field in fields}
    if len(shapes) > 1:
        raise ValueError(f"{files[0].parent} has fields of different shapes, {sorted(shapes)}, expected one")
    if not times:
        raise ValueError(f"{files[0].parent} has nothing of the years {', '.join(map(str, map(list, years)))}")
    times, fields = np.concatenate(times), np.concatenate(fields)
    order = np.argsort(times, kind="stable")
    if (np.diff(times[order]) <= np.timedelta64(0)).any():
        raise ValueError(f"{files[0].parent} has times that occur twice")
    return times[order], fields[order], unit


def _opened(path: Path) -> Any:
    """NetCDF 4 is HDF5."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        with path.open("rb") as file:
            if file.read(3) == _CLASSIC:
                raise ValueError(f"{path} is of NetCDF 3, expected NetCDF 4: convert it by `nccopy -k nc4`") from error
        raise ValueError(f"{path} is not a NetCDF 4 file, or is damaged: {error}") from error


def _times(variable: Any, path: Path) -> np.ndarray:
    """The times of a file as datetime64[s]."""
    units = _text(variable.attrs.get("units", ""))
    if not (parts := _UNITS.match(units)):
        raise ValueError(f"{path} has times in {units!r}, expected such as 'hours since 1900-01-01 00:00'")
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[parts[1]]
    year, month, day = map(int, parts[2].split("-"))
    start = np.datetime64(f"{year:04}-{month:02}-{day:02}T{int(parts[3] or 0):02}:{int(parts[4] or 0):02}", "s")
    return start + np.round(variable[:].astype(np.float64) * seconds).astype("timedelta64[s]")


def _values(field: Any, path: Path) -> np.ndarray:
    """A field's values as float32, unpacked if they are packed integers."""
    values = field[:]
    scale, offset = (
        np.asarray(field.attrs.get(name, default)).item()
        for name, default in (("scale_factor", 1.0), ("add_offset", 0.0))
    )
    values = (values * np.float64(scale) + offset if (scale, offset) != (1.0, 0.0) else values).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} contains values that are not finite")
    return values


def _between(times: np.ndarray, years: Sequence[int]) -> np.ndarray:
    """Which times are in the years from the first to the last."""
    year = times.astype("datetime64[Y]").astype(int) + 1970
    return (year >= years[0]) & (year <= years[1])


def _runs(times: np.ndarray, fields: np.ndarray) -> list[np.ndarray]:
    """Fields without a gap in time between them; the usual distance of two is the smallest there is."""
    steps = np.diff(times)
    gaps = np.flatnonzero(steps > steps.min()) + 1 if len(steps) else []
    return np.split(fields, gaps)


def _statistics(fields: np.ndarray) -> tuple[np.float32, np.float32]:
    if not len(fields):
        return np.float32(0), np.float32(1)  # there are no training clips, which is said elsewhere
    std = np.float32(fields.std(dtype=np.float64))
    return np.float32(fields.mean(dtype=np.float64)), std if std > 0 else np.float32(1)


def _text(value: Any) -> str:
    """An attribute, which is bytes or text by the library that wrote it."""
    return value.decode() if isinstance(value, bytes) else str(value)
