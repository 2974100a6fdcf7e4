from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lstmvid.data.registry import open_source
from lstmvid.data.sequences import Cut

CUT = Cut(input_frames=2, target_frames=1, validation_fraction=0.3)
OPTIONS = {"size": 6}
RECORDINGS = "S1_Walking.1_", "S1_Sitting.2_", "S5_Eating 1.3_"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Image n of recording r is all ``60 r + 4 n``; clips of 11 images, every fifth."""
    path = tmp_path / "human"
    (path / "images").mkdir(parents=True)
    for place, recording in enumerate([*RECORDINGS, "S11_Walking.4_"]):
        for number in range(1, 15):
            image = Image.fromarray(np.full((10, 10, 3), 60 * place + 4 * number, dtype=np.uint8))
            image.save(path / "images" / f"{recording}{number:06}.jpg", quality=95)
    lines = [f"images/{recording},{first}" for recording in RECORDINGS for first in (1, 3)]
    (path / "train.txt").write_text("\n".join(lines) + "\n")
    (path / "test.txt").write_text("images/S11_Walking.4_,4\n")
    return path


def test_clips(folder):
    splits = open_source("human36m", str(folder), CUT, OPTIONS)
    assert (len(splits.training), len(splits.validation), len(splits.test)) == (4, 2, 1)
    clip = splits.test[0]
    assert clip.shape == (3, 3, 6, 6)
    assert clip.dtype == torch.uint8
    means = clip.float().mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([196.0, 216.0, 236.0]), atol=2, rtol=0)
    grey = open_source("human36m", str(folder), CUT, OPTIONS | {"grey": True, "step": 1})
    assert grey.training.frame_shape == (1, 6, 6)
    torch.testing.assert_close(
        grey.test[0].float().mean((1, 2, 3)), torch.tensor([196.0, 200.0, 204.0]), atol=2, rtol=0
    )
    parts = [
        {int(part[index].float().mean()) // 60 for index in range(len(part))}
        for part in (splits.training, splits.validation)
    ]
    assert not parts[0] & parts[1]


def fails(path: Path, error: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        open_source("human36m", str(path), CUT, OPTIONS | options)
    return str(caught.value)


def test_what_is_refused(folder):
    assert "options.size is 0" in fails(folder, size=0)
    assert "options.step is -1" in fails(folder, step=-1)
    assert "There is no image" in fails(folder, FileNotFoundError, step=6)
    (folder / "images" / "S11_Walking.4_000014.jpg").unlink()
    error = fails(folder, FileNotFoundError)
    assert "S11_Walking.4_000014.jpg, which" in error
    assert "test.txt has in a clip" in error
    (folder / "test.txt").write_text("images/S11_Walking.4_\n")
    assert "test.txt, line 1, is 'images/S11_Walking.4_', expected such as" in fails(folder)
    (folder / "test.txt").write_text("\n")
    assert "test.txt is empty" in fails(folder)
    (folder / "test.txt").unlink()
    assert "There is no list of clips" in fails(folder, FileNotFoundError)
    (folder / "test.txt").write_text(f"images/{RECORDINGS[0]},1")
    (folder / "train.txt").write_text(f"images/{RECORDINGS[0]},1\nimages/{RECORDINGS[0]},2\n")
    assert "has clips of 1 recording, expected at least 2" in fails(folder)
