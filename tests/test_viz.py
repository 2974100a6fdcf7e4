from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lstmvid.viz import gif, loss_curve, strip, strip_image

LEVELS = torch.linspace(0, 1, 5).view(5, 1, 1).expand(5, 16, 16)


def colours(picture: Image.Image) -> set[int]:
    return set(np.asarray(picture.convert("L")).ravel().tolist())


def test_strip_shows_every_frame_magnified_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "strip.png"
    strip({"input": LEVELS, "reconstruction": LEVELS.flip(0)}, path, scale=3)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    # Each grey level fills a square of 48 pixels twice; 1.0 is the paper's white and 0.0 no label's colour.
    for level in (0, 64, 128, 191):
        assert (pixels == level).sum() >= 2 * 48 * 48
    first_row, second_row = np.nonzero((pixels == 64).sum(1) >= 48)[0][[0, -1]]
    assert second_row - first_row > 48
    assert np.median(np.nonzero(pixels[first_row] == 64)) < np.median(np.nonzero(pixels[second_row] == 64))
    assert os.listdir(path.parent) == ["strip.png"]


def test_strip_aligns_rows_that_overlap_in_time_and_stacks_the_others() -> None:
    grey = torch.full((4, 16, 16), 128, dtype=torch.uint8)
    aligned = strip_image({"truth": grey, "prediction": grey[:2]}, starts={"prediction": 3})
    pixels = np.asarray(aligned.convert("L")) == 128
    lower = np.nonzero(pixels.sum(1) == pixels.sum(1).max() // 2)[0]
    upper = np.nonzero(pixels.sum(1) == pixels.sum(1).max())[0]
    assert np.nonzero(pixels[lower[-1]])[0].max() == np.nonzero(pixels[upper[0]])[0].max()

    stacked = strip_image({"input": grey, "truth": grey}, starts={"truth": 5})
    side_by_side = strip_image({"input": grey, "truth": torch.cat([grey, grey])})
    assert stacked.width < side_by_side.width
    assert stacked.height > side_by_side.height


@pytest.mark.parametrize(
    "frames",
    [
        torch.rand(3, 16, 16),
        torch.rand(3, 1, 16, 16),
        torch.rand(3, 3, 16, 16).bfloat16(),
        torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8),
        np.random.default_rng(0).random((3, 16, 16)),
        torch.rand(3, 16, 16, requires_grad=True),
    ],
)
def test_kinds_of_frames(frames: torch.Tensor | np.ndarray) -> None:
    assert strip_image({"frames": frames}).size == strip_image({"frames": torch.rand(3, 16, 16)}).size


def test_values_are_clipped_and_colour_is_kept() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0], red[:, 1] = 7.0, -3.0
    picture = np.asarray(strip_image({"": red}, scale=1))
    assert ((picture == (255, 0, 0)).all(2)).sum() == 16 * 16


def test_gif_has_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    still = torch.zeros(6, 16, 16)
    gif({"truth": still, "prediction": still[:2]}, path, fps=4, starts={"prediction": 5}, scale=2)
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 6
        assert picture.info["duration"] == 250
        assert picture.info["loop"] == 0
        black = []
        for index in range(6):
            picture.seek(index)
            black.append((np.asarray(picture.convert("L")) == 0).sum())
    assert black == [32 * 32] * 4 + [2 * 32 * 32] * 2
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize("scale", [None, 1])
def test_gif_grows_small_frames(tmp_path: Path, scale: int | None) -> None:
    gif({"noise": torch.rand(2, 16, 16)}, tmp_path / "a.gif", scale=scale)
    with Image.open(tmp_path / "a.gif") as picture:
        assert (picture.width > 128) == (scale is None)


