r"""`closed_loop`: a stack of LSTM layers that reads a frame at every step and sees it at the next one, in one call.

Shapes: `T` steps, `B` batch, `D` values of a frame, `H` hidden units, `L` layers.

    lstmvid::closed_loop
      first       [B, D]        what the first step sees, or none: nothing
      h_0, c_0    [L, B, H]     c_0 in the state dtype (float32 for half precision operands, else the operands')
      weights     for each layer: weight_ih [4H, D or H]  weight_hh [4H, H]  [bias [4H]]  [peephole [3H]]
      head_weight [D, H]        head_bias [D]: z = W_out h + b_out, h of the top layer
      truth, own  [T-1, B, D] and bool [T-1, B], both or neither: step t + 1 sees link(z_t) where own, else truth_t
      link        "identity" | "sigmoid" | "rectifier": from z to the frame that the next step sees
      save        keep what backward needs
      backend     who runs it: a key of `BACKENDS`
    -> z          [T, B, D]
       h_n, c_n   [L, B, H]
       hidden     [L, T, B, H]  cells [L, T, B, H]  gates [L, T, B, 4H], activated; [L, 0, ...] if not saved
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends import Request
from ..backends.cpu import closed_loop as cpu
from ..backends.reference import closed_loop as reference
from ..backends.triton import closed_loop as triton
from .autograd import register_autograd
from .double_backward import second_derivatives
from .lstm_sequence import LayerWeights, autocast_dtype, flatten_weights, in_function_transform, state_dtype

BACKENDS = {"reference": reference, "cpu": cpu, "triton": triton}
LINKS = tuple(reference.LINKS)

_FORWARD, _BACKWARD = "lstmvid::closed_loop", "lstmvid::closed_loop_bwd"

torch.library.define(
    _FORWARD,
    "(Tensor? first, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor head_weight, Tensor head_bias, Tensor? truth,"
    " Tensor? own, SymInt steps, bool bias, bool peephole, str link, bool save, str backend)"
    " -> (Tensor z, Tensor h_n, Tensor c_n, Tensor hidden, Tensor cells, Tensor gates)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor? grad_z, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? first, Tensor h_0, Tensor c_0, Tensor[] weights,"
    " Tensor head_weight, Tensor head_bias, Tensor? truth, Tensor? own, Tensor z, Tensor hidden, Tensor cells,"
    " Tensor gates, SymInt steps, bool bias, bool peephole, str link, bool need_frames, bool need_weights,"
    " str backend)"
    # One flat list: h_0, c_0; first and truth, where there and needed; weights, head_weight, head_bias, likewise.
    " -> Tensor[]",
)


def _check(first, h_0, c_0, weights, head_weight, head_bias, truth, own, steps, bias, peephole, link, *_) -> None:
    """Kernels take addresses: the last place to notice a tensor smaller than what they read."""
    layers, batch, size = h_0.shape
    frame = head_weight.size(0)
    if link not in LINKS:
        raise ValueError(f"link must be one of {', '.join(LINKS)}, got {link!r}")
    if (truth is None) != (own is None):
        raise ValueError("truth and own must both be given, or neither")
    expected = []
    for index in range(layers):
        expected += [(4 * size, size if index else frame), (4 * size, size)]
        expected += [(4 * size,)] * bias + [(3 * size,)] * peephole
    if len(weights) != len(expected):
        raise ValueError(f"closed_loop of {layers} layers takes {len(expected)} weights, got {len(weights)}")
    shapes = [("h_0", h_0, (layers, batch, size)), ("c_0", c_0, (layers, batch, size))]
    shapes += [("head_weight", head_weight, (frame, size)), ("head_bias", head_bias, (frame,))]
    shapes += [] if first is None else [("first", first, (batch, frame))]
    shapes += [] if truth is None else [("truth", truth, (max(steps - 1, 0), batch, frame))]
    shapes += [] if own is None else [("own", own, (max(steps - 1, 0), batch))]
    shapes += [(f"weights[{i}]", w, shape) for i, (w, shape) in enumerate(zip(weights, expected, strict=True))]
    dtypes = {"c_0": state_dtype(h_0.dtype), "own": torch.bool}
    for name, tensor, shape in shapes:
        dtype = dtypes.get(name, h_0.dtype)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} must be {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")


@torch.library.impl(_FORWARD, ("CPU", "CUDA"))
def _forward(*args):
    *arguments, backend = args
    _check(*arguments)
    return BACKENDS[backend].forward(*arguments)


@torch.library.impl(_BACKWARD, ("CPU", "CUDA"))
def _backward(*args):
    *arguments, backend = args
    del arguments[8]  # head_bias, of which no gradient depends
    grad_h_0, grad_c_0, of_frames, of_weights = BACKENDS[backend].backward(*arguments)
    return [grad_h_0, grad_c_0, *of_frames, *of_weights]


@torch.library.register_fake(_FORWARD)
def _fake_forward(
    first, h_0, c_0, weights, head_weight, head_bias, truth, own, steps, bias, peephole, link, save, backend
):
    layers, batch, size = h_0.shape
    kept = steps if save else 0
    return (
        h_0.new_empty(steps, batch, head_weight.size(0)),
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape),
        h_0.new_empty(layers, kept, batch, size),
        c_0.new_empty(layers, kept, batch, size),
        h_0.new_empty(layers, kept, batch, 4 * size),
    )


def _wanted(first, h_0, c_0, weights, head_weight, head_bias, truth, need_frames: bool, need_weights: bool):
    """What backward returns the gradients of, in its order."""
    frames = [tensor for tensor in (first, truth) if tensor is not None] if need_frames else []
    return [h_0, c_0, *frames, *([*weights, head_weight, head_bias] if need_weights else [])]


@torch.library.register_fake(_BACKWARD)
def _fake_backward(*args):
    first, h_0, c_0, weights, head_weight, head_bias, truth = args[3:10]
    wanted = _wanted(first, h_0, c_0, weights, head_weight, head_bias, truth, *args[-3:-1])
    return [tensor.new_empty(tensor.shape) for tensor in wanted]


def _setup_forward(ctx, inputs, output) -> None:
    first, h_0, c_0, weights, head_weight, head_bias, truth, own, *ctx.options = inputs
    z, _, _, hidden, cells, gates = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(hidden, cells, gates)
    ctx.save_for_backward(*(first, h_0, c_0, head_weight, head_bias, truth, own, z, hidden, cells, gates), *weights)


def _autograd_forward(ctx, grad_z, grad_h_n, grad_c_n, *_):
    steps, bias, peephole, link, save, backend = ctx.options
    if not save:
        raise RuntimeError("closed_loop was called with save=False: there is nothing to differentiate from")
    first, h_0, c_0, head_weight, head_bias, truth, own, *kept = ctx.saved_tensors
    kept, weights = kept[:4], kept[4:]
    # The head's two stand with the weights, and behind `own` comes what is no tensor.
    of_first, _, _, *of_weights, of_truth, _own = ctx.needs_input_grad[: len(weights) + 7]
    need_frames, need_weights = of_first or of_truth, any(of_weights)
    gradients = iter(
        torch.ops.lstmvid.closed_loop_bwd(
            *(grad_z, grad_h_n, grad_c_n, first, h_0, c_0, weights, head_weight, head_bias, truth, own, *kept),
            *(steps, bias, peephole, link, need_frames, need_weights, backend),
        )
    )
    grad_h_0, grad_c_0 = next(gradients), next(gradients)
    grad_first, grad_truth = (
        next(gradients) if need_frames and tensor is not None else None for tensor in (first, truth)
    )
    grad_weights = [next(gradients) if need_weights else None for _ in weights]
    grad_head, grad_head_bias = (next(gradients) if need_weights else None for _ in range(2))
    return grad_first, grad_h_0, grad_c_0, *grad_weights, grad_head, grad_head_bias, grad_truth


def _setup_backward(ctx, inputs, output) -> None:
    *seeds, first, h_0, c_0, weights, head_weight, head_bias, truth, own = inputs[:11]
    steps, bias, peephole, link, ctx.need_frames, ctx.need_weights, _ = inputs[15:]
    ctx.options = (steps, bias, peephole, link, False)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(own, *seeds, first, h_0, c_0, head_weight, head_bias, truth, *weights)


def _autograd_backward(ctx, *grads):
    own, *saved = ctx.saved_tensors

    def again(leaves):
        seeds, (first, h_0, c_0, head_weight, head_bias, truth), weights = leaves[:3], leaves[3:9], leaves[9:]
        arguments = (first, h_0, c_0, weights, head_weight, head_bias, truth)
        results = reference.forward(*arguments, own, *ctx.options)[:3]
        return results, seeds, _wanted(*arguments, ctx.need_frames, ctx.need_weights)

    result = second_derivatives(saved, grads, again)
    seeds, (first, h_0, c_0, head_weight, head_bias, truth), weights = result[:3], result[3:9], result[9:]
    return *seeds, first, h_0, c_0, *weights, head_weight, head_bias, truth


register_autograd(_FORWARD, _autograd_forward, setup_context=_setup_forward)
register_autograd(_BACKWARD, _autograd_backward, setup_context=_setup_backward)


class ClosedLoopResult(NamedTuple):
    """z [T, B, D], before the link; h_n and c_n [L, B, H]."""

    z: Tensor
    h_n: Tensor
    c_n: Tensor


def serves_closed_loop(backend: str) -> bool:
    """Whether a backend of that name, or the one that `"auto"` takes, runs the loop as one call."""
    return backend == "auto" or backend in BACKENDS


def closed_loop(
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[LayerWeights],
    head_weight: Tensor,
    head_bias: Tensor,
    *,
    steps: int,
    link: str,
    truth: Tensor | None = None,
    own: Tensor | None = None,
    backend: str = "auto",
) -> ClosedLoopResult:
    """Run a decoder on its own output, or on a mixture with the true frames: shapes as in this module's head.

    `weights[layer]`; `c_0` and the returned `c_n` may have the operands' dtype or the state dtype. Differentiable in
    all tensors but `own`; gradients flow through the frames that are the decoder's own.

    Inside a `torch.func` transform and under `torch.jit.trace` plain torch code runs, without the operator.

    Raises:
        ValueError: a shape or dtype, or the link; names the argument.
        BackendUnavailable: the backend that was named cannot run this call; the message says why.
    """
    layers, batch, size = h_0.shape
    flat = flatten_weights([weights])
    tensors = [tensor for tensor in (first, h_0, c_0, head_weight, head_bias, truth, *flat) if tensor is not None]
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    cast, cell_dtype = autocast_dtype(h_0.device.type) or h_0.dtype, c_0.dtype

    def operand(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(cast)

    has_bias, has_peephole = weights[0].bias_ih is not None, weights[0].peephole is not None
    request = Request(
        device=h_0.device.type,
        dtype=cast,
        steps=steps,
        batch=batch,
        input_size=head_weight.size(0),
        hidden_size=size,
        num_layers=layers,
        peephole=has_peephole,
        needs_grad=needs_grad,
        transformed=in_function_transform(),
        traced=torch.jit.is_tracing(),
        closed_loop=True,
    )
    name = backends.resolve(backend, request)
    arguments = (operand(first), operand(h_0), c_0.to(state_dtype(cast)), [operand(w) for w in flat])
    arguments += (operand(head_weight), operand(head_bias), operand(truth), own, steps, has_bias, has_peephole, link)
    if request.transformed or request.traced:
        z, h_n, c_n, *_ = reference.forward(*arguments, False)
    else:
        z, h_n, c_n, *_ = torch.ops.lstmvid.closed_loop(*arguments, needs_grad, name)
    return ClosedLoopResult(z, h_n, c_n.to(cell_dtype))
