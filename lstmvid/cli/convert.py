"""``lstmvid convert``: the paper's original model files into a model file of ours, and back."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

import lstmvid
from lstmvid.cli.sources import positive
from lstmvid.compat import original, original_writing
from lstmvid.compat.original_messages import OriginalModel
from lstmvid.training.checkpoint import Model, load_model, save_model, written_whole
from lstmvid.training.config import DataConfig

_KINDS = {"composite": lstmvid.FusedComposite, "classifier": lstmvid.SequenceClassifier}
_DECODERS = {"reconstruct": "reconstruction", "predict": "prediction"}
_TIMESTAMP = "converted"  # in the place of when training began: their programs look for NAME_TIMESTAMP.h5


def main(arguments: list[str]) -> int:
    """Convert a model and say what it has become."""
    parser = argparse.ArgumentParser(
        prog="lstmvid convert",
        description="Convert the model files of the paper's authors (.pbtxt, .h5) into a model file of ours, or back.",
    )
    parser.add_argument(
        "model", type=Path, help="their model file, .pbtxt; or a model of ours, to be written as theirs"
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="their HDF5 checkpoint (default: the one that the model file's last timestamp names, beside it)",
    )
    parser.add_argument("--output", type=Path, help="file to write (default: the model's name, .safetensors or .pbtxt)")
    parser.add_argument("--kind", choices=_KINDS, help="what it has to be (default: whichever the file describes)")
    parser.add_argument("--frame-shape", type=shape, metavar="C,H,W", help="frames are images of this shape: 1,64,64")
    parser.add_argument(
        "--draw-weights", action="store_true", help="without a checkpoint: draw weights as the model file says"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawn weights (default: %(default)s)")
    options = parser.parse_args(arguments)
    is_theirs = options.model.suffix == ".pbtxt"
    named = options.model / "model" if options.model.is_dir() else options.model
    output = options.output or named.with_suffix(".safetensors" if is_theirs else ".pbtxt")
    expected = ".safetensors" if is_theirs else ".pbtxt"
    if output.suffix != expected:
        raise ValueError(f"--output is {output}, expected a file name that ends in {expected}")
    print(_to_ours(options, output) if is_theirs else _to_theirs(options, output))
    return 0


def _to_ours(options: argparse.Namespace, output: Path) -> str:
    """Write a model file of ours; returns what to say of it."""
    description = original.read_model(options.model)
    kind = options.kind or ("classifier" if original.is_classifier(description) else "composite")
    if options.draw_weights and options.checkpoint:
        raise ValueError(f"--draw-weights is given beside the checkpoint {options.checkpoint}, expected one of them")
    checkpoint = None if options.draw_weights else options.checkpoint or _checkpoint_of(description)
    torch.manual_seed(options.seed)
    if kind == "composite":
        model = lstmvid.FusedComposite.from_original(options.model, checkpoint, frame_shape=options.frame_shape)
    elif options.frame_shape:
        raise ValueError("--frame-shape is for composite models: a classifier takes frames of any shape")
    else:
        model = lstmvid.SequenceClassifier.from_original(options.model, checkpoint)
    save_model(model, output)
    return f"{output}: {_summary(model)}, {_origin(checkpoint, options.seed)}"


def _to_theirs(options: argparse.Namespace, output: Path) -> str:
    """Write a model file and a checkpoint of theirs; returns what to say of them."""
    for name in ("checkpoint", "frame_shape", "draw_weights"):
        if getattr(options, name):
            raise ValueError(f"{name.replace('_', '-')} is given, expected none for a model that is not a .pbtxt file")
    model, data = load_model(options.model, kind=_KINDS.get(options.kind))
    settings = {"name": output.stem, "timestamp": (_TIMESTAMP,), "checkpoint_dir": str(output.parent)}
    if isinstance(model, lstmvid.SequenceClassifier):
        description = original_writing.describe_classifier(model.config, **settings)
    else:
        defaults = DataConfig()
        lengths = {name: data.get(name, getattr(defaults, name)) for name in ("input_frames", "target_frames")}
        description = original_writing.describe_composite(model.config, **lengths, **settings)
    checkpoint = output.with_name(f"{output.stem}_{_TIMESTAMP}.h5")
    with written_whole(checkpoint) as whole_checkpoint, written_whole(output) as whole_model:
        original_writing.write_checkpoint(description, model.state_dict(), whole_checkpoint)
        original_writing.write_model(description, whole_model)
    return f"{output}, {checkpoint}: {_summary(model)}"


def shape(text: str) -> tuple[int, ...]:
    """An argument that is a frame's shape: positive integers with commas between them."""
    return tuple(positive(size) for size in text.split(","))


def _checkpoint_of(description: OriginalModel) -> Path:
    """The checkpoint beside a model file that belongs to its last training run, by the released programs' names."""
    folder = Path(description.source).parent
    if not description.timestamp:
        raise ValueError(
            f"{description.source} names no checkpoint: give its .h5 file, or --draw-weights for an untrained model"
        )
    path = folder / f"{description.name}_{description.timestamp[-1]}.h5"
    if not path.is_file():
        raise FileNotFoundError(f"{description.source} names the checkpoint {path}, which is not there: give its place")
    return path


def _summary(model: Model) -> str:
    settings = model.config
    if isinstance(model, lstmvid.SequenceClassifier):
        what = f"classifier of {settings['num_classes']} classes, frames of {settings['input_size']} values"
    else:
        decoders = [f"{model.config[name]} {part}" for name, part in _DECODERS.items() if settings[name]]
        frame = math.prod(model.frame_shape)
        what = (
            f"composite ({', '.join(decoders) or 'encoder only'}; {settings['likelihood']}), frames of {frame} values"
        )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = f"{settings['num_layers']} layer{'s' if settings['num_layers'] > 1 else ''}"
    return f"{what}, {layers} of {settings['hidden_size']} units, {trained:,} trained parameters"


def _origin(checkpoint: Path | None, seed: int) -> str:
    return f"weights drawn with seed {seed}" if checkpoint is None else f"weights of {checkpoint}"
