"""TaxiBJ, the in- and outflow of taxis in a grid over Beijing, as the benchmark of video prediction has it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from lstmvid.data.sequences import Cut, Selection, Splits, existing

_FILE = "dataset.npz"
_FRAME = (2, 32, 32)
_ARRAYS = ("X_train", "Y_train", "X_test", "Y_test")


class TaxiBJ:
    """Clips of one part: the frames to see and those to predict, scaled to [0, 1].

    Args:
        inputs, targets: ``(N, T, 2, 32, 32)``, values in [-1, 1] as in the file.
    """

    frame_shape = _FRAME

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        clip = np.concatenate([self.inputs[index], self.targets[index]])
        return torch.from_numpy((clip.astype(np.float32) + 1) / 2)


def open_taxibj(path: str | Path, cut: Cut) -> Splits:
    """Open ``dataset.npz`` with its arrays X_train, Y_train, X_test and Y_test, each ``(N, T, 2, 32, 32)``.

    Values lie in [-1, 1] and are scaled to [0, 1] as the benchmark does. The last clips of the training part
    are held out for validation.

    Args:
        path: the file, or the folder that holds it.
        cut: its frames have to be those of the file: 4 and 4.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, lacks an array, or holds another shape or other values.

    Source: Zhang et al., "Deep Spatio-Temporal Residual Networks" (arXiv 1610.00081); layout and scaling as in OpenSTL.
    """
    path = existing(path, "TaxiBJ file or folder")
    path = existing(path / _FILE, "TaxiBJ file") if path.is_dir() else path
    arrays = _read(path)
    for part in ("train", "test"):
        _check(path, arrays, part, cut)
    everything = TaxiBJ(arrays["X_train"], arrays["Y_train"])
    if len(everything) < 2:
        raise ValueError(f"{path} holds {len(everything)} training clips, expected at least 2")
    kept = min(max(round(len(everything) * (1 - cut.validation_fraction)), 1), len(everything) - 1)
    return Splits(
        training=Selection(everything, range(kept)),
        validation=Selection(everything, range(kept, len(everything))),
        test=TaxiBJ(arrays["X_test"], arrays["Y_test"]),
        fixed_length=True,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in _ARRAYS if name not in file.files]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            return {name: file[name] for name in _ARRAYS}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:  # TypeError: of a .npy file
        raise ValueError(f"{path} is not TaxiBJ's dataset.npz, or is damaged: {error}") from error


def _check(path: Path, arrays: dict[str, np.ndarray], part: str, cut: Cut) -> None:
    for name, frames in ((f"X_{part}", cut.input_frames), (f"Y_{part}", cut.target_frames)):
        array = arrays[name]
        expected = (len(arrays[f"X_{part}"]) if array.ndim else 0, frames, *_FRAME)
        if array.shape != expected or not array.size or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path} has {name} of shape {array.shape} and type {array.dtype}, expected floats of shape "
                f"(N, {frames}, {', '.join(map(str, _FRAME))}) for {cut.input_frames} input and "
                f"{cut.target_frames} target frames"
            )
        if not (array.min() >= -1 and array.max() <= 1):  # which a NaN isn't either
            raise ValueError(f"{path} has {name} from {array.min():g} to {array.max():g}, expected values in [-1, 1]")
