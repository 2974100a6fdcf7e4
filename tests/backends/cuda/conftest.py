"""What the tests on a GPU share."""

from __future__ import annotations

import os

# cuBLAS wants this where torch's deterministic mode is on, in which fresh memory is poisoned.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
