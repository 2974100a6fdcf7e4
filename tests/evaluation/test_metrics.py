from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lstmvid.data import MovingMNIST, load_digits
from lstmvid.evaluation import FrameMetrics, floors, mean_image
from lstmvid.evaluation.metrics import binary_cross_entropy, psnr, ssim, ssim_openstl


def random_pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def test_errors_match_the_definitions_written_as_loops() -> None:
    prediction, target = random_pair(3, 4, 2, 12, 11)
    metrics = FrameMetrics()
    metrics.update(prediction, target)
    result, curves = metrics.compute(), metrics.per_step()

    expected: dict[str, np.ndarray] = {name: np.zeros(3) for name in ("mse", "mae", "cross_entropy", "psnr")}
    p, v = prediction.double().numpy(), target.double().numpy()
    for step in range(3):
        for sequence in range(4):
            a, b = p[step, sequence], v[step, sequence]
            squared = ((a - b) ** 2).sum()
            expected["mse"][step] += squared / 4
            expected["mae"][step] += abs(a - b).sum() / 4
            expected["cross_entropy"][step] -= (b * np.log(a + 1e-10) + (1 - b) * np.log(1 - a + 1e-10)).sum() / 4
            expected["psnr"][step] += 20 * math.log10(1 / math.sqrt(squared / a.size)) / 4
    for name, curve in expected.items():
        np.testing.assert_allclose(curves[name], curve, rtol=1e-6 if name == "psnr" else 1e-12)
        assert result[name] == pytest.approx(curve.mean(), rel=1e-6 if name == "psnr" else 1e-12)
    assert result["mse_per_pixel"] == pytest.approx(result["mse"] / (2 * 12 * 11))
    assert result["mae_per_pixel"] == pytest.approx(result["mae"] / (2 * 12 * 11))
    assert result["rmse_per_pixel"] == pytest.approx(result["mse_per_pixel"] ** 0.5)
    per_pixel = {"mse_per_pixel", "mae_per_pixel", "rmse_per_pixel"}
    assert set(result) == {"mse", "mae", "cross_entropy", "ssim", "ssim_openstl", "psnr"} | per_pixel


@pytest.mark.parametrize("shape", [(2, 1, 11, 16), (2, 3, 17, 13)])
def test_ssim_matches_its_definition_written_as_loops(shape: tuple[int, ...]) -> None:
    prediction, target = random_pair(*shape)
    target = 0.7 * prediction + 0.3 * target
    prediction[0], target[0] = 0, 0.5  # a flat frame has no variance to divide by
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    for image in range(shape[0]):
        values = []
        for a, b in zip(prediction[image].double().numpy(), target[image].double().numpy(), strict=True):
            padded_a, padded_b = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
            for row, column in np.ndindex(*a.shape):
                x, y = padded_a[row : row + 11, column : column + 11], padded_b[row : row + 11, column : column + 11]
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variances = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
                covariance = (window * (x - mean_x) * (y - mean_y)).sum()
                similarity = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
                values.append(similarity * (2 * covariance + 9e-4) / (variances + 9e-4))
        assert ssim(prediction, target)[image].item() == pytest.approx(np.mean(values), abs=2e-5)


def test_structure_clips_predictions_and_knows_equal_frames() -> None:
    prediction, target = random_pair(3, 1, 16, 16)
    wild = prediction * 4 - 2
    assert torch.equal(ssim(wild, target), ssim(wild.clamp(0, 1), target))
    assert torch.equal(psnr(wild, target), psnr(wild.clamp(0, 1), target))
    torch.testing.assert_close(ssim(target, target), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert psnr(target, target).isposinf().all()


def test_ssim_of_openstl_matches_its_definition_written_as_loops() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((2, 3, 13, 11))
    prediction = target + 0.3 * rng.normal(size=target.shape)
    actual = ssim_openstl(torch.from_numpy(prediction).float(), torch.from_numpy(target).float())
    for image in range(2):
        values = []
        for channel, y, x in np.ndindex(3, 13 - 6, 11 - 6):
            window = image, channel, slice(y, y + 7), slice(x, x + 7)
            a, b = prediction[window].clip(0, 1).ravel(), target[window].ravel()
            covariance = np.cov(a, b)  # of a sample
            c1, c2 = 0.02**2, 0.06**2
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(luminance * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2))
        assert actual[image].item() == pytest.approx(np.mean(values), abs=1e-6)
    assert ssim_openstl(torch.from_numpy(target), torch.from_numpy(target)).tolist() == pytest.approx([1.0, 1.0])


