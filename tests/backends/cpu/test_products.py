"""The cpu backend's dense products: factors that lie any way, totals, sizes around every block, numbers of threads."""

from __future__ import annotations

import itertools

import pytest
import torch

from lstmvid.backends.cpu import products

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
# Around a register's width, a tile, a panel, the rows of a block, and the depth that is summed at a time.
SIZES = [(1, 1, 1), (2, 3, 1), (1, 40, 17), (7, 5, 3), (16, 16, 64), (17, 33, 65), (96, 64, 64), (97, 130, 31)]
SIZES += [(200, 513, 70), (3, 1100, 130), (130, 1030, 3), (5, 2, 300)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float64: 1e-14}  # of the sum of magnitudes


def matrix(rows: int, columns: int, dtype: torch.dtype, layout: str, seed: int) -> torch.Tensor:
    """By rows or by columns, alone or part of a wider one."""
    generator = torch.Generator().manual_seed(seed)
    by_columns, is_part = layout.startswith("columns"), layout.endswith("part")
    shape = (columns, rows) if by_columns else (rows, columns)
    whole = torch.randn(shape[0] + 3, shape[1] + 5 * is_part, generator=generator, dtype=torch.float64).to(dtype)
    part = whole[1 : 1 + shape[0], 2 * is_part : 2 * is_part + shape[1]]
    return part.t() if by_columns else part


LAYOUTS = ["rows", "rows of a part", "columns", "columns of a part"]


def check(left: torch.Tensor, right: torch.Tensor, total: torch.Tensor | None) -> None:
    expected = left.double() @ right.double()
    bound = left.double().abs() @ right.double().abs()
    if total is not None:
        expected, bound = expected + total.double(), bound + total.double().abs()
    given = None if total is None else total.clone()
    actual = products.product(left, right, given)
    assert given is None or actual is given
    assert actual.shape == expected.shape
    assert actual.dtype == (left.dtype if total is None else total.dtype)
    assert ((actual.double() - expected).abs() <= TOLERANCE[left.dtype] * bound + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_factors_that_lie_any_way(size, dtype):
    rows, depth, columns = size
    for one, other in itertools.product(LAYOUTS, LAYOUTS):
        left, right = matrix(rows, depth, dtype, one, 1), matrix(depth, columns, dtype, other, 2)
        check(left, right, None)
        check(left, right, matrix(rows, columns, dtype, "rows", 3).contiguous())


def test_a_total_may_be_wider():
    left, right = matrix(9, 20, torch.bfloat16, "rows", 1), matrix(20, 7, torch.bfloat16, "rows", 2)
    check(left, right, torch.randn(9, 7))


def test_a_total_keeps_its_neighbours():
    whole = torch.zeros(8, 100)
    left, right = matrix(5, 20, torch.float32, "columns", 1), matrix(20, 70, torch.float32, "rows", 2)
    products.product(left, right, whole[2:7, 10:80])
    assert torch.equal(whole[2:7, 10:80], products.product(left, right))
    whole[2:7, 10:80] = 0
    assert not whole.any()


@pytest.mark.parametrize("size", [(4, 0, 3), (0, 4, 3), (4, 3, 0)], ids=str)
def test_nothing_to_multiply(size):
    rows, depth, columns = size
    left, right = torch.ones(rows, depth), torch.ones(depth, columns)
    assert torch.equal(products.product(left, right), torch.zeros(rows, columns))
    assert torch.equal(products.product(left, right, torch.ones(rows, columns)), torch.ones(rows, columns))


def test_what_is_not_finite_stays_where_it_belongs():
    """A padded lane or row that took part would spread it: 0 times infinity."""
    left, right = torch.ones(5, 7), torch.ones(7, 3)
    left[3, 0], left[4, 6], right[6, 1] = float("nan"), float("nan"), float("inf")
    for dtype in DTYPES:
        actual = products.product(left.to(dtype), right.to(dtype))
        assert actual[3:].isnan().all()
        assert actual[:3, 1].isinf().all()
        assert (actual[:3, [0, 2]] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(5, 200, 200), (300, 1100, 70), (70, 300, 300), (1, 700, 900), (600, 30, 1)], ids=str)
def test_same_bits_for_any_number_of_threads(size, dtype, restored_threads):
    """Where MKL and, with a matrix unit, oneDNN give others."""
    rows, depth, columns = size
    for one, other in itertools.product(LAYOUTS[::2], LAYOUTS[::2]):
        left, right = matrix(rows, depth, dtype, one, 1), matrix(depth, columns, dtype, other, 2)
        expected = None
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            actual = products.product(left, right)
            expected = actual if expected is None else expected
            assert torch.equal(actual, expected), f"{threads} threads, {one}, {other}"


def test_sums_are_as_exact_as_the_librarys():
    """Long sums of one sign, where a single chain of additions would lose digits."""
    generator = torch.Generator().manual_seed(5)
    left, right = torch.rand(20, 8000, generator=generator), torch.rand(8000, 40, generator=generator)
    exact = left.double() @ right.double()
    ours, library = (((p.double() - exact) / exact).abs().max() for p in (products.product(left, right), left @ right))
    assert ours < max(3 * library, 1e-6)


def test_over_steps():
    """A gradient of weights, summed over steps and batch."""
    dz, x = torch.randn(3, 4, 10), torch.randn(3, 4, 6)
    torch.testing.assert_close(products.over_steps(dz, x), torch.einsum("tbm,tbn->mn", dz, x))
