"""The cache of decoded frames: what is in it, what breaks, and what a kill leaves."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from lstmvid.data.video_cache import FrameCache
from lstmvid.data.video_frames import FrameFormat, read_frames
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")


@pytest.fixture
def videos(tmp_path):
    """A folder with three good videos, and an empty, a broken and a foreign one."""
    folder = tmp_path / "videos"
    write_video(folder / "a" / "one.avi", 7, size=(37, 51))
    write_video(folder / "a" / "two.mp4", 5, size=(40, 30), codec="libx264")
    write_video(folder / "b" / "three.mkv", 4, ticks=[0, 1, 5, 6], codec="libx264")
    (folder / "a" / "empty.avi").touch()
    (folder / "b" / "text.mp4").write_text("no video")
    broken = (folder / "a" / "two.mp4").read_bytes()
    (folder / "b" / "broken.mp4").write_bytes(broken[: len(broken) // 2])
    return folder


GOOD = ["a/one.avi", "a/two.mp4", "b/three.mkv"]
ALL = [*GOOD[:1], "a/empty.avi", *GOOD[1:], "b/broken.mp4", "b/text.mp4", "b/nowhere.mp4"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "frame_format", [FrameFormat(), FrameFormat(grey=True, whole=(9, 7)), FrameFormat(short_side=20)]
)
def test_contents(videos, tmp_path, caplog, frame_format, workers):
    cache = FrameCache(videos, tmp_path / "cache", frame_format)
    with caplog.at_level(logging.WARNING):
        there, broken = cache.fill(ALL, workers=workers)
    assert [video.video for video in there] == GOOD
    assert set(broken) == set(ALL) - set(GOOD)
    assert broken["b/nowhere.mp4"] == "there is no such file"
    assert sorted(record.message for record in caplog.records) == sorted(
        f"{videos / video} is left out: {reason}" for video, reason in broken.items()
    )
    for video in there:
        expected = list(read_frames(videos / video.video, frame_format))
        frames = cache.frames(video.video)
        assert frames.shape == video.shape == (len(expected), *expected[0].pixels.shape)
        assert np.array_equal(frames, np.stack([frame.pixels for frame in expected]))
        assert video.times() == pytest.approx([float(frame.time) for frame in expected])
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_is_decoded_twice(videos, tmp_path):
    cache = FrameCache(videos, tmp_path / "cache")
    first, _ = cache.fill(GOOD)
    times = {video: cache._file(video).stat().st_mtime_ns for video in GOOD}
    assert FrameCache(videos, tmp_path / "cache").fill(GOOD)[0] == first
    assert {video: cache._file(video).stat().st_mtime_ns for video in GOOD} == times
    # But for one that has changed.
    write_video(videos / "a" / "two.mp4", 3, size=(40, 30), codec="libx264")
    again, _ = cache.fill(GOOD)
    assert [video.shape[0] for video in again] == [7, 3, 4]
    assert len(cache.frames("a/two.mp4")) == 3
    assert cache._file("a/one.avi").stat().st_mtime_ns == times["a/one.avi"]


def test_a_full_cache_is_only_read(videos, tmp_path, monkeypatch):
    """It may be on a disk that others have filled."""
    first = FrameCache(videos, tmp_path / "cache").fill(GOOD)
    monkeypatch.setattr("lstmvid.data.video_cache._locked", None)
    assert FrameCache(videos, tmp_path / "cache").fill(GOOD) == first


def test_a_video_that_is_mended(videos, tmp_path):
    cache = FrameCache(videos, tmp_path / "cache")
    assert cache.fill(["b/broken.mp4"])[0] == []
    (videos / "b" / "broken.mp4").write_bytes((videos / "a" / "two.mp4").read_bytes())
    assert [video.video for video in cache.fill(["b/broken.mp4"])[0]] == ["b/broken.mp4"]


def test_a_line_that_was_being_written(videos, tmp_path):
    cache = FrameCache(videos, tmp_path / "cache")
    cache.fill(GOOD)
    index = cache.folder / "index.jsonl"
    whole = index.read_text()
    index.write_text(whole[:-30])
    there, _ = cache.fill(GOOD)
    assert [video.video for video in there] == GOOD
    assert sorted(index.read_text().splitlines()) == sorted(whole.splitlines())
    index.write_text("junk\n" + whole)
    with pytest.raises(ValueError, match=r"index.jsonl, line 1, is damaged"):
        cache.fill(GOOD)


def filling(cache: FrameCache, videos: list[str]) -> multiprocessing.Process:
    """A process that fills the cache; forked, for importing torch anew takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=cache.fill, args=(videos,))
    process.start()
    return process


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(tmp_path, stop):
    """Whenever it is killed, the next run decodes only what wasn't whole, and all is there in the end."""
    videos = [f"{number:02d}.avi" for number in range(12)]
    write_video(tmp_path / "videos" / videos[0], 40, size=(144, 176))
    for video in videos[1:]:
        (tmp_path / "videos" / video).write_bytes((tmp_path / "videos" / videos[0]).read_bytes())
    cache = FrameCache(tmp_path / "videos", tmp_path / "cache")
    index = cache.folder / "index.jsonl"
    process = filling(cache, videos)
    end = time.monotonic() + 60
    while not (index.exists() and index.read_bytes().count(b"\n") >= 2):
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(process.pid, stop)
    process.join(60)
    assert process.exitcode not in (None, 0)
    done = index.read_bytes().count(b"\n")
    assert 2 <= done < len(videos)
    before = {video: cache._file(video).stat().st_mtime_ns for video in videos[:done]}
    if stop == signal.SIGINT:
        assert not list(tmp_path.rglob("*.partial"))
    there, broken = cache.fill(videos)
    assert [video.video for video in there] == videos
    assert not broken
    assert {video: cache._file(video).stat().st_mtime_ns for video in before} == before
    assert not list(tmp_path.rglob("*.partial"))
    expected = cache.frames(videos[0])
    assert all(np.array_equal(cache.frames(video), expected) for video in videos)


def test_two_at_a_time(videos, tmp_path):
    """The second process waits for the first and decodes nothing again."""
    cache = FrameCache(videos, tmp_path / "cache")
    processes = [filling(cache, GOOD) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((cache.folder / "index.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_no_broken_video(videos, tmp_path, monkeypatch):
    cache = FrameCache(videos, tmp_path / "cache")

    monkeypatch.setattr("lstmvid.data.video_cache.written_whole", lambda path: nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left"):
        cache.fill(GOOD)


def test_wrong_workers(videos, tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        FrameCache(videos, tmp_path / "cache").fill(GOOD, workers=0)
