"""What every test shares."""

from __future__ import annotations

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


@pytest.fixture
def allow_tf32(monkeypatch):
    """`allow_tf32(whether)`: float32 products, in the recurrence and plain ones alike, until the test ends.

    `monkeypatch` can't restore the plain ones' setting, which is no attribute of its object's own.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32

    def allow(whether: bool) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", whether)
        matmul.allow_tf32 = whether

    yield allow
    matmul.allow_tf32 = before


@pytest.fixture
def exact_products(allow_tf32):
    """float32 in full, in the recurrence and in plain products alike."""
    allow_tf32(False)
