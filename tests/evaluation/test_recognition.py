"""The protocol of recognition: blocks, averages, files of scores, fusing, accuracies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmvid.evaluation.recognition import Scores, VideoAverage, block_starts, fuse, mean_and_deviation


@pytest.mark.parametrize(
    ("length", "starts"), [(1, [0]), (15, [0]), (16, [0]), (23, [0]), (24, [0, 8]), (40, [0, 8, 16, 24])]
)
def test_blocks(length, starts):
    assert list(block_starts(length)) == starts


def test_blocks_of_another_size():
    assert list(block_starts(11, frames=3, stride=4)) == [0, 4, 8]


def test_average_over_blocks_in_any_order():
    probabilities = torch.softmax(torch.randn(7, 3), -1)
    videos = torch.tensor([2, 0, 2, 1, 0, 2, 2])
    average = VideoAverage(3, 3)
    with pytest.raises(ValueError, match="3 of 3 videos have no block"):
        average.compute()
    for chosen in ([6, 1, 0], [2], [5, 3, 4]):
        average.update(videos[chosen], probabilities[chosen])
    expected = torch.stack([probabilities[videos == video].double().mean(0) for video in range(3)])
    torch.testing.assert_close(average.compute(), expected)


def scores(**changes) -> Scores:
    arguments = {
        "names": ("a/1", "b/1", "ä/2", "c/1"),
        "probabilities": torch.tensor(
            [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64
        ),
        "labels": torch.tensor([0, 1, 1, 2]),
        "classes": ("läuft", "ruht", "fällt"),
    }
    return Scores(**arguments | changes)


def test_accuracy_and_confusion():
    assert scores().accuracy() == 0.75
    assert scores().accuracy(top=2) == 1.0
    assert scores().confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    expected = -sum(map(math.log, (0.6, 0.4, 0.8, 0.6))) / 4
    assert scores().cross_entropy() == pytest.approx(expected)
    certain = scores(probabilities=torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]])
    assert certain.cross_entropy() == pytest.approx(-math.log(1e-12) / 4)


def test_files_of_scores(tmp_path):
    path = tmp_path / "new" / "scores.npz"
    scores().save(path)
    loaded = Scores.load(path)
    assert (loaded.names, loaded.classes) == (scores().names, scores().classes)
    assert torch.equal(loaded.probabilities, scores().probabilities)
    assert torch.equal(loaded.labels, scores().labels)
    with np.load(path) as file:  # without pickled objects
        assert set(file) == {"names", "probabilities", "labels", "classes"}


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 no archive"])
def test_damaged_file_of_scores(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz is not a file of scores, or is damaged"):
        Scores.load(path)


def test_file_that_is_none_of_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of scores .*nothing\.npz"):
        Scores.load(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", names=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz is not a file of scores"):
        Scores.load(tmp_path / "other.npz")
    evil = Path(tmp_path / "evil.npz")
    np.savez(evil, names=np.array([{}], dtype=object), probabilities=0, labels=0, classes=0)
    with pytest.raises(ValueError, match="allow_pickle"):
        Scores.load(evil)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "a", "b", "c")}, "names has 4 videos, 3 different ones"),
        ({"labels": torch.tensor([0, 1])}, r"labels has shape \(2,\), expected \(4,\)"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, "labels go from 0 to 3, expected below 3"),
        ({"classes": ("a", "b")}, r"probabilities has shape \(4, 3\), expected \(4, 2\)"),
        ({"probabilities": torch.full((4, 3), torch.nan)}, "not finite or below 0"),
        ({"probabilities": torch.full((4, 3), -0.1)}, "not finite or below 0"),
    ],
)
def test_wrong_scores(changes, message):
    with pytest.raises(ValueError, match=message):
        scores(**changes)


def test_fusing_by_weights_whatever_the_order():
    order = [2, 0, 3, 1]
    other = torch.softmax(torch.randn(4, 3, dtype=torch.float64), -1)
    flow = scores(
        names=tuple(scores().names[place] for place in order),
        labels=scores().labels[order],
        probabilities=other[order],
    )
    fused = fuse([scores(), flow], [1, 3])
    assert fused.names == scores().names
    torch.testing.assert_close(fused.probabilities, (scores().probabilities + 3 * other) / 4)
    torch.testing.assert_close(fuse([scores(), flow]).probabilities, (scores().probabilities + other) / 2)
    assert torch.equal(fuse([scores(), flow], [1, 0]).probabilities, scores().probabilities)


@pytest.mark.parametrize(
    ("other", "weights", "message"),
    [
        ({}, [1], "1 weights for 2 streams"),
        ({}, [1, -1], r"weights are \[1, -1\], expected finite numbers of at least 0"),
        ({}, [0, 0], "aren't all 0"),
        ({}, [1, math.inf], "expected finite"),
        ({"classes": ("a", "b", "c")}, None, "stream 2 has other classes"),
        ({"names": ("a/1", "b/1", "x", "c/1")}, None, "2 are in one of them only, such as 'x'"),
        ({"labels": torch.tensor([0, 1, 2, 2])}, None, "stream 2 has other labels"),
    ],
)
def test_streams_that_do_not_fit(other, weights, message):
    with pytest.raises(ValueError, match=message):
        fuse([scores(), scores(**other)], weights)


def test_mean_over_splits():
    mean, deviation = mean_and_deviation([0.7, 0.8, 0.9])
    assert (mean, deviation) == (pytest.approx(0.8), pytest.approx(0.1))
    assert math.isnan(mean_and_deviation([0.7])[1])
    with pytest.raises(ValueError, match="empty"):
        mean_and_deviation([])
