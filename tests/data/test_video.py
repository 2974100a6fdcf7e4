"""Clips of videos: which frames and pixels they show, by index, seed and part of the video."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch

from lstmvid.data.video import VideoClips
from lstmvid.data.video_frames import FrameFormat, read_frames
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips") / "videos"


@pytest.fixture
def videos(folder):
    """Twenty, nine and three frames, of different sizes, and a broken one."""
    if not folder.exists():
        write_video(folder / "a" / "long.avi", 20, size=(37, 51))
        write_video(folder / "b" / "short.mp4", 9, size=(48, 40), codec="libx264")
        write_video(folder / "b" / "tiny.mp4", 3, codec="libx264")
        (folder / "b" / "broken.mp4").write_bytes(b"junk")
    return folder


def frames(videos, name, frame_format=None) -> torch.Tensor:
    """All frames of a video, ``(T, C, H, W)``."""
    return torch.from_numpy(np.stack([frame.pixels for frame in read_frames(videos / name, frame_format)])).movedim(
        -1, 1
    )


def test_whole_frames(videos, caplog):
    with caplog.at_level(logging.WARNING):
        clips = VideoClips(videos, num_frames=4, size=(16, 12), crop="whole")
    assert clips.frame_shape == (3, 16, 12)
    assert len(clips) == 20 // 4 + 9 // 4
    assert set(clips.broken) == {"b/broken.mp4"}
    assert clips.unused == ["b/tiny.mp4"]
    assert clips.videos == ["a/long.avi", "b/short.mp4"]
    assert "1 of 3 videos" in caplog.text
    whole = FrameFormat(whole=(16, 12))
    expected = [*frames(videos, "a/long.avi", whole).split(4), *frames(videos, "b/short.mp4", whole)[:8].split(4)]
    for clip, truth in zip(clips, expected, strict=True):
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()
        assert torch.equal(clip, truth)
    assert torch.equal(clips[-1], clips[6])
    with pytest.raises(IndexError):
        clips[7]


def test_videos_that_are_not_there(videos, caplog):
    options = {"num_frames": 4, "size": 12}
    with caplog.at_level(logging.WARNING):
        clips = VideoClips(videos, videos=["a/long.avi", "a/x.avi", "b/short.mp4", "b/y.avi"], **options)
    assert clips.videos == ["a/long.avi", "b/short.mp4"]
    assert clips.broken == dict.fromkeys(("a/x.avi", "b/y.avi"), "there is no such file")
    assert [record.message for record in caplog.records] == [
        f"2 of 4 videos are not in {videos}, such as a/x.avi"  # one line, however many there are
    ]
    with pytest.raises(FileNotFoundError, match=r"has none of the 2 videos asked for, such as a/x\.avi"):
        VideoClips(videos, videos=["a/x.avi", "b/y.avi"], **options)


def test_centre_steps_and_strides(videos):
    """Every third frame, a clip at every second start."""
    clips = VideoClips(
        videos, num_frames=3, size=(11, 20), crop="centre", frame_step=3, clip_stride=2, grey=True, progress=False
    )
    assert clips.frame_shape == (1, 11, 20)
    long = frames(videos, "a/long.avi", FrameFormat(grey=True))
    assert [clips.place(index).start for index in range(len(clips))] == [*range(0, 14, 2), 0, 2]
    assert torch.equal(clips[2], long[[4, 7, 10], :, 13:24, 15:35])


def test_grid(videos):
    clips = VideoClips(videos, videos=["b/short.mp4"], num_frames=5, size=16, crop="grid", patch_stride=(16, 12))
    short = frames(videos, "b/short.mp4")
    corners = [(0, 0), (0, 12), (0, 24), (16, 0), (16, 12), (16, 24), (32, 0), (32, 12), (32, 24)]
    assert [clips.place(index)[2:] for index in range(len(clips))] == corners
    for clip, (top, left) in zip(clips, corners, strict=True):
        assert torch.equal(clip, short[:5, :, top : top + 16, left : left + 16])


def test_random_patches_depend_on_seed_and_index_alone(videos):
    options = {"num_frames": 2, "size": 9, "short_side": 24}
    clips = VideoClips(videos, seed=3, **options)
    again = VideoClips(videos, seed=3, **options)
    other = VideoClips(videos, seed=4, **options)
    assert torch.equal(clips[5], again[5])  # before and whatever else was asked for
    places = [clips.place(index) for index in range(len(clips))]
    assert places == [again.place(index) for index in range(len(clips))]
    assert [place[:2] for place in places] == [other.place(index)[:2] for index in range(len(clips))]
    assert [place[2:] for place in places] != [other.place(index)[2:] for index in range(len(clips))]
    for index in (0, 11):
        video, start, top, left = clips.place(index)
        truth = frames(videos, video, FrameFormat(short_side=24))[start : start + 2, :, top : top + 9, left : left + 9]
        assert torch.equal(clips[index], truth)


def test_random_clips_are_uniform_over_all_starts(videos):
    clips = VideoClips(videos, num_frames=4, size=30, count=4000, seed=1)
    assert len(clips) == 4000
    places = [clips.place(index) for index in range(4000)]
    starts = [(place.video, place.start) for place in places]
    every = [("a/long.avi", start) for start in range(17)] + [("b/short.mp4", start) for start in range(6)]
    counts = [starts.count(start) for start in every]
    assert sum(counts) == 4000
    assert max(abs(count - 4000 / 23) for count in counts) < 5 * (4000 / 23) ** 0.5
    tops = {place.top for place in places if place.video == "a/long.avi"}
    assert tops == set(range(37 - 30 + 1))
    assert VideoClips(videos, num_frames=4, size=30, count=5, seed=1)[4].equal(clips[4])


def test_parts_in_time_share_no_frame(videos, tmp_path):
    options = {"num_frames": 1, "size": 8, "crop": "centre", "progress": False}
    parts = [VideoClips(videos, fraction=part, **options) for part in ((0, 0.7), (0.7, 0.85), (0.85, 1))]
    places = [[part.place(index) for index in range(len(part))] for part in parts]
    assert [place.start for place in places[0] if place.video == "a/long.avi"] == list(range(14))
    whole = VideoClips(videos, **options)
    assert sorted(itertools.chain(*places)) == sorted(whole.place(index) for index in range(len(whole)))
    # By time stamps, where frames are shown for unequal times: at 0, 0.04, 0.2, 0.24 and 0.4 seconds.
    write_video(tmp_path / "v" / "a.mkv", 5, ticks=[0, 1, 5, 6, 10], codec="libx264")
    for seconds, expected in (((0, 0.2), [0, 1]), ((0.2, 0.3), [2, 3]), ((0.04, 9), [1, 2, 3, 4])):
        clips = VideoClips(tmp_path / "v", seconds=seconds, **options)
        assert [clips.place(index).start for index in range(len(clips))] == expected


def test_statistics(videos):
    clips = VideoClips(videos, num_frames=4, size=16, crop="whole")
    values = torch.stack(list(clips)).double() / 255
    mean, std = clips.statistics()
    assert mean == pytest.approx(values.mean((0, 1, 3, 4)).numpy())
    assert std == pytest.approx(values.std((0, 1, 3, 4), correction=0).numpy())
    assert clips.statistics(1)[0] == pytest.approx((clips[0].double() / 255).mean((0, 2, 3)).numpy())


def test_with_a_loader_of_several_processes(videos):
    clips = VideoClips(videos, num_frames=4, size=16)
    loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=2)
    assert all(torch.equal(given, expected) for given, expected in zip(loader, clips, strict=True))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"num_frames": 0}, "num_frames is 0, expected at least 1"),
        ({"size": (4, 5, 6)}, "size is .*, expected one integer, or two"),
        ({"size": 4.5}, "size is 4.5"),
        ({"crop": "center"}, "crop is 'center', expected one of random, centre, grid, whole"),
        ({"crop": "whole", "short_side": 20}, "short_side is 20, expected none"),
        ({"count": 5, "clip_stride": 2}, "clip_stride is 2, expected none with count"),
        ({"fraction": (0.5, 0.5)}, "fraction is"),
        ({"fraction": (0, 1.5)}, "fraction is"),
        ({"fraction": 3}, "fraction is 3, expected two numbers"),
        ({"seconds": (float("nan"), 2)}, "seconds is"),
        ({"seconds": (0, 2), "fraction": (0, 0.5)}, "expected one of them at most"),
        ({"seed": -1}, "seed is -1"),
        ({"num_frames": 21}, "no video with 21 frames of 32 x 32 pixels .* 1 are broken, 3 too short or too small"),
        ({"size": 500}, "no video with .* 500 x 500 pixels"),
    ],
)
def test_wrong_arguments(videos, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        VideoClips(videos, **arguments)
