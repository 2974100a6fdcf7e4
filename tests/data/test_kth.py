from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lstmvid.data.kth import ACTIONS
from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut
from lstmvid.testing import write_video

CUT = Cut(input_frames=2, target_frames=2, validation_fraction=0.5)
OPTIONS = {"size": 8}


def write_images(folder: Path, numbers: range | list[int], value: int = 0) -> None:
    """Frame n is all ``value + n``, in colour and of another size, as the benchmark's images are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((12, 16, 3), value + number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image_{number:04}.png")
    (folder / "readme.txt").write_text("not a frame")


@pytest.fixture
def images(tmp_path) -> Path:
    for action in ACTIONS:
        for person in (1, 16, 17, 25):
            write_images(tmp_path / "kth" / action / f"person{person:02}_{action}_d1_uncomp", range(1, 11), 2 * person)
    return tmp_path / "kth"


def first_values(clips) -> list[float]:
    return [clips[index].float().flatten(1).mean(1)[0].item() for index in range(len(clips))]


def test_images(images):
    splits = open_source("kth", str(images), CUT, OPTIONS)
    assert splits.training.frame_shape == (1, 8, 8)
    # From the end: frames 7 to 10 and 3 to 6 of 10; every 3 frames in jogging and running.
    per_person = 4 * [3, 7] + 2 * [1, 4, 7]
    assert sorted(first_values(splits.test)) == sorted(2 * p + n for p in (17, 25) for n in per_person)
    people = [{int(value - 1) // 2 for value in first_values(part)} for part in (splits.training, splits.validation)]
    assert max(people[0] | people[1]) < 24
    clip = splits.test[0]
    assert clip.dtype == torch.uint8
    assert torch.equal(clip.float().flatten(1).mean(1).diff(), torch.ones(3))


def test_a_gap_ends_a_sequence(images):
    for person in (17, 25):
        folder = images / "boxing" / f"person{person}_boxing_d1_uncomp"
        for path in folder.glob("*.png"):
            path.unlink()
        write_images(folder, [1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14], 100)
    splits = open_source("kth", str(images), CUT, OPTIONS)
    boxing = [value - 100 for value in first_values(splits.test) if value > 100]
    assert sorted(boxing) == [1, 1, 11, 11]


def test_videos_and_the_list_of_sequences(tmp_path):
    pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")
    path = tmp_path / "kth"
    for action in ACTIONS:
        for person in (1, 2, 25):
            write_video(path / action / f"person{person:02}_{action}_d1_uncomp.avi", 12, size=(24, 32))
    splits = open_source("kth", str(path), CUT, OPTIONS)
    assert len(splits.test) == 4 * 3 + 2 * 3
    everything = splits.test[0]
    assert everything.shape == (4, 1, 8, 8)
    assert (tmp_path / "kth.frames").is_dir()

    lines = ["Sequences of the data set", ""]
    lines += [f"person{person:02}_{action}_d1\t\tframes\t1-5, 8-12" for action in ACTIONS for person in (1, 2)]
    lines += ["person13_handclapping_d3\t*missing*", "person25_boxing_d1 frames 2-5,6-12, 300-400"]
    (path / "00sequences.txt").write_text("\r\n".join(lines))
    listed = open_source("kth", str(path), CUT, OPTIONS)
    # Frames 2-5 and 9-12 of person 25's boxing, all of the others.
    assert len(listed.test) == 2 + 3 * 3 + 2 * 3
    assert len(listed.training) == 6 * 2  # two sequences of 5 frames an action: one clip each
    (path / "00sequences.txt").write_text("person01_boxing_d1 1 to 5")
    with pytest.raises(ValueError, match="line 1, is 'person01_boxing_d1 1 to 5', expected a name and ranges"):
        open_source("kth", str(path), CUT, OPTIONS)


def fails(path: Path, error: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_source("kth", str(path), CUT, OPTIONS | options)
    return str(caught.value)


def test_what_is_refused(images):
    assert "options.size is 0" in fails(images, size=0)
    (images / "walking" / "somebody").mkdir()
    assert "somebody is no name of KTH" in fails(images)
    (images / "walking" / "somebody").rmdir()
    damaged = images / "boxing" / "person25_boxing_d1_uncomp" / "image_0007.png"
    damaged.write_bytes(b"junk")
    splits = open_source("kth", str(images), CUT, OPTIONS)
    with pytest.raises(ValueError, match=r"image_0007\.png is not an image, or is damaged"):
        [splits.test[index] for index in range(len(splits.test))]
    long = Cut(input_frames=10, target_frames=20)
    with pytest.raises(ValueError, match=r"too little for training, people .* longest sequence has 10 frames"):
        open_source("kth", str(images), long, OPTIONS)
    for action in ACTIONS:
        for person in (1, 25, 17):
            for file in (images / action / f"person{person:02}_{action}_d1_uncomp").iterdir():
                file.unlink()
    assert "has the people [16] of 1 to 16 for training, expected at least 2" in fails(images)
    for file in images.rglob("*.png"):
        file.unlink()
    assert "no videos and no folders of images" in fails(images, FileNotFoundError)
    for entry in (images / "running").iterdir():
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
    (images / "running").rmdir()
    assert "There is no folder of KTH" in fails(images, FileNotFoundError)


def test_a_broken_video_is_named(tmp_path):
    pytest.importorskip("av")
    for action in ACTIONS:
        (tmp_path / "kth" / action).mkdir(parents=True)
    (tmp_path / "kth" / "boxing" / "person01_boxing_d1_uncomp.avi").write_bytes(b"junk")
    assert "person01_boxing_d1_uncomp.avi can't be decoded" in fails(tmp_path / "kth")
