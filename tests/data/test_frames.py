from __future__ import annotations

import numpy as np
import pytest
import torch

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut

CUT = Cut(input_frames=2, target_frames=1, validation_fraction=0.25, seed=1)


def save(path, shape, *, dtype=np.uint8, start=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, (start + np.arange(np.prod(shape))).reshape(shape).astype(dtype))


@pytest.mark.parametrize(
    ("shape", "frame_shape"), [((40, 5), (5,)), ((40, 3, 2), (1, 3, 2)), ((40, 2, 3, 4), (2, 3, 4))]
)
def test_one_sequence_is_cut_in_time(tmp_path, shape, frame_shape):
    save(tmp_path / "x.npy", shape, dtype=np.float64)
    splits = open_source("frames", str(tmp_path / "x.npy"), CUT)
    everything = torch.from_numpy(np.load(tmp_path / "x.npy")).float().reshape(40, *frame_shape)
    assert splits.training.frame_shape == frame_shape
    assert torch.equal(splits.training[1], everything[1:4])
    assert torch.equal(splits.test[0], everything[30:33])
    assert (len(splits.training), len(splits.validation), len(splits.test)) == (20, 2, 3)
    assert splits.validation[1].max() < splits.test[0].min()
    assert splits.training[19].max() < splits.validation[0].min()


def test_many_sequences_are_held_out(tmp_path):
    sequences = np.zeros((8, 3, 1, 2, 2), dtype=np.uint8)
    sequences += np.arange(8, dtype=np.uint8)[:, None, None, None, None]
    np.save(tmp_path / "x.npy", sequences)
    splits = open_source("frames", str(tmp_path / "x.npy"), CUT, {"stride": 2})
    parts = [{clip.max().item() for clip in part} for part in (splits.training, splits.validation, splits.test)]
    assert sorted(set.union(*parts)) == list(range(8))
    assert sum(map(len, parts)) == 8
    assert len(parts[2]) == 2


def test_folders_say_what_is_what(tmp_path):
    for start, name in ((0, "train/a"), (20, "train/b"), (100, "test/c")):
        save(tmp_path / f"{name}.npy", (13, 1), start=start)
    splits = open_source("frames", str(tmp_path), CUT)
    assert splits.test[0].min() == 100
    assert max(clip.max() for clip in splits.training) < 50
    save(tmp_path / "validation" / "d.npy", (9, 1), start=200)
    assert open_source("frames", str(tmp_path), CUT).validation[0].min() == 200


def test_what_is_refused(tmp_path):
    path = tmp_path / "x.npy"

    def fails(error: type[Exception] = ValueError, **options) -> str:
        with pytest.raises(error) as caught:
            open_source("frames", str(path), CUT, options)
        return str(caught.value)

    path.write_bytes(b"junk")
    assert "x.npy is not a NumPy array file, or is damaged" in fails()
    np.save(path, np.zeros((4, 2), dtype=np.int32))
    assert "holds int32 of shape (4, 2), expected uint8 or floats" in fails()
    np.save(path, np.zeros(4, dtype=np.float32))
    assert "holds float32 of shape (4,)" in fails()
    np.save(path, np.full((30, 2), np.nan, dtype=np.float32))
    assert "values that are not finite" in fails()
    np.save(path, np.zeros((6, 2), dtype=np.uint8))
    assert "too little for the part validation: the longest sequence has 1 frames, expected at least 3" in fails()
    assert "options.stride is 0" in fails(stride=0)
    path.unlink()
    path.mkdir()
    assert "no .npy file in" in fails(FileNotFoundError)
