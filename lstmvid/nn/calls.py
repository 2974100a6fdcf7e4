"""The operator's calls in a module's forward pass, foretold from its sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..backends import Request
from .composite import FusedComposite
from .decoders import DecoderRun, are_alike
from .lstm import LSTM
from .stack import LSTMStack


class Call(NamedTuple):
    """One call: a name for it, what it needs, and the backend that the module names."""

    name: str
    request: Request
    backend: str


def calls_of(module: nn.Module, base: Request, name: str = "") -> Iterator[Call]:
    """Those of all LSTMs in a module, in the order in which they are registered.

    `base` has the device, the dtype, the batch, the steps of a sequence, and whether gradients are needed. A composite
    model predicts as many frames as it sees, teacher-forced.
    """
    if isinstance(module, nn.LSTM):
        yield from _lstm_calls(name or "LSTM", module, base)
    elif isinstance(module, LSTMStack):
        yield _stack_call(name or "LSTM", [module], base, module.input_size is not None)
    elif isinstance(module, FusedComposite):
        yield from _composite_calls(f"{name}." if name else "", module, base)
    else:
        for child_name, child in module.named_children():
            yield from calls_of(child, base, f"{name}.{child_name}" if name else child_name)


def _lstm_calls(name: str, lstm: nn.LSTM, base: Request) -> Iterator[Call]:
    of = lstm if isinstance(lstm, LSTM) else LSTM  # whose class attributes are the defaults
    groups = 2 if lstm.bidirectional else 1
    request = base._replace(
        hidden_size=lstm.hidden_size,
        groups=groups,
        peephole=of.peephole,
        recompute=of.recompute,
        proj_size=lstm.proj_size,
    )
    if groups == 1 and not (lstm.dropout and base.needs_grad):
        yield Call(name, request._replace(input_size=lstm.input_size, num_layers=lstm.num_layers), of.backend)
        return
    for layer in range(lstm.num_layers):
        width = groups * (lstm.proj_size or lstm.hidden_size) if layer else lstm.input_size
        yield Call(f"{name}, layer {layer}", request._replace(input_size=width), of.backend)


def _stack_call(name: str, stacks: Sequence[LSTMStack], base: Request, has_input: bool) -> Call:
    first = stacks[0]
    request = base._replace(
        input_size=first.input_size if has_input else None,
        hidden_size=first.hidden_size,
        num_layers=first.num_layers,
        groups=len(stacks),
        peephole=first.peephole,
        recompute=first.recompute,
    )
    return Call(name, request, first.backend)


def _composite_calls(prefix: str, model: FusedComposite, base: Request) -> Iterator[Call]:
    yield _stack_call(f"{prefix}encoder", [model.encoder], base, True)
    runs = {}
    decoders = {"reconstructor": ("reconstruct", model.reconstruct_mode), "predictor": ("predict", model.predict_mode)}
    for part, (name, mode) in decoders.items():
        if mode is not None:
            seen = torch.empty(0) if mode == "conditional" else None
            state = (torch.empty(0),) * 2
            runs[part] = DecoderRun(getattr(model, part), state, base.steps, seen, name in model.copy_state)
    together = [list(runs)] if len(runs) > 1 and are_alike(list(runs.values())) else [[part] for part in runs]
    for parts in together:
        first = runs[parts[0]]
        if first.steps_to_take:
            request = base._replace(steps=first.steps_to_take)
            yield _stack_call(
                " and ".join(prefix + part for part in parts),
                [runs[part].stack for part in parts],
                request,
                first.seen is not None,
            )
