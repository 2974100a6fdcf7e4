"""Other people's models on our kernels: every `torch.nn.LSTM` in them becomes an `lstmvid.LSTM`, and back.

A module is swapped by its class alone. It stays the same object with the same parameters, so that optimisers, hooks,
tied weights, wrappers such as DistributedDataParallel, and whoever holds a reference to it never notice.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .. import backends
from ..nn import LSTM

# On the instance, so that it survives deepcopy and pickling; modules that were built as lstmvid.LSTM don't have it.
_MARK = "_was_torch_lstm"


def accelerate(module: nn.Module, *, backend: str = "auto") -> nn.Module:
    """Make every `torch.nn.LSTM` in `module` an `lstmvid.LSTM`, in place, and return `module`.

    Parameters, hooks, tied weights and `state_dict` stay as they are; `module` may itself be an `nn.LSTM`. Only modules
    whose type is exactly `nn.LSTM` are swapped: subclasses, parametrised ones among them, are left, with a warning that
    names them. Modules that an earlier call swapped take the new backend.

    Args:
        module: any module.
        backend: as `lstmvid.LSTM`'s; a named one that can't run a call raises in that call.

    Raises:
        TypeError: `module` is no `nn.Module`.
        ValueError: there is no backend of that name.
    """
    _check_module(module)
    backends.check_names(backend, LSTM.recompute)
    left = []
    for name, child in module.named_modules():
        if type(child) is nn.LSTM:
            _swap(child, backend)
        elif hasattr(child, _MARK):
            child.backend = backend
        elif isinstance(child, nn.LSTM) and not isinstance(child, LSTM):
            left.append(_described(name, child))
    if left:
        reason = "only modules whose type is exactly torch.nn.LSTM are swapped"
        warnings.warn(f"accelerate() leaves {', '.join(left)}: {reason}", stacklevel=2)
    return module


def restore(module: nn.Module) -> nn.Module:
    """Undo `accelerate` and `patched` for every LSTM in `module`, in place, and return `module`.

    What was built as an `lstmvid.LSTM` stays one. What was parametrised after it was swapped is left, with a warning
    that names it: its class is torch's own, made on top of ours.

    Raises:
        TypeError: `module` is no `nn.Module`.
    """
    _check_module(module)
    left = []
    for name, child in module.named_modules():
        if not hasattr(child, _MARK):
            continue
        if type(child) is LSTM:
            delattr(child, _MARK)
            del child.backend
            child.__class__ = nn.LSTM
        else:
            left.append(_described(name, child))
    if left:
        warnings.warn(f"restore() leaves {', '.join(left)}: remove the parametrisations first", stacklevel=2)
    return module


@contextmanager
def patched(*, backend: str = "auto") -> Iterator[None]:
    """Within the block every `torch.nn.LSTM` that is constructed, by whatever name and in any thread, is ours.

    Its type is `lstmvid.LSTM`, `restore` undoes it; subclasses of `nn.LSTM` are left. Blocks may be nested: the inner
    one's backend counts.

    Args:
        backend: as `lstmvid.LSTM`'s.

    Raises:
        ValueError: there is no backend of that name.
    """
    backends.check_names(backend, LSTM.recompute)
    original = nn.LSTM.__init__

    # The constructor and not the name torch.nn.LSTM: `from torch.nn import LSTM` may have run long before.
    @functools.wraps(original)
    def construct(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        # In a nested block the outer one's constructor has swapped it already.
        if type(self) is nn.LSTM or hasattr(self, _MARK):
            _swap(self, backend)

    nn.LSTM.__init__ = construct
    try:
        yield
    finally:
        nn.LSTM.__init__ = original


def _swap(module: nn.LSTM, backend: str) -> None:
    module.__class__ = LSTM
    module.backend = backend
    setattr(module, _MARK, True)


def _described(name: str, module: nn.Module) -> str:
    return f"{name or 'the module itself'} ({type(module).__name__})"


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
