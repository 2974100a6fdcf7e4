from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lstmvid.data.percepts import PerceptsWriter
from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut

CUT = Cut(input_frames=2, target_frames=1, validation_fraction=0.25)
CLASSES = "Archery", "Biking"


@pytest.fixture
def file(tmp_path) -> Path:
    """Eight videos; every value of video v is v."""
    path = tmp_path / "percepts.h5"
    with PerceptsWriter(path, 5, classes=CLASSES) as writer:
        for video in range(8):
            name = CLASSES[video % 2]
            writer.append(f"{name}/v_{name}_g{video:02}_c01", np.full((7, 5), float(video), np.float32), video % 2)
    return path


@pytest.fixture
def splits(tmp_path) -> Path:
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    lines = [f"{CLASSES[v % 2]}/v_{CLASSES[v % 2]}_g{v:02}_c01.avi" for v in range(9)]  # one more than in the file
    (folder / "trainlist01.txt").write_text("\n".join(f"{line} {v % 2 + 1}" for v, line in enumerate(lines[:5])))
    (folder / "testlist01.txt").write_text("\n".join(lines[6:]))
    return folder


def videos(clips) -> set[float]:
    return {clips[index].max().item() for index in range(len(clips))}


def test_videos_are_held_out(file):
    parts = open_source("percepts", str(file), CUT, {"stride": 2, "test_stride": 4})
    sets = [videos(part) for part in (parts.training, parts.validation, parts.test)]
    assert sum(map(len, sets)) == 8
    assert set.union(*sets) == set(range(8))
    assert (len(parts.training), len(parts.test)) == (3 * len(sets[0]), 2 * len(sets[2]))
    assert parts.training[0].shape == (3, 5)
    assert parts.training.frame_shape == (5,)


def test_official_splits(file, splits):
    parts = open_source("percepts", str(file), CUT, {"layout": "ucf101", "splits": str(splits)})
    assert videos(parts.test) == {6, 7}
    assert videos(parts.training) | videos(parts.validation) == set(range(5))
    assert not videos(parts.training) & videos(parts.validation)


def test_layout_of_the_authors(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.repeat(np.arange(4.0, dtype=np.float32), 5)[:, None]
    (tmp_path / "frames.txt").write_text("5\n5\n5\n5\n")
    parts = open_source(
        "percepts", str(tmp_path / "x.h5"), CUT, {"frame_counts": str(tmp_path / "frames.txt"), "dataset": "data"}
    )
    assert videos(parts.training) | videos(parts.validation) | videos(parts.test) == {0, 1, 2, 3}


def fails(path: Path, cut: Cut = CUT, error: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_source("percepts", str(path), cut, options)
    return str(caught.value)


def test_what_is_refused(file, splits, tmp_path):
    assert "options.layout and options.splits go together" in fails(file, layout="ucf101")
    assert "options.layout is 'ucf', expected one of ucf101, hmdb51" in fails(file, layout="ucf", splits="x")
    assert "There is no split file" in fails(file, error=FileNotFoundError, layout="ucf101", splits=str(tmp_path))
    assert "(the training part)" in fails(file, Cut(input_frames=6, target_frames=2))
    (splits / "testlist01.txt").write_text("Archery/v_Archery_g30_c01.avi")
    assert "has 5 training and 0 test videos" in fails(file, layout="ucf101", splits=str(splits))
    with PerceptsWriter(tmp_path / "few.h5", 2) as writer:
        for name in "ab":
            writer.append(name, np.zeros((9, 2), np.float32))
    assert "has 2 videos, expected at least 3" in fails(tmp_path / "few.h5")
