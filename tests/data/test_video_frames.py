"""Decoding of real files in several containers and codecs, broken and odd ones among them."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lstmvid.data.video_frames import FrameFormat, VideoError, list_videos, read_frames
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")


@pytest.mark.parametrize(
    ("name", "codec", "size", "error"),
    [
        ("a.mp4", "libx264", (38, 52), 4),
        ("a.avi", "mpeg4", (37, 51), 4),
        ("a.mkv", "ffv1", (37, 51), 1),  # without loss but for the way from RGB and back
        ("a.webm", "libvpx-vp9", (35, 33), 4),
    ],
)
def test_round_trip(tmp_path, name, codec, size, error):
    expected = write_video(tmp_path / name, 11, size=size, codec=codec)
    frames = list(read_frames(tmp_path / name))
    assert [frame.time for frame in frames] == [Fraction(number, 25) for number in range(11)]
    pixels = np.stack([frame.pixels for frame in frames])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (11, *size, 3)
    assert np.abs(pixels.astype(int) - expected).mean() < error


def test_formats(tmp_path):
    colours = np.broadcast_to(np.array([200, 100, 50], np.uint8), (3, 40, 60, 3))
    path = tmp_path / "a.mp4"
    write_video(path, colours, codec="libx264")
    for given, shape in (
        (FrameFormat(grey=True), (40, 60, 1)),
        (FrameFormat(short_side=7), (7, 10, 3)),  # 10.5, to even
        (FrameFormat(whole=(9, 8)), (9, 8, 3)),
        (FrameFormat(whole=(50, 90), grey=True), (50, 90, 1)),
    ):
        frames = list(read_frames(path, given))
        assert [frame.pixels.shape for frame in frames] == [shape] * 3
        expected = [0.299 * 200 + 0.587 * 100 + 0.114 * 50] if given.grey else [200, 100, 50]  # the luma of BT.601
        assert frames[0].pixels.mean((0, 1)) == pytest.approx(expected, abs=3)
    names = {given.name for given in (FrameFormat(), FrameFormat(grey=True), FrameFormat(short_side=7))}
    assert names == {"rgb-full", "grey-full", "rgb-short7"}
    assert FrameFormat(whole=(9, 8)).name == "rgb-whole9x8"


def test_whole_frames_are_averaged_not_picked(tmp_path):
    """Stripes of one pixel become their mean: no pixels are skipped when frames shrink."""
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 240
    write_video(tmp_path / "a.mkv", stripes, codec="ffv1")
    pixels = next(read_frames(tmp_path / "a.mkv", FrameFormat(whole=(8, 8)))).pixels
    assert np.abs(pixels.astype(int) - 120).max() < 6


def test_times_of_a_variable_frame_rate(tmp_path):
    write_video(tmp_path / "a.mkv", 5, ticks=[5, 6, 8, 20, 51], codec="libx264")
    assert [float(frame.time) for frame in read_frames(tmp_path / "a.mkv")] == pytest.approx([0, 0.04, 0.12, 0.6, 1.84])


def test_names_that_ffmpeg_would_interpret(tmp_path):
    path = tmp_path / "http:%03d #1,.avi"
    write_video(tmp_path / "a.avi", 3)
    (tmp_path / "a.avi").rename(path)
    assert len(list(read_frames(path))) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "Invalid data"),
        (lambda content: content[:40], "Invalid data"),
        (lambda content: content[: len(content) // 2], "Invalid data"),  # the index of an MP4 is at its end
        (lambda content: b"<html>404 Not Found</html>", "Invalid data"),
    ],
)
def test_broken_file(tmp_path, damage, reason):
    path = tmp_path / "a.mp4"
    write_video(path, 5, codec="libx264")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VideoError, match=reason):
        list(read_frames(path))


def test_broken_on_the_way(tmp_path):
    path = tmp_path / "a.avi"
    write_video(path, 9, codec="rawvideo", size=(37, 51))
    path.write_bytes(path.read_bytes()[: 4 * 37 * 51 * 3])
    with pytest.raises(VideoError, match=r"decoding failed after [2-5] frames"):
        list(read_frames(path))


def test_without_a_video_stream(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="flt", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        list(read_frames(path))


def test_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no video file .*nowhere\.avi"):
        next(read_frames(tmp_path / "nowhere.avi"))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lstmvid\[video\]'"):
        next(read_frames(tmp_path / "nowhere.avi"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"whole": (8, 8), "short_side": 8}, "one of them at most"),
        ({"whole": (8, 0)}, "whole is"),
        ({"short_side": 0}, "short_side is 0"),
    ],
)
def test_wrong_format(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        FrameFormat(**arguments)


def test_list_videos(tmp_path):
    for name in (
        "b/z.avi",
        "a/y.MP4",
        "a/deep/x.mkv",
        "top.webm",
        "a/readme.txt",
        "a/cover.jpg",
        "a/._y.mp4",
        ".t/q.avi",
    ):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "videos" / "b" / "link").symlink_to(tmp_path / "videos")  # a circle
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "w.mov").touch()
    (tmp_path / "videos" / "c").symlink_to(elsewhere)
    assert list_videos(tmp_path / "videos") == ["a/deep/x.mkv", "a/y.MP4", "b/z.avi", "c/w.mov", "top.webm"]
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        list_videos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no video files"):
        list_videos(Path(tmp_path, "empty"))
