"""Pictures: strips of frames, animations, curves, features and traces, written whole or not at all."""

from __future__ import annotations

from lstmvid.viz.curves import loss_curve
from lstmvid.viz.frames import gif, strip, strip_image

__all__ = ["gif", "loss_curve", "strip", "strip_image"]
