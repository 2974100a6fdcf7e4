r"""`lstm_sequence`: a whole sequence through a whole stack of LSTM layers, or through groups of stacks, in one call.

Shapes: `T` steps, `B` batch, `D` input features, `H` hidden units, `L` layers, `G` groups (independent stacks of equal
size that run at the same time: two decoders, or the two directions of a bidirectional layer).

    lstmvid::lstm_sequence
      inputs     0 (no input), 1 (shared by the groups) or G tensors [T, B, D]; or [T-1, B, D]: then the step that runs
                 first sees nothing, and the others one frame each. uint8 is scaled by 1/255. For a GPU they may lie
                 in host memory (cuda and triton bring them a window at a time), in any floating dtype; then they have
                 no gradient
      h_0, c_0   [G, L, B, H]; c_0 in the state dtype (float32 for half precision operands, else the operands')
      weights    for each group and layer: [weight_ih [4H, D]] weight_hh [4H, H] [bias [4H]] [peephole [3H]]
      lengths    [B] int64: steps of each sequence; the padding behind is never run
      reverse    for each group: whether time runs backwards (each sequence from its own last step)
      save       keep what backward needs; recompute: only states, gates are computed again from them
      all_cells  return the cell state after every step; in padding it is the state carried along
      chunk      steps between the cell states that are kept for recomputing
      backend    who runs it: a key of `lstmvid.backends.KERNELS`; backward runs on the same one
    -> output  [G, T, B, H]    top layer, zeros in padding
       h_n     [G, L, B, H]    c_n [G, L, B, H]
       hidden  [G, L-1, T, B, H] lower layers' outputs, or [G, 0, T, B, H] if not saved
       cells   [G, L, T, B, H], or [G, L, ceil(T/chunk), B, H] for recomputing, or [G, L, 0, B, H]
       gates   [G, L, T, B, 4H] after their activations, or [G, L, 0, B, 4H]

`"auto"` is resolved above the operator, so that a traced graph always says who runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends import Request, reference, streaming
from ..backends.memory import recomputes
from ..backends.windows import MIN_STEPS
from .autograd import register_autograd
from .double_backward import second_derivatives

_FORWARD, _BACKWARD = "lstmvid::lstm_sequence", "lstmvid::lstm_sequence_bwd"

torch.library.define(
    _FORWARD,
    "(Tensor[] inputs, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, SymInt steps, bool bias,"
    " bool peephole, bool[] reverse, bool save, bool all_cells, bool recompute, SymInt chunk, str backend)"
    " -> (Tensor output, Tensor h_n, Tensor c_n, Tensor hidden, Tensor cells, Tensor gates)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells,"
    " Tensor[] inputs, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths,"
    " Tensor output, Tensor hidden, Tensor cells, Tensor gates, SymInt steps, bool bias, bool peephole,"
    " bool[] reverse, bool all_cells, bool recompute, SymInt chunk, bool need_inputs, bool need_weights, str backend)"
    # One flat list, h_0 and c_0 first, then the inputs' and the weights' where they are needed.
    " -> Tensor[]",
)


def state_dtype(operand: torch.dtype) -> torch.dtype:
    """The dtype of cell states and of all gate arithmetic."""
    return torch.float32 if operand in (torch.bfloat16, torch.float16) else operand


def _check(inputs, h_0, c_0, weights, lengths, steps, bias, peephole, reverse, *_) -> None:
    """Kernels take addresses: the last place to notice a tensor smaller than what they read."""
    groups, layers, batch, size = h_0.shape
    features = inputs[0].size(-1) if inputs else None
    is_blind = bool(inputs) and inputs[0].size(0) == steps - 1
    if is_blind and lengths is not None:
        raise ValueError("inputs of a frame less than steps can't have lengths")
    expected = []
    for index in range(groups * layers):
        width = size if index % layers else features
        expected += [] if width is None else [(4 * size, width)]
        expected += [(4 * size, size)] + [(4 * size,)] * bias + [(3 * size,)] * peephole
    if len(inputs) not in (0, 1, groups) or len(weights) != len(expected) or len(reverse) != groups:
        raise ValueError(
            f"lstm_sequence of {groups} groups of {layers} layers takes 0, 1 or {groups} inputs, {len(expected)} "
            f"weights and {groups} directions, got {len(inputs)}, {len(weights)} and {len(reverse)}"
        )
    frame = (steps - is_blind, batch, features)
    for index, x in enumerate(inputs):
        if x.device != h_0.device:
            streaming.check_place(f"inputs[{index}] is", x, h_0.device, "h_0 is")
        dtype = x.dtype if streaming.are_converted(x, h_0) else h_0.dtype
        _check_each(f"inputs[{index}]", [x], [frame], (dtype, torch.uint8))
    _check_each("c_0", [c_0], [h_0.shape], (state_dtype(h_0.dtype),))
    _check_each("weights[{}]", weights, expected, (h_0.dtype,))
    if lengths is not None and (tuple(lengths.shape) != (batch,) or lengths.dtype != torch.int64):
        raise ValueError(f"lengths must be ({batch},) of torch.int64, got {tuple(lengths.shape)} of {lengths.dtype}")


def _check_each(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], dtypes) -> None:
    """Each tensor's shape, and that it has one of the dtypes, of which an error names the first."""
    for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if tensor.shape != shape or tensor.dtype not in dtypes:
            expected, found = f"{tuple(shape)} of {dtypes[0]}", f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"{name.format(index)} must be {expected}, got {found}")


