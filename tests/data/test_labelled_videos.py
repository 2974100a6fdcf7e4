"""Who is for training and who for testing: official splits, lists, chance; few videos a class; decoded patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lstmvid.data import Percepts, PerceptsWriter
from lstmvid.data.labelled_videos import (
    FrameVideos,
    drawn_membership,
    few_of_each_class,
    hold_out,
    listed_membership,
    official_membership,
)

NAMES = tuple(f"{name}/v_{name}_g{number:02d}" for name in ("Archery", "Bowling") for number in range(1, 8))


def write(path: Path, names=NAMES, labels=True, classes=("Archery", "Bowling")) -> Percepts:
    with PerceptsWriter(path, 2, classes=classes) as writer:
        for name in names:
            writer.append(name, torch.zeros(3, 2), label=int(name.startswith("B")) if labels else -1)
    return Percepts(path)


@pytest.fixture
def splits(tmp_path) -> Path:
    """UCF-101's files; the classes' numbers are the other way round than in the percepts' file."""
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 Bowling\n2 Archery\n")
    numbers = {"Bowling": 1, "Archery": 2}
    train = [f"{name}.avi {numbers[name.partition('/')[0]]}\n" for name in NAMES if name[-1] not in "12"]
    (folder / "trainlist02.txt").write_text("".join(train))
    (folder / "testlist02.txt").write_text("".join(f"{name}.avi\n" for name in NAMES if name[-1] in "12"))
    return folder


def test_official_split(tmp_path, splits):
    videos = write(tmp_path / "p.h5", NAMES[::-1], labels=False)
    parts = official_membership(videos, "ucf101", splits, 2)
    assert parts.classes == ("Bowling", "Archery")
    assert sorted(videos.names[place] for place in parts.test) == sorted(name for name in NAMES if name[-1] in "12")
    assert len(parts.training) == 10
    assert not set(parts.training) & set(parts.test)
    for place, name in enumerate(videos.names):
        assert parts.classes[parts.labels[place]] == name.partition("/")[0]


def test_videos_of_a_split_that_are_not_there(tmp_path, splits):
    videos = write(tmp_path / "p.h5", NAMES[1:])
    with pytest.raises(ValueError, match=r"p\.h5 lacks 1 of the 14 videos of split 2 in .*, such as 'Archery/v_Arch"):
        official_membership(videos, "ucf101", splits, 2)
    parts = official_membership(videos, "ucf101", splits, 2, allow_missing=True)
    assert (len(parts.training), len(parts.test)) == (10, 3)
    with pytest.raises(ValueError, match="lacks 14 of the 14"):
        official_membership(write(tmp_path / "q.h5", ["x"]), "ucf101", splits, 2, allow_missing=True)


def test_lists(tmp_path):
    videos = write(tmp_path / "p.h5")
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text(f"{NAMES[3]}\n\n{NAMES[8]}\n{NAMES[3]}\n")
    test.write_text(f"{NAMES[0]}\n")
    parts = listed_membership(videos, train, test)
    assert (parts.training, parts.test, parts.classes) == ((3, 8), (0,), ("Archery", "Bowling"))
    assert parts.labels.tolist() == [0] * 7 + [1] * 7
    test.write_text(f"{NAMES[0]}\n{NAMES[8]}\n")
    with pytest.raises(ValueError, match=r"train\.txt and .*test\.txt both have the video 'Bowling/v_Bowling_g02'"):
        listed_membership(videos, train, test)
    test.write_text("unknown\n")
    with pytest.raises(ValueError, match=r"lacks 1 of the 1 videos of .*test\.txt, such as 'unknown'"):
        listed_membership(videos, train, test)
    test.write_text("")
    with pytest.raises(ValueError, match="has 2 training and 0 test videos"):
        listed_membership(videos, train, test)
    with pytest.raises(FileNotFoundError, match=r"no list of videos .*nowhere"):
        listed_membership(videos, train, tmp_path / "nowhere")
    test.write_text(f"{NAMES[0]}\n")
    with pytest.raises(ValueError, match="has no label for the video"):
        listed_membership(write(tmp_path / "q.h5", labels=False), train, test)


def test_classes_without_names_are_numbers(tmp_path):
    parts = drawn_membership(write(tmp_path / "p.h5", classes=None), 0.3, 0)
    assert parts.classes == ("0", "1")


def test_drawn(tmp_path):
    videos = write(tmp_path / "p.h5")
    parts = drawn_membership(videos, 0.3, 5)
    assert parts.labels[list(parts.test)].bincount().tolist() == [2, 2]
    assert parts.labels[list(parts.training)].bincount().tolist() == [5, 5]
    assert not set(parts.training) & set(parts.test)
    assert drawn_membership(videos, 0.3, 5).test == parts.test
    assert len({drawn_membership(videos, 0.3, seed).test for seed in range(8)}) > 3
    assert drawn_membership(videos, 0.01, 5).labels[list(drawn_membership(videos, 0.01, 5).test)].tolist() == [0, 1]
    with pytest.raises(ValueError, match="has no labels: extract the videos with --layout"):
        drawn_membership(write(tmp_path / "q.h5", labels=False), 0.3, 5)


def test_hold_out_and_few():
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 0])
    assert hold_out(range(7), labels, 0, 1) == (tuple(range(7)), ())
    kept, away = hold_out(range(7), labels, 0.5, 1)
    assert labels[list(away)].bincount(minlength=3).tolist() == [2, 1, 0]  # of one alone nothing is held out
    assert sorted(kept + away) == list(range(7))
    before: set[int] = set()
    for count in (1, 2, 3, 4):
        few = few_of_each_class(range(7), labels, count, 1)
        assert labels[list(few)].bincount().tolist() == [min(count, 4), min(count, 2), 1]
        assert before <= set(few)
        before = set(few)


def test_patches_of_decoded_videos(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    for name, brightness in (("walk/a", 60), ("run/b", 200)):
        path = tmp_path / "videos" / f"{name}.avi"
        path.parent.mkdir(parents=True)
        with av.open(str(path), "w") as file:
            stream = file.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 40, 24, "bgr0"
            for number in range(5):
                pixels = np.full((24, 40, 3), brightness + number, np.uint8)
                pixels[:, :8] = 0  # outside of the patch
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="bgr0")))
            file.mux(stream.encode(None))
    videos = FrameVideos(tmp_path / "videos", size=16, short_side=24)
    assert (videos.names, videos.classes) == (("run/b", "walk/a"), ("run", "walk"))
    assert videos.labels.tolist() == [0, 1]
    assert videos.lengths.tolist() == [5, 5]
    patch = videos.read(1, 1, 4)
    assert (patch.dtype, tuple(patch.shape), videos.frame_shape) == (torch.uint8, (3, 3, 16, 16), (3, 16, 16))
    assert patch.float().mean((1, 2, 3)).tolist() == pytest.approx([61, 62, 63], abs=1)
    assert patch.float().std((1, 2, 3)).max() < 1
    with pytest.raises(ValueError, match="short_side is 8, expected at least the patch's 16"):
        FrameVideos(tmp_path / "videos", size=16, short_side=8)
