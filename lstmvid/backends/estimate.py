"""How long a call takes on a GPU, by prediction: the recurrent launches and the library's products around them.

Estimates all of it, until a GPU has measured them: the planner's time a step, and rates of products and memory.
Sizes as in `lstmvid.ops.lstm_sequence`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .plan import ELEMENT_BYTES, DeviceLimits, Plan, plan, product_time, weight_shares
from .wavefront import LAUNCH, wavefront
from .windows import MIN_STEPS, even_windows

CHUNK = MIN_STEPS["cuda"]  # steps between checkpoints


class Estimate(NamedTuple):
    """One direction of a call; times in microseconds.

    `limit`: the least that this device takes for it, which is its FLOP at the rate of the library's products, or its
    operands, its results and what is kept for backward through memory once.
    """

    plan: Plan  # of a launch
    weights: dict[str, float]  # where a launch holds which share of W_hh
    window: int  # steps by which layers run behind each other, side by side; 0: one layer after the other
    launches: int
    recurrence: float
    products: float
    limit: float

    @property
    def total(self) -> float:
        """The recurrence and the products, one after the other."""
        return self.recurrence + self.products


class _Product(NamedTuple):
    flop: float
    moved: float  # elements


def _product(rows: int, inner: int, columns: int) -> _Product:
    return _Product(2.0 * rows * inner * columns, float(rows * inner + inner * columns + rows * columns))


def _widths(request) -> list[int | None]:
    """What each layer reads a step, None for nothing."""
    return [request.input_size, *[request.hidden_size] * (request.num_layers - 1)]


def _products(request, *, backward: bool, input_gradient: bool) -> Iterator[_Product]:
    """The library's, of one group."""
    rows, gates, hidden = request.steps * request.batch, 4 * request.hidden_size, request.hidden_size
    for layer, width in enumerate(_widths(request)):
        if not backward:
            if width:
                yield _product(rows, width, gates)
            continue
        yield _product(gates, rows, hidden)
        if width:
            yield _product(gates, rows, width)
            if layer or input_gradient:
                yield _product(rows, gates, width)
        if request.recompute == "gates":
            yield _product(rows, hidden, gates)
            if width:
                yield _product(rows, width, gates)


def _weights(request) -> int:
    """Elements of one group's matrices."""
    return sum(4 * request.hidden_size * ((width or 0) + request.hidden_size) for width in _widths(request))


def kept_bytes(request) -> int:
    """What forward keeps for backward besides inputs and output: lower layers' outputs, cells, and gates."""
    size, layers = ELEMENT_BYTES.get(request.dtype, request.dtype.itemsize), request.num_layers
    state_size = max(size, 4)  # of a cell
    sequence = request.groups * request.steps * request.batch * request.hidden_size
    lower = (layers - 1) * sequence * size
    if request.recompute == "gates":
        checkpoints = -(-request.steps // MIN_STEPS.get(request.device, CHUNK))
        return lower + layers * sequence // request.steps * checkpoints * state_size
    return lower + layers * sequence * (4 * size + state_size)


def _limit(request, limits: DeviceLimits, *, backward: bool, save: bool, tf32: bool) -> float:
    groups, rows, size = request.groups, request.steps * request.batch, ELEMENT_BYTES[request.dtype]
    # Without recomputing, which is a choice; the recurrence counts as one more product.
    plain = request._replace(recompute="none")
    flop = sum(product.flop for product in _products(plain, backward=backward, input_gradient=False))
    flop += request.num_layers * _product(rows, request.hidden_size, 4 * request.hidden_size).flop
    elements = rows * (request.input_size or 0) + groups * rows * request.hidden_size
    elements += groups * _weights(request) * (2 if backward else 1)  # and their gradients
    moved = size * elements + (kept_bytes(plain) if save or backward else 0)
    return product_time(groups * flop, moved, request.dtype, tf32, limits)


def _launches(request, *, backward: bool, save: bool, side_by_side: int) -> int:
    """Of all layers, one after the other."""
    groups = -(-request.groups // side_by_side)
    if request.recompute == "gates" and (save or backward):
        return groups * request.num_layers * -(-request.steps // CHUNK)
    total = 0
    for width in _widths(request):
        if width and not save and not backward:
            step_bytes = side_by_side * request.batch * 4 * request.hidden_size * ELEMENT_BYTES[request.dtype]
            total += groups * len(even_windows(request.steps, step_bytes, "cuda"))
        else:
            total += groups
    return total


def estimate(
    request, limits: DeviceLimits, *, backward: bool = False, save: bool = True, tf32: bool = True
) -> Estimate:
    """One direction of a call (a `lstmvid.backends.Request`) by the CUDA kernels; the input needs no gradient.

    `save`: forward keeps what backward needs. `tf32`: float32 products may be computed in tf32.

    Raises:
        ValueError: the kernels can't run this there; the message says why.
    """
    in_windows = request.recompute == "gates" and request.steps > CHUNK
    sizes = (request.hidden_size, request.batch)
    options = {"tf32": tf32, "backward": backward}
    launch = plan(*sizes, request.dtype, limits, groups=request.groups, in_parts=in_windows and backward, **options)
    window = 0
    launches = _launches(request, backward=backward, save=save, side_by_side=launch.groups)
    recurrence = request.num_layers * request.steps * launch.microseconds + launches * LAUNCH
    if request.groups == 1 and not request.lengths and not (backward and request.recompute == "gates"):
        forced = CHUNK if request.recompute == "gates" and save else None
        layers = request.num_layers
        found = wavefront(request.steps, *sizes, layers, request.dtype, limits, window=forced, **options)
        if found is not None:
            launch, window, recurrence = found.plan, found.window, found.microseconds
            launches = -(-request.steps // window) + layers - 1
    element = ELEMENT_BYTES[request.dtype]
    products = sum(
        product_time(product.flop, element * product.moved, request.dtype, tf32, limits)
        for product in _products(request, backward=backward, input_gradient=False)
    )
    limit = _limit(request, limits, backward=backward, save=save, tf32=tf32)
    weights = weight_shares(launch, *sizes, element, backward=backward)
    return Estimate(launch, weights, window, launches, recurrence, request.groups * products, limit)
