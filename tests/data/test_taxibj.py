from __future__ import annotations

import numpy as np
import pytest
import torch

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut

CUT = Cut(input_frames=4, target_frames=4, validation_fraction=0.2)


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"X_train": 10, "Y_train": 10, "X_test": 3, "Y_test": 3}
    return {name: rng.uniform(-1, 1, (count, 4, 2, 32, 32)) for name, count in sizes.items()} | changes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clips(tmp_path, dtype):
    written = {name: array.astype(dtype) for name, array in arrays().items()}
    np.savez(tmp_path / "dataset.npz", **written)
    for path in (tmp_path, tmp_path / "dataset.npz"):
        splits = open_source("taxibj", str(path), CUT)
        assert (len(splits.training), len(splits.validation), len(splits.test)) == (8, 2, 3)
        clip = splits.test[2]
        assert clip.shape == (8, 2, 32, 32)
        assert clip.dtype == torch.float32
        expected = (np.concatenate([written["X_test"][2], written["Y_test"][2]]) + 1) / 2
        np.testing.assert_allclose(clip.numpy(), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(splits.validation[0][0].numpy(), (written["X_train"][8][0] + 1) / 2, rtol=1e-5)
    assert splits.fixed_length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Y_test": np.zeros((2, 4, 2, 32, 32))}, r"Y_test of shape \(2, 4, 2, 32, 32\)"),
        ({"X_train": np.zeros((10, 4, 32, 32, 2))}, r"X_train of shape \(10, 4, 32, 32, 2\) .* \(N, 4, 2, 32, 32\)"),
        ({"Y_train": np.zeros((10, 5, 2, 32, 32))}, "Y_train of shape"),
        ({"X_test": np.zeros(3)}, "X_test of shape"),
        ({"X_train": np.full((10, 4, 2, 32, 32), 255.0)}, r"X_train from 255 to 255, expected values in \[-1, 1\]"),
        ({"X_train": np.full((10, 4, 2, 32, 32), np.nan)}, "X_train from nan"),
        ({"X_train": np.zeros((10, 4, 2, 32, 32), dtype=np.int64)}, "type int64, expected floats"),
    ],
)
def test_other_arrays_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "dataset.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=message):
        open_source("taxibj", str(tmp_path), CUT)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no TaxiBJ file .*dataset\.npz"):
        open_source("taxibj", str(tmp_path), CUT)
    path = tmp_path / "dataset.npz"
    np.savez(path, **{name: array for name, array in arrays().items() if not name.startswith("Y")})
    with pytest.raises(ValueError, match=r"damaged: it lacks Y_train, Y_test"):
        open_source("taxibj", str(path), CUT)
    whole = path.read_bytes()
    for content in (b"junk", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"dataset\.npz is not TaxiBJ's dataset\.npz, or is damaged"):
            open_source("taxibj", str(path), CUT)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is not TaxiBJ's"):
        open_source("taxibj", str(tmp_path / "array.npy"), CUT)


def test_cut_has_to_be_the_files(tmp_path):
    np.savez(tmp_path / "dataset.npz", **arrays())
    with pytest.raises(ValueError, match="for 10 input and 10 target frames"):
        open_source("taxibj", str(tmp_path), Cut(input_frames=10, target_frames=10))
