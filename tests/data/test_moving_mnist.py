from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmvid.data import MovingMNIST, load_digits, read_moving_mnist, trajectories


def bounce(
    x: float, y: float, theta: float, steps: int, step_length: float = 0.1, canvas: int = 36
) -> list[tuple[int, int]]:
    """One digit's path, written down as in the paper's description: the oracle."""
    velocity_y, velocity_x = math.sin(theta), math.cos(theta)
    path = []
    for _ in range(steps):
        y += step_length * velocity_y
        x += step_length * velocity_x
        if x <= 0:
            x, velocity_x = 0.0, -velocity_x
        if x >= 1:
            x, velocity_x = 1.0, -velocity_x
        if y <= 0:
            y, velocity_y = 0.0, -velocity_y
        if y >= 1:
            y, velocity_y = 1.0, -velocity_y
        path.append((int(canvas * y), int(canvas * x)))
    return path


def moving_pixel(**options: object) -> MovingMNIST:
    """Digits of one white pixel: what is drawn shows exactly where."""
    return MovingMNIST(torch.full((1, 1, 1), 255, dtype=torch.uint8), **options)


@pytest.mark.parametrize(("step_length", "canvas"), [(0.1, 36), (0.37, 17), (1.5, 5), (0.0, 36)])
def test_trajectories_match_the_oracle(step_length: float, canvas: int) -> None:
    rng = np.random.default_rng(1)
    x0, y0, theta = rng.random(500), rng.random(500), rng.random(500) * 2 * math.pi
    top, left = trajectories(x0, y0, theta, 100, step_length=step_length, canvas=canvas)
    assert top.shape == left.shape == (100, 500)
    paths = np.array([bounce(*start, 100, step_length, canvas) for start in zip(x0, y0, theta, strict=True)])
    np.testing.assert_array_equal(top.numpy().T, paths[..., 0])
    np.testing.assert_array_equal(left.numpy().T, paths[..., 1])


@settings(max_examples=200, deadline=None)
@given(
    x0=st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5]),
    y0=st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5]),
    theta=st.floats(-10, 10) | st.sampled_from([k * math.pi / 4 for k in range(9)]),
)
def test_trajectories_match_the_oracle_at_walls_and_in_corners(x0: float, y0: float, theta: float) -> None:
    top, left = trajectories(x0, y0, theta, 40)
    assert torch.stack([top[:, 0], left[:, 0]], 1).tolist() == [list(corner) for corner in bounce(x0, y0, theta, 40)]


def test_trajectories_bounce() -> None:
    # Along x from 0.75 with steps of a quarter: reaches the wall, stays clamped there, comes back, and again.
    top, left = trajectories(0.75, 0.5, 0.0, 7, step_length=0.25, canvas=100)
    assert left[:, 0].tolist() == [100, 75, 50, 25, 0, 25, 50]
    assert top[:, 0].tolist() == [50] * 7
    # A step beyond the wall is clamped, not reflected.
    assert trajectories(0.5, 0.9, math.pi / 2, 2, step_length=0.3, canvas=100)[0][:, 0].tolist() == [100, 70]


def test_trajectories_take_tensors_arrays_and_numbers() -> None:
    expected = trajectories([0.25, 0.5], [0.5, 0.5], [1.0, 1.0], 5)
    for x0 in (torch.tensor([0.25, 0.5]), np.array([0.25, 0.5], dtype=np.float32), torch.tensor([0.25, 0.5]).half()):
        for corner, wanted in zip(trajectories(x0, 0.5, torch.tensor(1.0), 5), expected, strict=True):
            assert torch.equal(corner, wanted)
            assert corner.dtype == torch.int64
    assert trajectories(0.25, 0.5, 1.0, 5)[0].shape == (5, 1)
    assert trajectories([], [], [], 5)[0].shape == (5, 0)


