"""Models of ours as the original authors' files, for their programs to load."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmvid.compat import pbtxt
from lstmvid.compat.original_layout import model_stacks, parameter_slots
from lstmvid.compat.original_messages import OriginalBlock, OriginalLSTM, OriginalModel
from lstmvid.compat.pbtxt import Identifier

# As the released model files have them.
_TRAINED = OriginalBlock(
    epsilon=1e-4, momentum=0.9, gradient_clip=1e-4, l2_decay=1e-4, init_type=Identifier("UNIFORM"), scale=0.01
)
_PEEPHOLE = dataclasses.replace(_TRAINED, scale=0.1)
_BIAS = dataclasses.replace(_TRAINED, init_type=Identifier("CONSTANT"), scale=0.0, l2_decay=0.0)


def describe_composite(
    config: Mapping[str, Any], *, name: str, input_frames: int, target_frames: int, **settings: Any
) -> OriginalModel:
    """The model file of a `FusedComposite` of these constructor arguments, to be trained as the released ones.

    Args:
        config: `FusedComposite.config`.
        name: the model's.
        input_frames, target_frames: how many frames their program gives the encoder, and how many it predicts.
        settings: more fields of `OriginalModel`.

    Raises:
        ValueError: naming the argument that their files have no place for.
    """
    if config["dropout"]:
        raise ValueError(f"dropout is {config['dropout']}, which the original composite models don't apply: expected 0")
    shape = config["frame_shape"]
    size = int(np.prod(shape))
    stacks: dict[str, tuple[OriginalLSTM, ...]] = {"lstm": _layers(config, "enc", size, 0)}
    for option, field, short, length in (
        ("reconstruct", "lstm_dec", "dec", "dec_seq_length"),
        ("predict", "lstm_future", "fut", "future_seq_length"),
    ):
        if config[option] is not None:
            stacks[field] = _layers(config, short, size if config[option] == "conditional" else 0, size)
            settings[length] = input_frames if option == "reconstruct" else target_frames
    return OriginalModel(
        source="",
        name=name,
        dec_conditional=config["reconstruct"] == "conditional",
        future_conditional=config["predict"] == "conditional",
        decoder_copy_init_state="reconstruct" in config["copy_state"],
        future_copy_init_state="predict" in config["copy_state"],
        binary_data=config["likelihood"] == "bernoulli",
        relu_data=config["likelihood"] == "rectified",
        **stacks,
        **settings,
    )


def describe_classifier(config: Mapping[str, Any], *, name: str, **settings: Any) -> OriginalModel:
    """The model file of a `SequenceClassifier` of these constructor arguments; see `describe_composite`."""
    first, *further = _layers(config, "cls", config["input_size"], config["num_classes"])
    layers = [
        dataclasses.replace(first, input_dropprob=config["input_dropout"]),
        *(dataclasses.replace(layer, input_dropprob=config["dropout"]) for layer in further),
    ]
    layers[-1] = dataclasses.replace(layers[-1], output_dropprob=config["output_dropout"])
    return OriginalModel(source="", name=name, lstm=tuple(layers), **settings)


def write_model(model: OriginalModel, path: str | os.PathLike[str]) -> None:
    """Write a model file."""
    Path(path).write_text(pbtxt.dump(model, leave_out=("source",)), encoding="utf-8")


def write_checkpoint(model: OriginalModel, state: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of parameters by our names: the two biases added up, velocities and update counts 0."""
    import h5py

    with h5py.File(path, "w") as file:
        for slot in parameter_slots(model_stacks(model)):
            if slot.dataset is None:
                continue
            value = torch.zeros(slot.shape)
            if slot.parameter is not None:
                value = state[slot.parameter].detach().cpu().double()
                if ".bias_ih_l" in slot.parameter:
                    value = value + state[slot.parameter.replace("bias_ih", "bias_hh")].detach().cpu().double()
            stored = value.float().numpy()
            stored = stored[None] if stored.ndim == 1 else stored
            file.create_dataset(slot.dataset, data=stored)
            file.create_dataset(f"{slot.dataset}_grad", data=np.zeros_like(stored))
            file.attrs[f"{slot.dataset}_t"] = 0


def _layers(config: Mapping[str, Any], short: str, input_size: int, output_size: int) -> tuple[OriginalLSTM, ...]:
    hidden_size, num_layers = config["hidden_size"], config["num_layers"]
    layers = []
    for depth in range(num_layers):
        width = hidden_size if depth else input_size
        outputs = output_size if depth == num_layers - 1 else 0
        blocks = {"w_dense": _TRAINED, "b": _BIAS}
        blocks |= {"w_diag": _PEEPHOLE} if config["peephole"] else {}
        blocks |= {"w_input": _TRAINED} if width else {}
        blocks |= {"w_output": _TRAINED, "b_output": _BIAS} if outputs else {}
        layers.append(
            OriginalLSTM(
                name=f"lstm_{depth + 1}_{short}",
                num_hid=hidden_size,
                has_input=width > 0,
                input_dims=width,
                has_output=outputs > 0,
                output_dims=outputs,
                **blocks,
            )
        )
    return tuple(layers)
