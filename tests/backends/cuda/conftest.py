"""What the tests on a GPU share."""

from __future__ import annotations

import os

import pytest
import torch

# cuBLAS wants this where torch's deterministic mode is on, in which fresh memory is poisoned.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def exact_products(monkeypatch):
    """float32 in full, in the recurrence and in plain products alike."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