def test_loss_curve_of_records_and_of_a_csv_file(tmp_path: Path) -> None:
    records = [{"step": step, "train_loss": 700 - step} for step in range(50)]
    records += [{"step": 49, "val_loss": 690.0, "train_loss": ""}, {"step": 30, "val_loss": 680.0}]
    curves = {"train_loss": "training", "val_loss": "validation"}
    loss_curve(records, tmp_path / "records.png", curves=curves, floors={"mean image": 666.5}, ylabel="nats")

    lines = [
        "step,train_loss,val_loss",
        *(f"{r['step']},{r.get('train_loss', '')},{r.get('val_loss', '')}" for r in records),
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    loss_curve(
        tmp_path / "metrics.csv", tmp_path / "csv.png", curves=curves, floors={"mean image": 666.5}, ylabel="nats"
    )
    with Image.open(tmp_path / "records.png") as one, Image.open(tmp_path / "csv.png") as other:
        assert one.size == other.size == (840, 480)
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert len(colours(one)) > 20


def test_loss_curve_rejects(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    with pytest.raises(ValueError, match="both 'step' and 'loss'; the columns are: step, train"):
        loss_curve([{"step": 1, "train": 2}], path, curves={"loss": "loss"})
    with pytest.raises(ValueError, match="not a number"):
        loss_curve([{"step": 1, "loss": "much"}], path, curves={"loss": "loss"})
    with pytest.raises(FileNotFoundError, match="no file of losses"):
        loss_curve(tmp_path / "metrics.csv", path, curves={"loss": "loss"})
    assert not any(tmp_path.iterdir())


def test_pictures_leave_the_matplotlib_backend_alone() -> None:
    script = (
        "import sys, tempfile, torch, lstmvid.viz as viz\n"
        "folder = tempfile.mkdtemp()\n"
        "viz.strip({'a': torch.rand(2, 8, 8)}, folder + '/a.png')\n"
        "assert 'matplotlib' not in sys.modules\n"
        "viz.loss_curve([{'step': 1, 'loss': 2}], folder + '/b.png', curves={'loss': 'loss'})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib\n"
        "assert matplotlib.rcParams._get_backend_or_none() is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ({}, {}, "rows is empty"),
        ({"truth": torch.zeros(2, 8)}, {}, r"row 'truth' has shape \(2, 8\)"),
        ({"truth": torch.zeros(2, 2, 8, 8)}, {}, "C 1 or 3"),
        ({"truth": torch.zeros(0, 8, 8)}, {}, "not empty"),
        ({"truth": torch.zeros(2, 8, 0)}, {}, "not empty"),
        ({"truth": torch.full((2, 8, 8), float("nan"))}, {}, "row 'truth' contains values that are not finite"),
        ({"truth": torch.full((2, 8, 8), float("inf"))}, {}, "not finite"),
        ({"truth": torch.zeros(2, 8, 8, dtype=torch.int64)}, {}, "row 'truth' is int64"),
        ({"a": torch.zeros(2, 8, 8), "b": torch.zeros(2, 8, 9)}, {}, r"different sizes \(a 8 x 8, b 8 x 9\)"),
        ({"truth": torch.zeros(2, 8, 8)}, {"starts": {"true": 3}}, "starts names true, expected labels of rows: truth"),
        ({"truth": torch.zeros(2, 8, 8)}, {"scale": 0}, "scale is 0"),
        ({"truth": torch.zeros(2, 8, 8)}, {"scale": 1.5}, "scale is 1.5"),
    ],
)
@pytest.mark.parametrize(("draw", "name"), [(strip, "a.png"), (gif, "a.gif")])
def test_rejects_and_leaves_the_old_picture(tmp_path, draw, name, rows, options, complaint) -> None:
    (tmp_path / name).write_bytes(b"the old picture")
    with pytest.raises(ValueError, match=complaint):
        draw(rows, tmp_path / name, **options)
    assert (tmp_path / name).read_bytes() == b"the old picture"
    assert os.listdir(tmp_path) == [name]


def test_rejects_names_and_rates(tmp_path: Path) -> None:
    rows = {"truth": torch.zeros(2, 8, 8)}
    with pytest.raises(ValueError, match=r"expected a file name that ends in \.png"):
        strip(rows, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"ends in \.gif"):
        gif(rows, tmp_path / "a.png")
    for fps in (0, -1, 51, float("nan")):
        with pytest.raises(ValueError, match="fps is"):
            gif(rows, tmp_path / "a.gif", fps=fps)
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"the old picture")

    def full_disk(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("No space left on device")

    def interrupted(source: Path, destination: Path) -> None:
        raise KeyboardInterrupt

    for owner, name, failure, error in (
        (Path, "write_bytes", full_disk, OSError),
        (os, "replace", interrupted, KeyboardInterrupt),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failure)
            with pytest.raises(error):
                strip({"truth": torch.zeros(2, 8, 8)}, path)
        assert path.read_bytes() == b"the old picture"
        assert os.listdir(tmp_path) == ["a.png"]
