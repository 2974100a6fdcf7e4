"""The model files of the original authors: `.pbtxt` (the model) and `.h5` (its checkpoint).

The released programs of "Unsupervised Learning of Video Representations using LSTMs" (Srivastava, Mansimov and
Salakhutdinov, 2015; arXiv 1502.04681) describe a model in protobuf text and keep its parameters in HDF5. `read_model`
reads the text; the functions below it turn it into constructor arguments and state dicts of `lstmvid.FusedComposite`
and `lstmvid.SequenceClassifier`.

The gate order of the files (i, f, a, o) is ours (i, f, g, o), so nothing is permuted. Their one bias vector is our
`bias_ih_l{k}`; `bias_hh_l{k}` is zero and frozen, since two trained ones would double the learning rate of their sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from lstmvid.compat.original_checkpoint import Velocity, draw_parameters, read_parameters, read_velocities
from lstmvid.compat.original_layout import (
    Slot,
    classifier_stacks,
    composite_stacks,
    has_peepholes,
    is_classifier,
    model_stacks,
    parameter_slots,
)
from lstmvid.compat.original_messages import OriginalBlock, OriginalModel, read_model

__all__ = [
    "classifier_arguments",
    "classifier_state",
    "composite_arguments",
    "composite_state",
    "frozen_parameters",
    "is_classifier",
    "read_model",
    "trained_blocks",
    "velocities",
]


def composite_arguments(model: OriginalModel) -> dict[str, Any]:
    """Constructor arguments of the `FusedComposite` that `model` describes.

    A decoder exists if its layers do, unless its sequence length is written out as 0. `dropout` is 0 whatever the
    file's dropout settings are: the released composite program applies none in its forward pass. If the first layer of
    an unconditional decoder has a `w_input`, no frame ever meets it, and it has no counterpart here.

    Raises `ValueError` naming the setting that can't be honoured or that contradicts another.
    """
    encoder, *decoders = stacks = composite_stacks(model)
    parts = {stack.part for stack in decoders}
    mode = {True: "conditional", False: "unconditional"}
    copies = {
        "reconstruct": "reconstructor" in parts and model.decoder_copy_init_state,
        "predict": "predictor" in parts and model.future_copy_init_state,
    }
    return {
        "frame_shape": encoder.input_size,
        "hidden_size": encoder.layers[0].num_hid,
        "num_layers": len(encoder.layers),
        "reconstruct": mode[model.dec_conditional] if "reconstructor" in parts else None,
        "predict": mode[model.future_conditional] if "predictor" in parts else None,
        "likelihood": "bernoulli" if model.binary_data else "rectified" if model.relu_data else "gaussian",
        "copy_state": tuple(option for option, copied in copies.items() if copied),
        "peephole": has_peepholes(stacks),
        "dropout": 0.0,
    }


def classifier_arguments(model: OriginalModel) -> dict[str, Any]:
    """Constructor arguments of the `SequenceClassifier` that `model` describes.

    `output_dropprob` counts on the top layer only, where the readout is. Raises `ValueError` naming the setting that
    can't be honoured or that contradicts another.
    """
    (stack,) = classifier_stacks(model)
    first, *further = stack.layers
    for layer in further[1:]:
        if layer.input_dropprob != further[0].input_dropprob:
            raise ValueError(
                f"{model.source}: lstm {layer.name!r} has input_dropprob: {layer.input_dropprob:g}, expected "
                f"{further[0].input_dropprob:g} as in {further[0].name!r} (all layers above the first share one)"
            )
    return {
        "input_size": stack.input_size,
        "hidden_size": first.num_hid,
        "num_layers": len(stack.layers),
        "num_classes": stack.output_size,
        "peephole": has_peepholes((stack,)),
        "input_dropout": first.input_dropprob,
        "dropout": further[0].input_dropprob if further else 0.0,
        "output_dropout": stack.layers[-1].output_dropprob,
    }


def composite_state(
    model: OriginalModel,
    checkpoint_h5: str | os.PathLike[str] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """`state_dict` (float32, CPU) of the `FusedComposite` that `model` describes.

    The values are the checkpoint's or, without one, drawn as the text's `init_type` and `scale` say: uniform in
    [-scale, scale], normal with standard deviation `scale`, the constant `scale`, or `PRETRAINED`: a dataset of another
    HDF5 file, which is looked for where `file_name` says and then beside the model file.

    Raises `ValueError` naming file and dataset if one is missing, has the wrong shape, or holds other values than 0
    where the text leaves the block out; `ModuleNotFoundError` if h5py is needed and not installed.
    """
    return _state(model, parameter_slots(composite_stacks(model)), checkpoint_h5, generator)


def classifier_state(
    model: OriginalModel,
    checkpoint_h5: str | os.PathLike[str] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """`state_dict` (float32, CPU) of the `SequenceClassifier` that `model` describes; see `composite_state`."""
    return _state(model, parameter_slots(classifier_stacks(model)), checkpoint_h5, generator)


def frozen_parameters(model: OriginalModel) -> tuple[str, ...]:
    """Names of the parameters that the original programs don't train, of either kind of model.

    These are the ones whose block is left out of the text and every `bias_hh_l{k}`. A block with `epsilon: 0` is not
    among them: step sizes are the optimiser's business.
    """
    slots = parameter_slots(model_stacks(model))
    return tuple(slot.parameter for slot in slots if slot.block is None and slot.parameter is not None)


def trained_blocks(model: OriginalModel) -> dict[str, OriginalBlock]:
    """How each parameter is trained, of either kind of model, by our names; those that are not trained are left out."""
    slots = parameter_slots(model_stacks(model))
    return {slot.parameter: slot.block for slot in slots if slot.block is not None and slot.parameter is not None}


def velocities(model: OriginalModel, checkpoint_h5: str | os.PathLike[str]) -> dict[str, Velocity]:
    """What a checkpoint keeps of the optimiser for each parameter of `trained_blocks`: its velocity and update count.

    Raises `ValueError` naming file and dataset if one is missing or has the wrong shape.
    """
    return read_velocities(parameter_slots(model_stacks(model)), checkpoint_h5)


def _state(
    model: OriginalModel,
    slots: Iterable[Slot],
    checkpoint: str | os.PathLike[str] | None,
    generator: torch.Generator | None,
) -> dict[str, torch.Tensor]:
    if checkpoint is None:
        return draw_parameters(slots, model.source, generator)
    return read_parameters(slots, checkpoint)
