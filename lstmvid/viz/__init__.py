"""Pictures: strips of frames, animations, curves, features and traces, written whole or not at all."""

from __future__ import annotations

from lstmvid.viz.confusion import confusion_matrix
from lstmvid.viz.curves import loss_curve, loss_curve_png
from lstmvid.viz.features import check_images, feature_grid, input_features, output_features
from lstmvid.viz.files import encode_png, write
from lstmvid.viz.frames import gif, gif_bytes, strip, strip_image
from lstmvid.viz.page import Page
from lstmvid.viz.traces import trace_png

__all__ = [
    "Page",
    "check_images",
    "confusion_matrix",
    "encode_png",
    "feature_grid",
    "gif",
    "gif_bytes",
    "input_features",
    "loss_curve",
    "loss_curve_png",
    "output_features",
    "strip",
    "strip_image",
    "trace_png",
    "write",
]
