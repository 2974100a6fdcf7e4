"""How good predictions are, in the numbers that the literature reports."""

from __future__ import annotations

from lstmvid.evaluation.metrics import FrameMetrics, floors, mean_image

__all__ = ["FrameMetrics", "floors", "mean_image"]