@torch.library.impl(_FORWARD, ("CPU", "CUDA"))
def _forward(*args):
    *arguments, backend = args
    _check(*arguments)
    return backends.KERNELS[backend].forward(*arguments)


@torch.library.impl(_BACKWARD, ("CPU", "CUDA"))
def _backward(*args):
    *arguments, backend = args
    grad_inputs, grad_h_0, grad_c_0, grad_weights = backends.KERNELS[backend].backward(*arguments)
    return [grad_h_0, grad_c_0, *grad_inputs, *grad_weights]


@torch.library.register_fake(_FORWARD)
def _fake_forward(
    inputs, h_0, c_0, weights, lengths, steps, bias, peephole, reverse, save, all_cells, recompute, chunk, backend
):
    groups, layers, batch, size = h_0.shape
    if all_cells or (save and not recompute):
        kept_cells = steps
    else:
        kept_cells = (steps + chunk - 1) // chunk if save else 0
    return (
        h_0.new_empty(groups, steps, batch, size),
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape),
        h_0.new_empty(groups, layers - 1 if save else 0, steps, batch, size),
        c_0.new_empty(groups, layers, kept_cells, batch, size),
        h_0.new_empty(groups, layers, steps if save and not recompute else 0, batch, 4 * size),
    )


@torch.library.register_fake(_BACKWARD)
def _fake_backward(*args):
    inputs, h_0, c_0, weights = args[4:8]
    need_inputs, need_weights = args[-3:-1]
    of_inputs = [h_0.new_empty(x.shape) for x in inputs if need_inputs]
    of_others = [tensor.new_empty(tensor.shape) for tensor in (h_0, c_0, *(weights if need_weights else []))]
    return [*of_others[:2], *of_inputs, *of_others[2:]]


def _setup_forward(ctx, inputs, output) -> None:
    frames, h_0, c_0, weights, lengths, *options = inputs
    top, _, _, hidden, cells, gates = output
    ctx.num_inputs, ctx.num_weights, ctx.options = len(frames), len(weights), options
    ctx.set_materialize_grads(False)
    all_cells = options[5]
    ctx.mark_non_differentiable(*((hidden, gates) if all_cells else (hidden, cells, gates)))
    ctx.save_for_backward(*frames, h_0, c_0, *weights, lengths, top, hidden, cells, gates)