def test_cross_entropy_agrees_with_logits_and_stays_finite() -> None:
    logits, target = random_pair(4, 50)
    logits = (logits - 0.5) * 20
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    torch.testing.assert_close(binary_cross_entropy(logits.sigmoid(), target), expected.double(), rtol=1e-4, atol=1e-4)

    certain = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    wrong = -math.log(1e-10)
    costs = binary_cross_entropy(certain, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(costs, torch.tensor([0.0, 2 * wrong], dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_streaming_in_uneven_batches_is_the_same_as_all_at_once() -> None:
    prediction, target = random_pair(3, 10, 1, 16, 16)
    whole, parts = FrameMetrics(), FrameMetrics()
    whole.update(prediction, target)
    for size in (slice(0, 1), slice(1, 8), slice(8, 10)):
        parts.update(prediction[:, size], target[:, size])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
    for name, curve in whole.per_step().items():
        torch.testing.assert_close(parts.per_step()[name], curve, rtol=1e-12, atol=0)


def test_bytes_are_scaled() -> None:
    target = torch.randint(0, 256, (2, 3, 1, 16, 16), dtype=torch.uint8)
    prediction, _ = random_pair(2, 3, 1, 16, 16)
    one, other = FrameMetrics(), FrameMetrics()
    one.update(prediction, target)
    other.update(prediction.double(), target.double() / 255)
    assert one.compute() == other.compute()


def test_frames_that_are_no_images() -> None:
    prediction, target = random_pair(2, 3, 40)
    metrics = FrameMetrics(cross_entropy=False, structure=False)
    metrics.update(prediction * 9 - 4, target)
    assert set(metrics.compute()) == {"mse", "mae", "mse_per_pixel", "mae_per_pixel", "rmse_per_pixel"}
    with pytest.raises(ValueError, match=r"frames have shape \(40,\), expected images"):
        FrameMetrics().update(prediction, target)


def test_update_rejects_and_then_counts_nothing() -> None:
    good = torch.rand(2, 3, 1, 16, 16)
    metrics = FrameMetrics()
    metrics.update(good, good * 0.5)
    before = metrics.compute()
    diverged = good.clone()
    diverged[1, 2] = math.nan
    for prediction, target, complaint in [
        (good[:1], good, r"prediction has shape \(1, 3, 1, 16, 16\), expected that of target"),
        (good[:1], good[:1], "prediction has 1 steps"),
        (good[..., :12], good[..., :12], r"expected 2 of shape \(1, 16, 16\)"),
        (good[:, :0], good[:, :0], "no empty dimension"),
        (good[0, 0, 0], good[0, 0, 0], r"prediction has shape \(16, 16\), expected \(T, B, \*frame_shape\)"),
        (diverged, good, "prediction contains values that are not finite"),
        (good, diverged, "target contains values that are not finite"),
        (good * 3, good, r"prediction has values from .*, expected probabilities in \[0, 1\]"),
        (good, good - 1, "target has values from"),
        (good.long(), good, "prediction is torch.int64"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            metrics.update(prediction, target)
    assert metrics.compute() == before


def test_no_metrics_of_nothing() -> None:
    with pytest.raises(ValueError, match="no sequences"):
        FrameMetrics().compute()


def test_mean_image() -> None:
    sequences = torch.randint(0, 256, (3, 4, 1, 5, 5), dtype=torch.uint8)
    torch.testing.assert_close(mean_image(sequences), sequences.double().mean((0, 1)) / 255)
    with pytest.raises(ValueError, match="not empty"):
        mean_image(sequences[:, :0])


def test_floors_match_the_definitions() -> None:
    frames, targets = torch.rand(4, 6, 1, 12, 12), torch.rand(3, 6, 1, 12, 12)
    mean = torch.rand(1, 12, 12).double()
    pairs = [(frames[:, :2], targets[:, :2]), (frames[:, 2:], targets[:, 2:])]
    scores = floors(pairs, mean)
    v = targets.double()
    assert scores["black"]["mse"] == pytest.approx(v.square().sum((2, 3, 4)).mean().item())
    assert scores["copy_last"]["mse"] == pytest.approx((v - frames[-1].double()).square().sum((2, 3, 4)).mean().item())
    assert scores["mean_image"]["mse"] == pytest.approx((v - mean).square().sum((2, 3, 4)).mean().item())
    entropy = torch.nn.functional.binary_cross_entropy(mean.expand_as(v), v, reduction="none").sum((2, 3, 4)).mean()
    assert scores["mean_image"]["cross_entropy"] == pytest.approx(entropy.item())
    assert "cross_entropy" not in scores["black"] | scores["copy_last"]
    assert {"ssim", "psnr"} <= set(scores["copy_last"])


def test_floors_of_moving_mnist_are_the_published_ones() -> None:
    data = MovingMNIST(load_digits(), seed=11)
    mean = mean_image(data.batch(0, 300))
    batches = (data.batch(index, 100) for index in range(1, 11))
    scores = floors(((frames[:10], frames[10:]) for frames in batches), mean, structure=False)
    # The published ones are of 1,000 sequences, too; the standard error of either is about 0.8 %.
    assert scores["black"]["mse"] == pytest.approx(170.4, rel=0.03)
    assert scores["mean_image"]["mse"] == pytest.approx(150.2, rel=0.03)
    assert scores["copy_last"]["mse"] == pytest.approx(281.5, rel=0.03)
    assert scores["mean_image"]["cross_entropy"] == pytest.approx(666.5, rel=0.03)
