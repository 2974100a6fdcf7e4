"""The percepts file: what is written comes back, also after a kill; the authors' layout; clips."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lstmvid.data import PerceptClips, Percepts, PerceptsWriter

SIZE = 5
LENGTHS = (3, 1, 7, 4)


def features(video: int) -> torch.Tensor:
    return torch.arange(LENGTHS[video] * SIZE).reshape(-1, SIZE) + 100.0 * video


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "new" / "percepts.h5"
    with PerceptsWriter(path, SIZE, classes=["läuft", "ruht"], attributes={"network": "a net", "rate": 25.0}) as writer:
        for video in range(len(LENGTHS)):
            writer.append(f"videos/ä{video}.avi", features(video), label=video % 2)
    return path


def resume(path: Path, **changes) -> PerceptsWriter:
    settings = {"classes": ["läuft", "ruht"], "attributes": {"network": "a net", "rate": 25.0}} | changes
    return PerceptsWriter(path, settings.pop("feature_size", SIZE), **settings)


def test_round_trip(path):
    percepts = Percepts(path)
    assert len(percepts) == 4
    assert percepts.names == ("videos/ä0.avi", "videos/ä1.avi", "videos/ä2.avi", "videos/ä3.avi")
    assert percepts.lengths.tolist() == list(LENGTHS)
    assert percepts.labels.tolist() == [0, 1, 0, 1]
    assert percepts.classes == ("läuft", "ruht")
    assert percepts.attributes == {"network": "a net", "rate": 25.0}
    assert percepts.feature_size == SIZE
    for video, read in enumerate(percepts):
        assert read.dtype == torch.float32
        assert torch.equal(read, features(video))
    assert torch.equal(percepts[-1], features(3))
    assert torch.equal(percepts.read(2, 3, 5), features(2)[3:5])
    with pytest.raises(IndexError):
        percepts[4]
    with pytest.raises(ValueError, match=r"frames 3 to 8 of 'videos/ä2\.avi' don't exist: it has 7"):
        percepts.read(2, 3, 8)
    assert os.listdir(path.parent) == ["percepts.h5"]


def test_going_on(path):
    with resume(path) as writer:
        assert writer.names == Percepts(path).names
        writer.append("more", features(1).double().numpy())
    percepts = Percepts(path)
    assert percepts.names[-1] == "more"
    assert percepts.labels.tolist() == [0, 1, 0, 1, -1]
    assert torch.equal(percepts[4], features(1))
    assert torch.equal(percepts[3], features(3))


def test_one_writer_at_a_time(path):
    with resume(path) as writer:
        with pytest.raises(ValueError, match="is being written to already"):
            resume(path)
        writer.append("more", features(0))
    reader = Percepts(path)
    reader[0]
    with pytest.raises(ValueError, match="can't be written to, perhaps because it is being read"):
        resume(path)
    reader.close()
    with resume(path) as writer:
        assert len(writer.names) == 5
    assert torch.equal(reader[4], features(0))


def test_an_empty_file_is_one(tmp_path):
    PerceptsWriter(tmp_path / "empty.h5", 3).close()
    percepts = Percepts(tmp_path / "empty.h5")
    assert (len(percepts), percepts.feature_size, percepts.classes, percepts.attributes) == (0, 3, None, {})
    with PerceptsWriter(tmp_path / "empty.h5", 3) as writer:
        assert writer.names == ()


def test_large_frames_and_bfloat16(tmp_path):
    values = torch.randn(2, 70_001).bfloat16()
    with PerceptsWriter(tmp_path / "large.h5", 70_001) as writer:
        writer.append("one", values)
    assert torch.equal(Percepts(tmp_path / "large.h5")[0], values.float())


def write_without_end(path: Path, pipe) -> None:
    with PerceptsWriter(path, 300) as writer:
        for video in range(len(writer.names), 10**6):
            writer.append(f"video {video}", np.full((1 + video % 13, 300), video, np.float32), label=video)
            pipe.send(video)


def test_killed_writer_loses_one_video_at_most_each_time(tmp_path):
    path, processes = tmp_path / "killed.h5", get_context("fork")
    for kill in range(6):
        ours, theirs = processes.Pipe(duplex=False)
        writer = processes.Process(target=write_without_end, args=(path, theirs))
        writer.start()
        theirs.close()
        for _ in range(20):
            done = ours.recv()
        assert len(Percepts(path)) > done  # while it is being written
        time.sleep(0.003 * kill)
        writer.kill()
        writer.join()
        with contextlib.suppress(EOFError):
            while True:
                done = ours.recv()
        percepts = Percepts(path)
        assert done <= len(percepts) - 1 <= done + 1
        for video, read in enumerate(percepts):
            assert torch.equal(read, torch.full((1 + video % 13, 300), float(video)))
        assert percepts.labels.tolist() == list(range(len(percepts)))
    with PerceptsWriter(path, 300) as writer:  # which copies what counts
        writer.append("last", np.zeros((2, 300)))
    h5py.File(path, "r").close()  # an ordinary file again
    assert Percepts(path).names[-2:] == (f"video {len(percepts) - 1}", "last")
    assert os.listdir(tmp_path) == ["killed.h5"]  # nor a partial file, nor the lock


def test_rows_that_do_not_count_are_ignored_and_cut_off(path):
    with h5py.File(path, "r+") as file:
        for table, more in (("features", 9), ("labels", 1), ("names", 1)):
            file[table].resize(len(file[table]) + more, axis=0)
    assert len(Percepts(path).names) == len(Percepts(path).labels) == 4
    with resume(path) as writer:
        writer.append("more", features(0))
    assert torch.equal(Percepts(path)[4], features(0))
    with h5py.File(path, "r") as file:
        assert len(file["features"]) == sum(LENGTHS) + LENGTHS[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 6}, "holds 5 features a frame, expected 6"),
        ({"classes": ["läuft"]}, "begun with the classes läuft, ruht, but is to be gone on with läuft"),
        ({"classes": None}, r"gone on with \(none\)"),
        ({"attributes": {"network": "other", "rate": 25.0}}, "begun with network 'a net', but is to be gone on with"),
        ({"attributes": {"network": "a net"}}, "begun with rate 25.0, but is to be gone on with None"),
        ({"attributes": {"classes": 1}}, "attributes names classes"),
        ({"feature_size": 0}, "feature_size is 0, expected an integer of at least 1"),
    ],
)
def test_wrong_resumption(path, changes, message):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        resume(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", torch.zeros(3, 4)), r"features of 'a' have shape \(3, 4\), expected \(T, 5\)"),
        (("a", torch.zeros(0, SIZE)), "T > 0"),
        (("a", torch.zeros(3, SIZE).int()), "are int32, expected floating point"),
        (("a", torch.full((3, SIZE), torch.nan)), "not finite"),
        (("a", torch.full((3, SIZE), 1e300, dtype=torch.float64).numpy()), "not finite"),
        (("a", torch.zeros(3, SIZE), 2), "label of 'a' is 2, expected -1 or a class below 2"),
        (("a", torch.zeros(3, SIZE), -2), "label of 'a' is -2"),
        (("", torch.zeros(3, SIZE)), "takes 0 bytes"),
        (("ä" * 257, torch.zeros(3, SIZE)), "takes 514 bytes, expected 1 to 512"),
        (("videos/ä1.avi", torch.zeros(3, SIZE)), r"has a video 'videos/ä1\.avi' already"),
    ],
)
def test_wrong_videos(path, arguments, message):
    with resume(path) as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(*arguments)
        writer.append("sound", features(2))
    percepts = Percepts(path)
    assert len(percepts) == 5
    assert torch.equal(percepts[4], features(2))


def test_unreadable_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no percepts file .*nothing\.h5"):
        Percepts(tmp_path / "nothing.h5")
    junk = tmp_path / "junk.h5"
    junk.write_bytes(b"no such format" * 100)
    with pytest.raises(ValueError, match=r"junk\.h5 is not an HDF5 file, or is damaged"):
        Percepts(junk)
    junk.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"junk\.h5 is not an HDF5 file, or is damaged"):
        Percepts(junk)
    with pytest.raises(ValueError, match=r"has everything in itself: labels"):
        Percepts(path, labels="labels.txt")
    with h5py.File(path, "r+") as file:
        file["features"].resize(2, axis=0)
    with pytest.raises(ValueError, match=r"holds 2 frames, but it counts 15"):
        Percepts(path)
    with h5py.File(path, "r+") as file:
        del file["names"]
    with pytest.raises(ValueError, match="lacks names"):
        Percepts(path)
    with h5py.File(path, "r+") as file:
        file.attrs["lstmvid"] = 2
    with pytest.raises(ValueError, match="version 2, expected 1"):
        Percepts(path)


def test_shuffled_and_subset(path):
    percepts = Percepts(path)
    once, again = percepts.shuffled(3), percepts.shuffled(3)
    assert once.names == again.names
    assert sorted(once.names) == list(percepts.names)
    orders = {percepts.shuffled(3, epoch).names for epoch in range(8)} | {percepts.shuffled(4).names}
    assert len(orders) > 3
    part = percepts.subset([2, -1])
    assert part.names == (percepts.names[2], percepts.names[3])
    assert part.labels.tolist() == [0, 1]
    assert torch.equal(part[0], features(2))
    assert torch.equal(part.subset([1])[0], features(3))
    with pytest.raises(IndexError):
        percepts.subset([4])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_open_the_file_for_themselves(path, context):
    percepts = Percepts(path)
    percepts[0]  # open here
    clips = PerceptClips(percepts, 2)
    loader = DataLoader(clips, batch_size=3, num_workers=2, multiprocessing_context=context)
    batches = torch.cat(list(loader))
    assert torch.equal(batches, torch.stack([clips[index] for index in range(len(clips))]))
    assert torch.equal(pickle.loads(pickle.dumps(percepts))[2], features(2))


def test_clips(path):
    percepts = Percepts(path)
    clips = PerceptClips(percepts, 3, stride=2)
    assert [clips.locate(index) for index in range(len(clips))] == [(0, 0), (2, 0), (2, 2), (2, 4), (3, 0)]
    assert clips.frame_shape == (SIZE,)
    for index in range(len(clips)):
        video, first = clips.locate(index)
        assert torch.equal(clips[index], features(video)[first : first + 3])
    with pytest.raises(IndexError):
        clips[5]
    with pytest.raises(ValueError, match=r"no video of 8 frames: the longest has 7"):
        PerceptClips(percepts, 8)
    for wrong in ({"frames": 0}, {"frames": 2, "stride": 0}, {"frames": 2.0}):
        with pytest.raises(ValueError, match="expected an integer of at least 1"):
            PerceptClips(percepts, **wrong)


# ---- the authors' layout ----


@pytest.fixture
def original(tmp_path) -> dict[str, Path]:
    files = {"path": tmp_path / "train_features.h5"}
    with h5py.File(files["path"], "w") as file:
        file["fc6"] = np.concatenate([features(video) for video in range(4)]).astype(np.float64)
    for name, lines in (("frame_counts", LENGTHS), ("labels", (0, 1, 1, 7)), ("names", ("a", "b c", "ä", "d"))):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return files


def test_original_layout(original):
    percepts = Percepts(**original)
    assert percepts.is_original
    assert percepts.lengths.tolist() == list(LENGTHS)
    assert percepts.labels.tolist() == [0, 1, 1, 7]
    assert percepts.names == ("a", "b c", "ä", "d")
    assert percepts.classes is None
    for video, read in enumerate(percepts):
        assert read.dtype == torch.float32
        assert torch.equal(read, features(video))
    plain = Percepts(original["path"], frame_counts=original["frame_counts"])
    assert plain.labels.tolist() == [-1] * 4
    assert plain.names == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match="isn't a percepts file of lstmvid's"):
        PerceptsWriter(original["path"], SIZE)


def test_original_layout_that_does_not_fit(original, tmp_path):
    with pytest.raises(ValueError, match="frame_counts is needed"):
        Percepts(original["path"])
    with h5py.File(original["path"], "r+") as file:
        file["other"] = np.zeros((15, 2))
    with pytest.raises(ValueError, match=r"data sets fc6, other: dataset is None, expected one of them"):
        Percepts(**original)
    with pytest.raises(ValueError, match="dataset is 'fc7'"):
        Percepts(**original, dataset="fc7")
    assert Percepts(**original, dataset="other").feature_size == 2
    for name, text, message in (
        ("frame_counts", "3\n1\n7\n3\n", r"holds 15 frames, but .*counts\.txt counts 14"),
        ("frame_counts", "3\n1\n7\n5\n", r"holds 15 frames, but .*counts\.txt counts 16"),
        ("frame_counts", "3\n0\n8\n4\n", r"counts\.txt, entry 2 is '0', expected an integer of at least 1"),
        ("labels", "1\nx\n", r"labels\.txt, entry 2 is 'x', expected an integer of at least -1"),
        ("labels", "1\n", r"labels\.txt has 1 labels, but .*counts\.txt has 4 videos"),
        ("names", "1\n", r"names\.txt has 1 names"),
    ):
        wrong = tmp_path / "wrong" / f"{name}.txt"
        wrong.parent.mkdir(exist_ok=True)
        wrong.write_text(text)
        with pytest.raises(ValueError, match=message):
            Percepts(**original | {name: wrong}, dataset="fc6")
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.txt"):
        Percepts(original["path"], frame_counts=tmp_path / "nowhere.txt", dataset="fc6")