def _autograd_forward(ctx, grad_output, grad_h_n, grad_c_n, _grad_hidden, grad_cells, _grad_gates):
    steps, bias, peephole, reverse, save, all_cells, recompute, chunk, backend = ctx.options
    if not save:
        raise RuntimeError("lstm_sequence was called with save=False: there is nothing to differentiate from")
    saved, needs_grad = list(ctx.saved_tensors), ctx.needs_input_grad
    of_frames = slice(0, ctx.num_inputs)
    of_weights = slice(ctx.num_inputs + 2, ctx.num_inputs + 2 + ctx.num_weights)
    frames, (h_0, c_0), weights = saved[of_frames], saved[of_frames.stop : of_weights.start], saved[of_weights]
    lengths, top, hidden, cells, gates = saved[of_weights.stop :]
    need_inputs, need_weights = True in needs_grad[of_frames], True in needs_grad[of_weights]
    gradients = torch.ops.lstmvid.lstm_sequence_bwd(
        *(grad_output, grad_h_n, grad_c_n, grad_cells if all_cells else None),
        *(frames, h_0, c_0, weights, lengths, top, hidden, cells, gates),
        *(steps, bias, peephole, reverse, all_cells, recompute, chunk, need_inputs, need_weights, backend),
    )
    grad_h_0, grad_c_0, *gradients = gradients
    grad_inputs = gradients[: len(frames)] if need_inputs else [None] * len(frames)
    grad_weights = gradients[len(gradients) - len(weights) :] if need_weights else [None] * len(weights)
    return *grad_inputs, grad_h_0, grad_c_0, *grad_weights


def _setup_backward(ctx, inputs, output) -> None:
    *seeds, frames, h_0, c_0, weights, lengths = inputs[:9]
    steps, bias, peephole, reverse, all_cells, _, _, need_inputs, need_weights, _ = inputs[13:]
    ctx.num_inputs, ctx.num_weights = len(frames), len(weights)
    ctx.options = (steps, bias, peephole, reverse, False, all_cells, False, 1)
    ctx.need_inputs, ctx.need_weights = need_inputs, need_weights
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*seeds, h_0, c_0, *frames, *weights, lengths)


def _autograd_backward(ctx, *grads):
    *saved, lengths = ctx.saved_tensors

    def again(leaves):
        seeds, (h_0, c_0), tail = leaves[:4], leaves[4:6], leaves[6:]
        frames, weights = tail[: ctx.num_inputs], tail[ctx.num_inputs :]
        output, h_n, c_n, _, cells, _ = reference.forward(frames, h_0, c_0, weights, lengths, *ctx.options)
        wanted = [h_0, c_0, *(frames if ctx.need_inputs else []), *(weights if ctx.need_weights else [])]
        return (output, h_n, c_n, cells), seeds, wanted

    result = second_derivatives(saved, grads, again)
    grad_seeds, (grad_h_0, grad_c_0), tail = result[:4], result[4:6], result[6:]
    grad_frames, grad_weights = tail[: ctx.num_inputs], tail[ctx.num_inputs :]
    return *grad_seeds, *grad_frames, grad_h_0, grad_c_0, *grad_weights


register_autograd(_FORWARD, _autograd_forward, setup_context=_setup_forward)
register_autograd(_BACKWARD, _autograd_backward, setup_context=_setup_backward)


class LayerWeights(NamedTuple):
    """One layer's parameters under `torch.nn.LSTM`'s names: [4H, D] or None (no input), [4H, H], [4H], [4H], [3H]."""

    weight_ih: Tensor | None
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    peephole: Tensor | None = None


