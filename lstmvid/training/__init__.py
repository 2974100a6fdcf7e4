"""Training with PyTorch Lightning: settings, presets, files, and the loop around `lstmvid.FusedComposite`.

Needs the extra ``train``. Only the optimiser of the paper's released code is imported here, which needs torch alone, so
that reading a model file does not wait for Lightning.
"""

from __future__ import annotations

from lstmvid.training.original_sgd import OriginalSGD, summed_loss

__all__ = ["OriginalSGD", "summed_loss"]
