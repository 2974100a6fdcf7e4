from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")

CUT = Cut(input_frames=2, target_frames=1)
OPTIONS = {"size": 8}


def write_masks(path: Path, unusual: list[bool], *, size=(6, 8)) -> None:
    """As the data set has them: a cell array of masks, in a row."""
    masks = np.empty((1, len(unusual)), dtype=object)
    for number, marked in enumerate(unusual):
        masks[0, number] = np.zeros(size, dtype=np.uint8)
        masks[0, number][2, 3] = marked
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"volLabel": masks})


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "Avenue Dataset"
    for number, frames in ((1, 8), (2, 9), (3, 10)):
        write_video(path / "training_videos" / f"{number:02}.avi", frames)
    for number, frames in ((1, 7), (2, 10)):
        write_video(path / "testing_videos" / f"{number:02}.avi", frames)
        masks = path / "ground_truth_demo" / "testing_label_mask" / f"{number}_label.mat"
        write_masks(masks, [frame in (3, 4) for frame in range(frames)])
    return path


def test_clips_and_labels(folder):
    splits = open_source("avenue", str(folder), CUT, OPTIONS)
    assert splits.training.frame_shape == (1, 8, 8)
    assert len(splits.test) == 2 + 3
    assert [video.name for video in splits.labelled] == ["01", "02"]
    assert [np.flatnonzero(video.unusual).tolist() for video in splits.labelled] == [[3, 4], [3, 4]]
    assert [len(video.frames) for video in splits.labelled] == [7, 10]
    assert np.array_equal(splits.labelled[1].frames[3:6], splits.test[3].numpy())
    colour = open_source("avenue", str(folder), CUT, OPTIONS | {"grey": False, "stride": 1})
    assert colour.training.frame_shape == (3, 8, 8)
    assert len(colour.training) > len(splits.training)


def fails(path: Path, error: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_source("avenue", str(path), CUT, OPTIONS | options)
    return str(caught.value)


def test_what_is_refused(folder):
    masks = folder / "ground_truth_demo" / "testing_label_mask"
    path = masks / "2_label.mat"
    whole = path.read_bytes()
    assert "options.stride is 0" in fails(folder, stride=0)
    write_masks(path, [True] * 9)
    assert "2_label.mat has 9 masks, expected 10, the frames of 02.avi" in fails(folder)
    savemat(path, {"volLabel": np.zeros((3, 3))})
    assert "volLabel is float64, expected a cell array" in fails(folder)
    savemat(path, {"labels": np.zeros((3, 3))})
    assert "2_label.mat lacks volLabel" in fails(folder)
    for content in (b"", b"junk" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "2_label.mat is not a file of masks, or is damaged" in fails(folder)
    path.unlink()
    assert "There is no mask file" in fails(folder, FileNotFoundError)
    masks.rename(folder.parent / "masks")
    assert "There is no folder testing_label_mask" in fails(folder, FileNotFoundError)
    (folder.parent / "masks" / "2_label.mat").write_bytes(whole)
    options = OPTIONS | {"masks": str(folder.parent / "masks")}
    assert len(open_source("avenue", str(folder), CUT, options).labelled) == 2
    (folder / "testing_videos" / "02.avi").write_bytes(b"junk")
    assert "02.avi can't be decoded" in fails(folder, masks=options["masks"])