class LSTMResult(NamedTuple):
    """output [G, T, B, H], h_n and c_n [G, L, B, H], and the cell states [G, L, T, B, H] if they were asked for."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None


def flatten_weights(weights: Sequence[Sequence[LayerWeights]]) -> list[Tensor]:
    """The operator's weight list; its single bias is the sum of `torch.nn.LSTM`'s two."""
    flat = []
    for layer in (layer for group in weights for layer in group):
        bias = None if layer.bias_ih is None else layer.bias_ih + layer.bias_hh
        flat += [w for w in (layer.weight_ih, layer.weight_hh, bias, layer.peephole) if w is not None]
    return flat


# Asked once: in torch 2.11 the question breaks a compiled graph.
_WITH_AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that operands on this type of device take under autocast, as `torch.nn.LSTM`'s do; None without."""
    if device not in _WITH_AUTOCAST or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def in_function_transform() -> bool:
    """Whether a `torch.func` transform (`grad`, `vmap`, `jvp`, ...) is at work: to it an operator of ours is opaque."""
    return torch._C._are_functorch_transforms_active()


def lstm_sequence(
    inputs: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Sequence[LayerWeights]],
    *,
    steps: int,
    lengths: Tensor | None = None,
    reverse: Sequence[bool] | None = None,
    all_cells: bool = False,
    backend: str = "auto",
    recompute: str = "auto",
    chunk: int | None = None,
) -> LSTMResult:
    """Run `G` stacks over `steps` frames: chooses the backend, then calls the operator (shapes: this module's head).

    `weights[group][layer]`; `c_0` and the returned `c_n` may have the operands' dtype or the state dtype, and `c_n`
    comes back in that of `c_0`. Shapes are the caller's to check: this is the layer under the public functions. `uint8`
    inputs, those of a frame less than `steps`, and those in host memory for a GPU become what the steps see a window at
    a time on `cpu`, `cuda` and `triton`; the others make them whole.

    Inside a `torch.func` transform and under `torch.jit.trace` plain torch code runs, without the operator.

    Raises:
        ValueError: inputs lie elsewhere, or in host memory with a gradient to ask for.
        BackendUnavailable: the backend that was named cannot run this call; the message says why.
    """
    for x in inputs:
        if x.device != h_0.device:
            streaming.check_place("inputs are", x, h_0.device, "the states are")
    groups, layers, batch, size = h_0.shape
    first = weights[0][0]
    reverse = [False] * groups if reverse is None else list(reverse)
    device = h_0.device.type
    flat = flatten_weights(weights)
    needs_grad = torch.is_grad_enabled() and True in [t.requires_grad for t in (*inputs, h_0, c_0, *flat)]
    cell_dtype = c_0.dtype
    cast = autocast_dtype(device) or h_0.dtype
    h_0, flat = h_0.to(cast), [w if w.dtype == cast else w.to(cast) for w in flat]
    request = Request(
        device=device,
        dtype=h_0.dtype,
        steps=steps,
        batch=batch,
        input_size=None if first.weight_ih is None else first.weight_ih.size(1),
        hidden_size=size,
        num_layers=layers,
        groups=groups,
        peephole=first.peephole is not None,
        lengths=lengths is not None,
        all_cells=all_cells,
        recompute=recompute,
        needs_grad=needs_grad,
        transformed=in_function_transform(),
        traced=torch.jit.is_tracing(),
    )
    name = backends.resolve(backend, request)
    frames = streaming.inputs_for(name, inputs, steps, reverse, cast, h_0.device)
    if name == "torch":
        result = backends.torch.forward(frames, h_0, c_0, weights, steps, reverse)
        return LSTMResult(result[0], result[1], result[2].to(cell_dtype), None)
    arguments = (frames, h_0, c_0.to(state_dtype(h_0.dtype)), flat, lengths, steps)
    arguments += (first.bias_ih is not None, first.peephole is not None, reverse)
    chunk = chunk or MIN_STEPS.get(device, MIN_STEPS["cuda"])
    if request.transformed or request.traced:
        # As plain torch code, which they see through; nothing is saved for a backward of ours.
        output, h_n, c_n, _, cells, _ = reference.forward(*arguments, False, all_cells, False, chunk)
    else:
        output, h_n, c_n, _, cells, _ = torch.ops.lstmvid.lstm_sequence(
            *arguments, needs_grad, all_cells, recomputes(name, request), chunk, name
        )
    return LSTMResult(output, h_n, c_n.to(cell_dtype), cells if all_cells else None)
