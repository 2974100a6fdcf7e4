"""Frame metrics as the video-prediction benchmarks define them, and the floors that any model has to beat.

MSE, MAE and cross-entropy of a frame are *summed* over its values, then averaged over frames and sequences (the
convention of the Moving MNIST literature, e.g. OpenSTL, https://github.com/chengtan9907/OpenSTL); SSIM and PSNR are
means over frames. There are two SSIM: that of its authors, and the one in OpenSTL's tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

LOG_EPSILON = 1e-10

_SSIM_WINDOW = 11
_OPENSTL_WINDOW = 7


class FrameMetrics:
    """Running metrics over batches of predicted sequences, so that a test set never has to fit into memory.

    Args:
        cross_entropy: also report the Bernoulli cross-entropy; frames then have to lie in [0, 1].
        structure: also report SSIM and PSNR; frames then have to be images ``(C, height, width)``.
        units: ``(mean, std)`` of frames that were normalised: errors are those of ``frames * std + mean``.
    """

    def __init__(
        self, *, cross_entropy: bool = True, structure: bool = True, units: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self._units = units
        self._metrics = {"mse": squared_error, "mae": absolute_error}
        if cross_entropy:
            self._metrics["cross_entropy"] = binary_cross_entropy
        if structure:
            self._metrics |= {"ssim": ssim, "ssim_openstl": ssim_openstl, "psnr": psnr}
        self._sums: dict[str, Tensor] = {}
        self._sequences = 0
        self._frame_shape: tuple[int, ...] = ()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction, target: ``(T, B, *frame_shape)``; uint8 is scaled by 1/255. Every batch has the same ``T``
                and frame shape, ``B`` is free.

        Raises:
            ValueError: shapes that differ or don't fit the earlier batches, or values that are not finite, or not in
                [0, 1] where the cross-entropy is asked for.
        """
        _check_pair(prediction, target)
        steps, sequences, *frame_shape = prediction.shape
        if self._sums and (steps, *frame_shape) != (len(self._sums["mse"]), *self._frame_shape):
            raise ValueError(
                f"prediction has {steps} steps of shape {tuple(frame_shape)}, "
                f"expected {len(self._sums['mse'])} of shape {self._frame_shape} as in the batches before"
            )
        # One step at a time: SSIM takes many times the memory of the frames that it compares.
        totals = []
        for guess, truth in zip(prediction, target, strict=True):
            mean, std = self._units
            pair = _scaled("prediction", guess) * std + mean, _scaled("target", truth) * std + mean
            totals.append(torch.stack([metric(*pair).sum() for metric in self._metrics.values()]))
        for name, sums in zip(self._metrics, torch.stack(totals, dim=1).cpu(), strict=True):
            self._sums[name] = self._sums.get(name, 0) + sums
        self._frame_shape = tuple(frame_shape)
        self._sequences += sequences

    def compute(self) -> dict[str, float]:
        """Means over all frames and sequences so far.

        Returns:
            ``mse``, ``mae``, ``cross_entropy`` (nats) per frame; ``mse_per_pixel``, ``mae_per_pixel`` and
            ``rmse_per_pixel``, the root of the first; ``ssim``, ``ssim_openstl``; and ``psnr`` in decibels (infinite
            once a frame was predicted exactly). The root is taken of the mean, here as in `per_step`.
        """
        means = self._per_pixel({name: curve.mean() for name, curve in self._means().items()})
        return {name: mean.item() for name, mean in means.items()}

    def per_step(self) -> dict[str, Tensor]:
        """The same metrics at each time step: float64 ``(T,)`` each, averaged over the sequences so far."""
        return self._per_pixel(self._means())

    def _means(self) -> dict[str, Tensor]:
        """Each metric at each step, averaged over the sequences so far."""
        if not self._sequences:
            raise ValueError("There are no metrics yet: no sequences were given to update()")
        return {name: sums / self._sequences for name, sums in self._sums.items()}

    def _per_pixel(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the errors of a pixel added to those of a frame."""
        pixels = math.prod(self._frame_shape)
        added = {f"{name}_per_pixel": means[name] / pixels for name in ("mse", "mae")}
        return means | added | {"rmse_per_pixel": added["mse_per_pixel"].sqrt()}


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of frames ``(B, *frame_shape)``, summed over each: ``(B,)``."""
    return _sum_frame((prediction - target).square())


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error of frames ``(B, *frame_shape)``, summed over each: ``(B,)``."""
    return _sum_frame((prediction - target).abs())


def binary_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Bernoulli cross-entropy in nats of frames ``(B, *frame_shape)`` of probabilities, summed over each: ``(B,)``.

    1e-10 is added inside both logarithms, as in the code released with arXiv 1502.04681, so that numbers stand beside
    its; a certain and wrong pixel costs 23 nats. For training use a loss on logits.

    Raises:
        ValueError: a value outside [0, 1].
    """
    for name, frames in (("prediction", prediction), ("target", target)):
        if frames.numel() and (frames.min() < 0 or frames.max() > 1):
            raise ValueError(
                f"{name} has values from {frames.min().item():g} to {frames.max().item():g}, "
                "expected probabilities in [0, 1] for the cross-entropy"
            )
    # float32 would round 1 - p + 1e-10 to the nearest 6e-8.
    prediction, target = prediction.double(), target.double()
    log_on, log_off = (prediction + LOG_EPSILON).log(), (1 - prediction + LOG_EPSILON).log()
    return -_sum_frame(target * log_on + (1 - target) * log_off)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of images ``(B, C, height, width)``: ``(B,)``, 1 for equal ones.

    Gaussian window of 11 pixels, sigma 1.5, borders reflected, data range 1 (Wang et al. 2004), by torchmetrics, in
    float32. Predictions are clipped to [0, 1] first, as the benchmarks do.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_images(prediction)
    images = prediction.float().clamp(0, 1), target.float()
    return structural_similarity_index_measure(*images, data_range=1.0, reduction="none").double()


def ssim_openstl(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of images ``(B, C, height, width)`` as in OpenSTL's tables: ``(B,)``, 1 for equal ones.

    That is scikit-image's default for floating-point images: windows of 7 x 7 pixels of equal weight that lie inside
    the image, sample covariances, and a data range of 2, as if values began at -1. Predictions are clipped to [0, 1].
    """
    _check_images(prediction)
    guess, truth = prediction.double().clamp(0, 1), target.double()

    def mean(values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values, _OPENSTL_WINDOW, stride=1)

    count = _OPENSTL_WINDOW**2
    guess_mean, truth_mean = mean(guess), mean(truth)
    products = (
        (guess * guess, guess_mean**2),
        (truth * truth, truth_mean**2),
        (guess * truth, guess_mean * truth_mean),
    )
    guess_variance, truth_variance, covariance = ((mean(p) - m) * count / (count - 1) for p, m in products)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = (2 * guess_mean * truth_mean + c1) * (2 * covariance + c2)
    similarity /= (guess_mean**2 + truth_mean**2 + c1) * (guess_variance + truth_variance + c2)
    return similarity.flatten(1).mean(1)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels of frames ``(B, *frame_shape)``: ``(B,)``, infinite for equal ones.

    Data range 1, by torchmetrics; predictions are clipped to [0, 1] first, as the benchmarks do.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    frames = prediction.clamp(0, 1).flatten(1), target.flatten(1)
    return peak_signal_noise_ratio(*frames, data_range=1.0, reduction="none", dim=1)


def mean_image(sequences: Tensor) -> Tensor:
    """The mean of all frames of ``sequences`` ``(T, N, *frame_shape)``: float64 ``(*frame_shape)``.

    uint8 is scaled by 1/255. Take it from training sequences: the floor is what a model scores that has learned the
    mean and nothing else.
    """
    if sequences.ndim < 3 or not sequences.numel():
        raise ValueError(f"sequences has shape {tuple(sequences.shape)}, expected (T, N, *frame_shape), not empty")
    return torch.stack([_scaled("sequences", frames).mean(0) for frames in sequences]).mean(0)


def floors(
    batches: Iterable[tuple[Tensor, Tensor]],
    mean: Tensor,
    *,
    cross_entropy: bool = True,
    structure: bool = True,
    units: tuple[float, float] = (0.0, 1.0),
) -> dict[str, dict[str, float]]:
    """What predictors score that have learned nothing of motion.

    Args:
        batches: pairs ``(frames, targets)``, ``(T_in, B, *frame_shape)`` and ``(T_out, B, *frame_shape)``.
        mean: the mean training image (see `mean_image`).
        cross_entropy: report it for the mean image; to the others, which are certain of each pixel, it means nothing.
        structure: report SSIM and PSNR.
        units: see `FrameMetrics`.

    Returns:
        `FrameMetrics.compute()` of ``black`` (all zero), ``mean_image`` (always the mean training image) and
        ``copy_last`` (always the last input frame).
    """
    scores = {
        "black": FrameMetrics(cross_entropy=False, structure=structure, units=units),
        "mean_image": FrameMetrics(cross_entropy=cross_entropy, structure=structure, units=units),
        "copy_last": FrameMetrics(cross_entropy=False, structure=structure, units=units),
    }
    for frames, targets in batches:
        guesses = {
            "black": torch.zeros_like(targets[0, 0]),
            "mean_image": mean.to(targets.device),
            "copy_last": frames[-1],
        }
        for name, guess in guesses.items():
            scores[name].update(guess.expand_as(targets), targets)
    return {name: metrics.compute() for name, metrics in scores.items()}


def _sum_frame(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1, dtype=torch.float64)


def _scaled(name: str, frames: Tensor) -> Tensor:
    """The frames as float64, uint8 ones scaled to [0, 1]."""
    if frames.dtype == torch.uint8:
        return frames.double() / 255
    if not frames.is_floating_point():
        raise ValueError(f"{name} is {frames.dtype}, expected uint8 or floating point")
    if not frames.isfinite().all():
        raise ValueError(f"{name} contains values that are not finite")
    return frames.double()


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, expected that of target, {tuple(target.shape)}"
        )
    if prediction.ndim < 3 or not prediction.numel():
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, expected (T, B, *frame_shape) with no empty dimension"
        )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or min(images.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"frames have shape {tuple(images.shape[1:])}, expected images (C, height, width) of at least "
            f"{_SSIM_WINDOW} x {_SSIM_WINDOW} pixels for SSIM"
        )
