"""What every test shares."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmvid import _native


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` skips where there is none, with the reason."""
    if item.get_closest_marker("gpu"):
        count, why_none = _native.cuda_device_count()
        if not count:
            pytest.skip(why_none)
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds NaN, so that a kernel that leaves an element unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch fills what `empty` returns in this mode only
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seeded():
    """The same draws in every run of a test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def restored_threads():
    """A test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write_video():
    """Writes a small real video; skips the test where PyAV is missing."""
    return _write_video


def _write_video(
    path: Path,
    frames: np.ndarray | int,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "mpeg4",
    ticks: list[int] | None = None,
    rate: int = 25,
) -> np.ndarray:
    """Encode frames (RGB uint8 ``(T, H, W, 3)``), or that many of a colour that moves; returns them.

    `ticks` are the frames' time stamps in units of ``1 / rate`` seconds; one after the other by default.
    """
    av = pytest.importorskip("av", reason="PyAV is missing: pip install 'lstmvid[video]'")
    if isinstance(frames, int):
        height, width = size
        t, y, x = np.ogrid[:frames, :height, :width]
        channels = (t * 9 + y + 0 * x) % 200, (t * 5 + x + 0 * y) % 200, (t * 3 + x + y) % 200
        frames = np.stack([20 + channel for channel in channels], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "rawvideo" else "yuv444p" if codec == "ffv1" else "yuv420p"
        stream.bit_rate = 4_000_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return frames
