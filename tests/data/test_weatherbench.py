"""Files as WeatherBench has them, NetCDF 4 with dimension scales, written by h5py, which is what they consist of."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut

CUT = Cut(input_frames=3, target_frames=2)
YEARS = {"training_years": [2001, 2002], "validation_years": [2003, 2003], "test_years": [2004, 2004]}
EPOCH = np.datetime64("1900-01-01T00", "h")


def write(path: Path, first: str, hours: int, *, size=(4, 6), units="hours since 1900-01-01 00:00:0.0", **options):
    """A file with random temperatures from a time on; returns them."""
    fields = np.random.default_rng(len(path.name) + hours).normal(280, 20, (hours, *size)).astype(np.float32)
    times = (np.datetime64(first, "h") - EPOCH).astype(int) + np.arange(hours)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        coordinates = {"time": times.astype(np.int32), "lat": np.linspace(-87, 87, size[0]), "lon": np.arange(size[1])}
        for name, values in coordinates.items():
            file[name] = values
            file[name].make_scale(name)
        file["time"].attrs["units"] = np.bytes_(units)
        file["time"].attrs["calendar"] = np.bytes_("proleptic_gregorian")
        stored = fields
        if options.get("packed"):
            stored = np.round((fields - 280) / 0.01).astype(np.int16)
            fields = (stored * 0.01 + 280).astype(np.float32)
        field = file.create_dataset(options.get("variable", "t2m"), data=stored, compression="gzip")
        for number, name in enumerate(coordinates):
            field.dims[number].attach_scale(file[name])
        field.attrs["units"] = np.bytes_("K")
        if options.get("packed"):
            field.attrs["scale_factor"], field.attrs["add_offset"] = np.array([0.01]), np.array([280.0])
    return fields


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "2m_temperature_5.625deg"


def yearly(folder: Path) -> dict[int, np.ndarray]:
    return {
        year: write(folder / f"2m_temperature_{year}_5.625deg.nc", f"{year}-01-01", 9 + year % 4)
        for year in (2000, 2001, 2002, 2003, 2004)
    }


def test_clips_are_normalised_by_the_training_years(folder):
    fields = yearly(folder)
    for path in (folder, folder.parent):
        splits = open_source("weatherbench", str(path), CUT, YEARS)
        training = np.concatenate([fields[2001], fields[2002]]).astype(np.float64)
        assert splits.mean == pytest.approx(training.mean(), rel=1e-6)
        assert splits.std == pytest.approx(training.std(), rel=1e-6)
        assert splits.unit == "K"
        assert splits.training.frame_shape == (1, 4, 6)
        # Years don't touch here, as the files end early: no clip goes from one into the next.
        assert len(splits.training) == (10 - 4) + (11 - 4)
        assert (len(splits.validation), len(splits.test)) == (12 - 4, 9 - 4)
        back = splits.test[2].numpy()[:, 0] * splits.std + splits.mean
        np.testing.assert_allclose(back, fields[2004][2:7], rtol=1e-5)
        np.testing.assert_allclose(
            splits.training[6].numpy()[:, 0] * splits.std + splits.mean, fields[2002][:5], rtol=1e-5
        )


def test_years_that_touch_are_one_sequence(folder):
    write(folder / "a.nc", "2001-12-31T20", 4)
    write(folder / "b.nc", "2002-01-01T00", 6)
    write(folder / "c.nc", "2003-05-01", 5)
    write(folder / "d.nc", "2004-05-01", 5)
    splits = open_source("weatherbench", str(folder), CUT, YEARS | {"stride": 2})
    assert len(splits.training) == (10 - 5) // 2 + 1


def test_one_file_is_split_by_its_years(folder):
    fields = write(folder / "all.nc", "2001-01-01", 4 * 8766)
    splits = open_source("weatherbench", str(folder), CUT, YEARS)
    assert len(splits.test) == 366 * 24 - 4
    start = int((np.datetime64("2004-01-01", "h") - np.datetime64("2001-01-01", "h")).astype(int))
    np.testing.assert_allclose(
        splits.test[0].numpy()[:, 0] * splits.std + splits.mean, fields[start : start + 5], rtol=1e-5
    )


def test_packed_values_and_other_units_of_time(folder):
    yearly(folder)
    (folder / "2m_temperature_2004_5.625deg.nc").unlink()
    fields = write(folder / "z.nc", "2004-03-01", 7, packed=True)
    with h5py.File(folder / "z.nc", "a") as file:
        file["time"][:] = np.arange(7) * 60
        file["time"].attrs["units"] = "minutes since 2004-03-01T06:00"
    splits = open_source("weatherbench", str(folder), CUT, YEARS)
    assert len(splits.test) == 3
    np.testing.assert_allclose(splits.test[0].numpy()[:, 0] * splits.std + splits.mean, fields[:5], rtol=1e-5)


def fails(path: Path, error: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_source("weatherbench", str(path), CUT, YEARS | options)
    return str(caught.value)


def test_what_is_refused(folder):
    yearly(folder)
    assert "options.test_years is [2004], expected the first and the last year" in fails(folder, test_years=[2004])
    assert "years that are in two parts" in fails(folder, test_years=[2003, 2004])
    assert "options.stride is 0" in fails(folder, stride=0)
    assert "too little for validation, 2010 to 2010" in fails(folder, validation_years=[2010, 2010])
    assert "has the variables lat, lon, t2m, time, expected z and time" in fails(folder, variable="z")
    assert "none in a folder in it that has z" in fails(folder.parent, FileNotFoundError, variable="z")

    path = folder / "2m_temperature_2003_5.625deg.nc"
    whole = path.read_bytes()
    write(path, "2003-01-01", 9, size=(5, 6))
    assert "fields of different shapes, [(4, 6), (5, 6)]" in fails(folder)
    write(path, "2003-01-01", 9, units="days of the week")
    assert "has times in 'days of the week', expected such as 'hours since" in fails(folder)
    path.write_bytes(whole)
    (folder / "twice.nc").write_bytes(whole)
    assert "has times that occur twice" in fails(folder)
    (folder / "twice.nc").unlink()
    with h5py.File(path, "a") as file:
        file["t2m"][3, 1, 1] = np.nan
    assert f"{path} contains values that are not finite" in fails(folder)
    for content, message in (
        (whole[:3000], "is not a NetCDF 4 file, or is damaged"),
        (b"CDF\x01junk", "nccopy -k nc4"),
    ):
        path.write_bytes(content)
        assert message in fails(folder)
