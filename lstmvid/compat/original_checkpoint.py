"""Parameters and velocities of original models: read from HDF5 checkpoints, or drawn as the model file says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lstmvid.compat.original_layout import Slot

if TYPE_CHECKING:
    import h5py


class Velocity(NamedTuple):
    """What the original optimiser remembers of one parameter."""

    velocity: torch.Tensor  # float32, of the parameter's shape
    updates: int  # how often the parameter was updated


def read_parameters(slots: Iterable[Slot], path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The values of all parameters of ours in a checkpoint.

    Raises `ValueError` naming file and dataset if one is missing, has the wrong shape, is not finite, or holds other
    values than 0 where the model file leaves the block out.
    """
    state = {}
    with _open(path) as file:
        for slot in slots:
            value = torch.zeros(slot.shape)
            if slot.dataset is not None:
                value = _dataset(file, slot.dataset, slot.shape, optional=slot.block is None)
            if slot.block is None and value.any():
                raise ValueError(
                    f"{file.filename}: dataset {slot.dataset!r} holds other values than 0, "
                    "which is what its block's absence from the model file means"
                )
            if slot.parameter is not None:
                state[slot.parameter] = value
    return state


def read_velocities(slots: Iterable[Slot], path: str | os.PathLike[str]) -> dict[str, Velocity]:
    """What a checkpoint keeps of the optimiser, for each parameter that is trained: ``<...>_grad``, ``<...>_t``.

    Raises `ValueError` like `read_parameters`. A count of updates that is missing is 0, as it is to the originals.
    """
    velocities = {}
    with _open(path) as file:
        for slot in slots:
            if slot.parameter is None or slot.dataset is None or slot.block is None:
                continue
            updates = file.attrs.get(f"{slot.dataset}_t", 0)
            if np.ndim(updates) or not np.issubdtype(np.asarray(updates).dtype, np.number) or not updates >= 0:
                raise ValueError(
                    f"{file.filename}: attribute '{slot.dataset}_t' is {updates!r}, expected a number of updates"
                )
            value = _dataset(file, f"{slot.dataset}_grad", slot.shape)
            velocities[slot.parameter] = Velocity(value, int(updates))
    return velocities


def draw_parameters(slots: Iterable[Slot], source: str, generator: torch.Generator | None) -> dict[str, torch.Tensor]:
    """The values of all parameters of ours before training, as the model file `source` says."""
    state = {}
    for slot in slots:
        value = _initial(slot, source, generator)
        if slot.parameter is not None:
            state[slot.parameter] = value
    return state


def _initial(slot: Slot, source: str, generator: torch.Generator | None) -> torch.Tensor:
    """What a parameter is before training."""
    block = slot.block
    if block is None:
        return torch.zeros(slot.shape)
    if block.init_type == "CONSTANT":
        return torch.full(slot.shape, block.scale)
    if block.init_type == "GAUSSIAN":
        return torch.randn(slot.shape, generator=generator) * block.scale
    if block.init_type == "UNIFORM":
        return (torch.rand(slot.shape, generator=generator) - 0.5) * (2 * block.scale)
    if block.init_type == "PRETRAINED":
        written = Path(block.file_name)
        with _open(written if written.is_file() else Path(source).parent / written.name) as file:
            return _dataset(file, block.dataset_name, slot.shape)
    raise ValueError(
        f"{source}: {slot.dataset!r} has init_type: {block.init_type}, "
        "expected CONSTANT, GAUSSIAN, UNIFORM or PRETRAINED"
    )


def _dataset(file: h5py.File, name: str, shape: tuple[int, ...], *, optional: bool = False) -> torch.Tensor:
    """One dataset as a float32 tensor of `shape`; zeros if it is absent and `optional`."""
    import h5py

    stored = (1, *shape) if len(shape) == 1 else shape  # the files keep vectors as matrices of one row
    values = None
    try:
        dataset = file.get(name)
        if isinstance(dataset, h5py.Dataset):
            found = f"{dataset.shape} of {dataset.dtype}"
            if dataset.shape in (stored, shape) and dataset.dtype.kind == "f":
                values = np.asarray(dataset[()], dtype=np.float32)
        elif optional and dataset is None:
            return torch.zeros(shape)
        else:
            found = "absent"
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as reason:  # whichever a damaged file leads h5py to
        raise ValueError(f"{file.filename}: dataset {name!r} can't be read ({reason})") from reason
    if values is None:
        raise ValueError(f"{file.filename}: dataset {name!r} is {found}, expected {stored} of float32")
    if not np.isfinite(values).all():
        raise ValueError(f"{file.filename}: dataset {name!r} holds values that are not finite")
    return torch.from_numpy(values).reshape(shape)


def _open(path: str | os.PathLike[str]) -> h5py.File:
    try:
        import h5py
    except ModuleNotFoundError as reason:
        raise ModuleNotFoundError("reading HDF5 checkpoints needs h5py: pip install 'lstmvid[train]'") from reason
    try:
        return h5py.File(path, "r")
    except OSError as reason:
        raise ValueError(f"{os.fspath(path)}: not a readable HDF5 checkpoint ({reason})") from reason
