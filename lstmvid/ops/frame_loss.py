r"""`frame_loss`: the loss of a whole sequence of frames as a decoder's head reads them, in one call, and its gradients.

Shapes: `T` frames a sequence, `B` batch, `H` hidden units, `D` values of a frame.

    lstmvid::frame_loss
      hidden      [T, B, H]    the decoder's top layer
      weight      [D, H]       bias [D] or none: the head, logits z = W h + b
      target      [T, B, D]    of hidden's dtype, or uint8, which is scaled by 1/255; for a GPU it may lie in host
                               memory, from where it comes a chunk at a time
      likelihood  "bernoulli" | "gaussian" | "rectified", as in `lstmvid/nn/likelihoods.py`
      save        compute the gradients, too: there is nothing else that backward needs, and the logits aren't kept
      chunk       frames of each sequence at a time, of which there is the gradient of the logits in memory
      backend     who runs it: a key of `BACKENDS`
    -> loss        []           summed over everything, in the state dtype (float32 for half precision, else hidden's)
       grad_hidden [T, B, H]    of hidden's dtype; [0] if not saved, as the next two, which have the state dtype
       grad_weight [D, H]       grad_bias [D]: [0] without bias
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from ..backends import BackendUnavailable, Request, reference, streaming
from .autograd import register_autograd
from .lstm_sequence import autocast_dtype, state_dtype

BACKENDS = {"reference": reference.frame_loss, "triton": backends.triton.compute_frame_loss}
LIKELIHOODS = ("bernoulli", "gaussian", "rectified")
CHUNK_BYTES = 64 << 20  # of the logits' gradient
CHUNK_ROWS = 1 << 14  # frames of all sequences: what a product sums up in half precision stays within its range

_FORWARD, _BACKWARD = "lstmvid::frame_loss", "lstmvid::frame_loss_bwd"

torch.library.define(
    _FORWARD,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, str likelihood, bool save, SymInt chunk, str backend)"
    " -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor grad_hidden,"
    " Tensor grad_weight, Tensor grad_bias, str likelihood) -> (Tensor, Tensor, Tensor)",
)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, likelihood: str) -> None:
    """Kernels take addresses: the last place to notice a tensor smaller than what they read."""
    if hidden.dim() != 3 or weight.dim() != 2:
        raise ValueError(
            f"hidden must be (T, B, H) and weight (D, H), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    features = weight.size(0)
    shapes = [("weight", weight, (features, hidden.size(2))), ("target", target, (*hidden.shape[:2], features))]
    shapes += [] if bias is None else [("bias", bias, (features,))]
    for name, tensor, shape in shapes:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} to match the others, got {tuple(tensor.shape)}")
        if tensor.device != hidden.device and not (name == "target" and streaming.is_elsewhere(target, hidden.device)):
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
        if tensor.dtype != hidden.dtype and not (name == "target" and tensor.dtype == torch.uint8):
            raise TypeError(f"{name} must be {hidden.dtype}, got {tensor.dtype}")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")


@torch.library.impl(_FORWARD, ("CPU", "CUDA"))
def _forward(hidden, weight, bias, target, likelihood, save, chunk, backend):
    _check(hidden, weight, bias, target, likelihood)
    return BACKENDS[backend](hidden, weight, bias, target, likelihood, save, chunk)


@torch.library.impl(_BACKWARD, ("CPU", "CUDA"))
def _backward(grad_loss, hidden, weight, bias, target, grad_hidden, grad_weight, grad_bias, likelihood):
    return tuple((grad_loss * part).to(hidden.dtype) for part in (grad_hidden, grad_weight, grad_bias))


@torch.library.register_fake(_FORWARD)
def _fake_forward(hidden, weight, bias, target, likelihood, save, chunk, backend):
    state = state_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=state),
        hidden.new_empty(hidden.shape if save else (0,)),
        weight.new_empty(weight.shape if save else (0,), dtype=state),
        weight.new_empty(weight.size(0) if save and bias is not None else 0, dtype=state),
    )


@torch.library.register_fake(_BACKWARD)
def _fake_backward(grad_loss, hidden, weight, bias, target, grad_hidden, grad_weight, grad_bias, likelihood):
    return tuple(hidden.new_empty(part.shape) for part in (grad_hidden, grad_weight, grad_bias))


def _setup_forward(ctx, inputs, output) -> None:
    hidden, weight, bias, target, ctx.likelihood, ctx.save, _, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, target, *output[1:])


def _autograd_forward(ctx, grad_loss, *_):
    if not ctx.save:
        raise RuntimeError("frame_loss was called with save=False: there is nothing to differentiate from")
    if grad_loss is None:
        return ()
    bias = ctx.saved_tensors[2]
    of_hidden, of_weight, of_bias = torch.ops.lstmvid.frame_loss_bwd(grad_loss, *ctx.saved_tensors, ctx.likelihood)
    return of_hidden, of_weight, None if bias is None else of_bias


def _setup_backward(ctx, inputs, output) -> None:
    grad_loss, hidden, weight, bias, target, *_, ctx.likelihood = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_loss, hidden, weight, bias, target)


def _autograd_backward(ctx, *grads):
    """Double backward: the reference is differentiable, so its first derivative is taken once more."""
    *saved, target = ctx.saved_tensors
    with torch.enable_grad():
        saved = [None if tensor is None else tensor.detach().requires_grad_() for tensor in saved]
        seed, wanted = saved[0], [tensor for tensor in saved[1:] if tensor is not None]
        loss = reference.summed_loss(*saved[1:], target, ctx.likelihood)
        first = torch.autograd.grad(loss, wanted, seed, create_graph=True)
        pairs = [(y, g) for y, g in zip(first, grads, strict=False) if g is not None]
        leaves = [seed, *wanted]
        second = iter(torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True))
    return [None if tensor is None else next(second) for tensor in saved]


register_autograd(_FORWARD, _autograd_forward, setup_context=_setup_forward)
register_autograd(_BACKWARD, _autograd_backward, setup_context=_setup_backward)


def _resolve(backend: str, request: Request) -> str:
    """Who runs it; by itself the reference, as no GPU has proven another."""
    backends.check_names(backend, request.recompute)
    name = "reference" if backend == "auto" else backend
    reason = backends.unavailable(name, request) if name in BACKENDS else f"it has none, only {' and '.join(BACKENDS)}"
    if reason:
        raise BackendUnavailable(f"backend {name!r} can't run frame_loss: {reason}")
    return name


def frame_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    likelihood: str = "bernoulli",
    *,
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of `target` in nats up to a constant: sum over a frame, mean over frames and batch.

    `hidden` (T, B, H) is a decoder's top layer, `weight` (D, H) and `bias` (D,) its head, `target` (T, B, D) the true
    frames, `uint8` scaled by 1/255, in host memory or where the others are. The same as `nn.Linear` and
    a `Likelihood`'s loss, but the logits of all frames are never in memory. A scalar in the state dtype, differentiable
    but for `target`.

    Raises:
        ValueError, TypeError: a shape, device, dtype or the likelihood is wrong; names the argument.
        BackendUnavailable: the backend that was named can't run it; the message says why.
    """
    if target.requires_grad:
        raise ValueError("target has no gradient here, but requires one")
    if cast := autocast_dtype(hidden.device.type):
        hidden, weight, bias = hidden.to(cast), weight.to(cast), None if bias is None else bias.to(cast)
        target = target if target.dtype == torch.uint8 else target.to(cast)
    _check(hidden, weight, bias, target, likelihood)
    steps, batch, size = hidden.shape
    name = _resolve(backend, Request(hidden.device.type, hidden.dtype, steps, batch, size, size))
    needs_grad = any(tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias))
    save = torch.is_grad_enabled() and needs_grad
    rows = min(CHUNK_BYTES // max(weight.size(0) * hidden.element_size(), 1), CHUNK_ROWS)
    chunk = max(rows // max(batch, 1), 1)
    loss = torch.ops.lstmvid.frame_loss(hidden, weight, bias, target, likelihood, save, chunk, name)[0]
    return loss / (steps * batch)