def test_trajectories_leave_their_arguments_alone() -> None:
    x0, y0, theta = torch.rand(3, 4, dtype=torch.float64)
    before = x0.clone(), y0.clone(), theta.clone()
    trajectories(x0, y0, theta, 30)
    assert all(torch.equal(*pair) for pair in zip((x0, y0, theta), before, strict=True))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"x0": 1.1}, r"x0 contains 1\.1, expected positions in \[0, 1\]"),
        ({"y0": [0.5, -0.1]}, "y0 contains -0.1"),
        ({"theta": float("nan")}, "theta contains nan"),
        ({"theta": [0.0] * 3, "x0": [0.5] * 2}, "different lengths"),
        ({"x0": torch.zeros(2, 2)}, r"x0 has shape \(2, 2\)"),
        ({"x0": "left"}, "x0 is 'left'"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"steps": 2.5}, "steps is 2.5, expected an integer"),
        ({"canvas": -1}, "canvas is -1"),
        ({"step_length": -0.1}, "step_length is -0.1"),
        ({"step_length": float("inf")}, "step_length is inf"),
        ({"step_length": "far"}, "step_length is 'far'"),
    ],
)
def test_trajectories_reject(changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        trajectories(**{"x0": 0.5, "y0": 0.5, "theta": 0.0, "steps": 5} | changed)


def test_batch_is_a_pure_function_of_seed_index_and_size() -> None:
    digits = torch.randint(1, 256, (50, 28, 28), dtype=torch.uint8)
    one, other = MovingMNIST(digits, seed=5), MovingMNIST(digits, seed=5)
    other.batch(0, 3), other.batch(9, 8)
    first = one.batch(7, 4)
    assert torch.equal(first, other.batch(7, 4))
    assert torch.equal(first, one.batch(7, 4))
    assert not torch.equal(first, one.batch(8, 4))
    assert not torch.equal(first, MovingMNIST(digits, seed=6).batch(7, 4))


def test_batch_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    moving_pixel().batch(0, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(("num_frames", "num_digits", "frame_size"), [(20, 2, 64), (1, 1, 28), (5, 3, 40)])
def test_batch_shape(num_frames: int, num_digits: int, frame_size: int) -> None:
    data = MovingMNIST(load_digits()[::500], num_frames=num_frames, num_digits=num_digits, frame_size=frame_size)
    frames = data.batch(0, 3)
    assert frames.shape == (num_frames, 3, 1, frame_size, frame_size)
    assert frames.dtype == torch.uint8
    assert frames.flatten(2).amax(2).min() > 0


def test_batch_draws_the_same_digit_whole_in_every_frame() -> None:
    def crop(frame: torch.Tensor) -> bytes:
        ink = frame.numpy()
        return ink[np.ix_(ink.any(1), ink.any(0))].tobytes()

    digits = load_digits()[::100]
    known = {crop(digit) for digit in digits}
    for sequence in MovingMNIST(digits, num_digits=1).batch(0, 30)[:, :, 0].unbind(1):
        cropped = {crop(frame) for frame in sequence}
        assert len(cropped) == 1
        assert cropped <= known


def test_batch_moves_as_trajectories_say() -> None:
    # A digit of one pixel in frames of 37 x 37 has corners in a box of 36, like the published data.
    frames = moving_pixel(num_digits=1, frame_size=37, num_frames=200).batch(0, 50)[:, :, 0]
    assert (frames.flatten(2).count_nonzero(2) == 1).all()
    corners = torch.stack([frames.amax(3).argmax(2), frames.amax(2).argmax(2)])  # [2, T, B]
    assert corners.min() == 0
    assert corners.max() == 36
    speed = (corners[:, 1:] - corners[:, :-1]).float().pow(2).sum(0).sqrt()
    # 3.6 pixels a step, give or take what truncation (and, at a wall, clamping) does to it.
    assert speed.max() < 3.6 + math.sqrt(2)
    assert speed.median().item() == pytest.approx(3.6, abs=0.2)


def test_batch_overlap_takes_the_maximum() -> None:
    # A ramp whose two copies overlap nearly everywhere, in a box of 2 pixels.
    digits = torch.arange(1, 101, dtype=torch.uint8).view(1, 10, 10)
    frames = MovingMNIST(digits, frame_size=12, num_frames=10).batch(3, 20)[:, :, 0]
    copies = torch.zeros(3, 3, 12, 12, dtype=torch.uint8)
    for top in range(3):
        for left in range(3):
            copies[top, left, top : top + 10, left : left + 10] = digits[0]
    copies = copies.flatten(0, 1)
    unions = {torch.maximum(one, other).numpy().tobytes() for one in copies for other in copies}
    assert {frame.numpy().tobytes() for frame in frames.flatten(0, 1)} <= unions


def test_batch_statistics() -> None:
    frames = moving_pixel(num_digits=1, frame_size=10, num_frames=1, step_length=0.0).batch(0, 20_000)[0, :, 0]
    # With no step, pixels are the uniform start positions: int(9 * position), of which 9 itself has measure zero.
    counts = frames.count_nonzero(0)
    assert counts[9].sum() == counts[:, 9].sum() == 0
    expected = 20_000 / 81
    assert (counts[:9, :9] - expected).abs().max() < 5 * math.sqrt(expected)

    which = torch.arange(1, 51, dtype=torch.uint8).view(50, 1, 1)
    drawn = MovingMNIST(which, num_digits=1, frame_size=3, num_frames=1).batch(1, 20_000).amax((0, 2, 3, 4))
    assert (torch.bincount(drawn.int(), minlength=51)[1:] - 400).abs().max() < 5 * math.sqrt(400)


def test_directions_are_uniform() -> None:
    frames = moving_pixel(num_digits=1, frame_size=101, num_frames=2, step_length=0.2).batch(0, 4000)[:, :, 0]
    corners = torch.stack([frames.amax(3).argmax(2), frames.amax(2).argmax(2)])
    inside = ((corners > 0) & (corners < 100)).all(0).all(0)
    dy, dx = (corners[:, 1] - corners[:, 0])[:, inside].double()
    # Down, right, up, left, each within 45 degrees: staying inside is equally likely in all of them.
    sector = (torch.atan2(dy, dx) / (math.pi / 2)).round().long() % 4
    counts = torch.bincount(sector, minlength=4)
    expected = inside.sum().item() / 4
    assert expected > 500
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"digits": torch.zeros(2, 28, 28)}, "digits is torch.float32"),
        ({"digits": torch.zeros(28, 28, dtype=torch.uint8)}, r"shape \(28, 28\)"),
        ({"digits": torch.zeros(0, 28, 28, dtype=torch.uint8)}, r"shape \(0, 28, 28\)"),
        ({"digits": torch.zeros(2, 28, 20, dtype=torch.uint8)}, r"shape \(2, 28, 20\)"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_digits": 0}, "num_digits is 0"),
        ({"frame_size": 27}, "frame_size is 27, expected at least 28"),
        ({"step_length": float("nan")}, "step_length is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_moving_mnist_rejects(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MovingMNIST(**{"digits": torch.zeros(2, 28, 28, dtype=torch.uint8)} | options)


@pytest.mark.parametrize(("index", "batch_size", "complaint"), [(-1, 2, "index is -1"), (0, 0, "batch_size is 0")])
def test_batch_rejects(index: int, batch_size: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        moving_pixel().batch(index, batch_size)


@pytest.mark.parametrize("order", ["C", "F"])
def test_read_moving_mnist(tmp_path: Path, order: str) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    sequences = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    np.save(path, np.asarray(sequences, order=order))
    before = path.read_bytes()
    frames = read_moving_mnist(path)
    assert frames.shape == (20, 3, 1, 64, 64)
    assert torch.equal(frames[:, :, 0], torch.from_numpy(sequences))
    frames.zero_()
    assert path.read_bytes() == before


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GOOD = npy(np.zeros((20, 2, 64, 64), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a NumPy array file"),
        (b"PK\x03\x04 an archive", "not a NumPy array file"),
        (GOOD[:60], "damaged"),
        (GOOD[:-1], "damaged"),
        (GOOD[:20] + b"\xff" * 20 + GOOD[40:], "damaged"),
        (npy(np.array([{"a": "pickle"}], dtype=object)), "damaged"),
        (npy(np.zeros((20, 2, 64, 64), dtype=np.float32)), r"holds float32 of shape \(20, 2, 64, 64\), expected uint8"),
        (npy(np.zeros((2, 20, 64, 64), dtype=np.uint8)), r"shape \(2, 20, 64, 64\), expected"),
        (npy(np.zeros((20, 2, 64), dtype=np.uint8)), r"shape \(20, 2, 64\), expected"),
        (npy(np.zeros((20, 0, 64, 64), dtype=np.uint8)), r"shape \(20, 0, 64, 64\), expected .* with N > 0"),
    ],
)
def test_read_moving_mnist_rejects(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        read_moving_mnist(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_read_moving_mnist_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Moving MNIST file"):
        read_moving_mnist(tmp_path / "nowhere.npy")
