"""What a run of `lstmvid classify` can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lstmvid.training.config import OptimizerConfig
from lstmvid.training.sections import Run, Section, choice, flag, integer, positive, setting, text

_ENCODER = "the encoder's, or {} without one"


def _rate() -> Any:
    return setting(0.0, "a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1)


@dataclass(kw_only=True)
class ClassifierConfig(Section):
    """The classifier, from scratch or on a pretrained encoder.

    Args:
        encoder: model file or run's folder of a composite model (or classifier) to take the encoder of.
        train_encoder: whether the encoder is trained too, or only the readout.
        hidden_size: hidden units of a layer.
        num_layers: layers of the LSTM.
        peephole: whether gates see the cell.
        input_dropout: probability with which a value of a frame is dropped.
        dropout: probability with which a layer's output is dropped on its way up.
        output_dropout: probability with which the top layer's output is dropped on its way to the readout.
        backend: who runs the LSTM.
        recompute: whether backward reads saved gates or computes them again.
    """

    encoder: str | None = text(None, "a path", null="none: from scratch")
    train_encoder: bool = flag(True)
    hidden_size: int | None = integer(None, 1, null=_ENCODER.format(2048))
    num_layers: int | None = integer(None, 1, null=_ENCODER.format(2))
    peephole: bool | None = setting(
        None, "true or false", lambda value: isinstance(value, bool), null=_ENCODER.format("true")
    )
    input_dropout: float = _rate()
    dropout: float = _rate()
    output_dropout: float = _rate()
    backend: Literal["auto", "cuda", "triton", "cpu", "torch", "reference"] = choice(
        "auto", "auto", "cuda", "triton", "cpu", "torch", "reference"
    )
    recompute: Literal["none", "gates", "auto"] = choice("auto", "none", "gates", "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder is None and not self.train_encoder:
            raise ValueError("train_encoder is False, expected true without a pretrained encoder")


@dataclass(kw_only=True)
class RecognitionConfig(Section):
    """Labelled videos, and which of them are for training and for testing: by official split files, by two lists of
    names, or by chance.

    Args:
        percepts: HDF5 file of the frames' features, as `lstmvid extract` writes it.
        videos: folder of videos, by class, of which patches are taken instead of percepts.
        patch_size: of those: height and width of the patch in the middle of a frame.
        short_side: of those: pixels to which a frame's shorter side is scaled before.
        frame_counts: of the authors' layout of percepts: text file with each video's number of frames.
        labels: of the authors' layout: text file with each video's class number.
        names: of the authors' layout: text file with each video's name.
        dataset: of the authors' layout: name of the data set in the HDF5 file.
        layout: whose official split files to go by.
        splits: folder of those split files.
        split: which of the splits.
        train_list: text file with the names of the training videos, instead of official splits.
        test_list: text file with the names of the test videos.
        test_fraction: share of each class's videos to test with, drawn at random, without splits or lists.
        allow_missing: go on if some videos of a split or list are not there.
        validation_fraction: share of each class's training videos that only say which model is the best; with 0, the
            last model is kept.
        videos_per_class: train with so many videos of each class, drawn by the seed.
        frames: frames of a block.
        train_stride: frames from the start of a training block to that of the next.
        test_stride: the same in validation and test, where a video's score is the mean of its blocks'.
        batch_size: blocks per step and device, null for the preset's.
        workers: processes that read beside the training process.
    """

    percepts: str | None = text(None, "a path", null="none")
    videos: str | None = text(None, "a folder", null="none")
    patch_size: int = integer(32, 1)
    short_side: int = integer(32, 1)
    frame_counts: str | None = text(None, "a path", null="none")
    labels: str | None = text(None, "a path", null="none")
    names: str | None = text(None, "a path", null="none")
    dataset: str | None = text(None, "a name", null="the only one")
    layout: Literal["ucf101", "hmdb51"] | None = choice(None, "ucf101", "hmdb51", null="none")
    splits: str | None = text(None, "a folder", null="none")
    split: int = integer(1, 1)
    train_list: str | None = text(None, "a path", null="none")
    test_list: str | None = text(None, "a path", null="none")
    test_fraction: float | None = positive(None, 1, null="none")
    allow_missing: bool = flag(False)
    validation_fraction: float = setting(
        0.1, "a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1
    )
    videos_per_class: int | None = integer(None, 1, null="all")
    frames: int = integer(16, 1)
    train_stride: int = integer(1, 1)
    test_stride: int = integer(8, 1)
    batch_size: int | None = integer(None, 1, null="the preset's")
    workers: int = integer(0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("layout", "splits"), ("train_list", "test_list")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} is {getattr(self, one)!r}, but {other} is {getattr(self, other)!r}: give both")
        original = [name for name in ("labels", "names", "dataset") if getattr(self, name) is not None]
        if original and self.frame_counts is None:
            raise ValueError(f"{original[0]} is of the authors' layout of percepts, which needs frame_counts too")

    def check_choices(self) -> None:
        """Exactly one source and one way to part it; not in the constructor, for the defaults are none.

        Raises:
            ValueError: none or several are given.
        """
        for names in (("percepts", "videos"), ("splits", "train_list", "test_fraction")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                raise ValueError(
                    f"data.{' and data.'.join(given) or 'nothing'} {'are' if len(given) > 1 else 'is'} given, "
                    f"expected one of {', '.join(f'data.{name}' for name in names)}"
                )


@dataclass(kw_only=True)
class ClassifierTrainerConfig(Section):
    """How long, on what, and how often to look.

    Args:
        max_steps: steps of the whole run; the learning rate's schedule ends there.
        max_minutes: stop earlier once this time is over, counted across resumptions.
        validation_interval: steps between validations; each writes checkpoints and the best model.
        log_interval: steps between entries in the logs.
        accelerator: kind of device.
        devices: how many in each node.
        nodes: machines; start the command on each of them, by torchrun, SLURM or with NODE_RANK and MASTER_ADDR.
        strategy: what several devices share: ddp keeps a whole model on each; auto is ddp for several.
        precision: of weights and arithmetic; `16-mixed` scales the loss, and is for GPUs.
    """

    max_steps: int = integer(5000, 1)
    max_minutes: float | None = positive(None, null="no limit")
    validation_interval: int = integer(250, 1)
    log_interval: int = integer(25, 1)
    accelerator: Literal["auto", "cpu", "gpu"] = choice("auto", "auto", "cpu", "gpu")
    devices: int = integer(1, 1)
    nodes: int = integer(1, 1)
    strategy: Literal["auto", "ddp"] = choice("auto", "auto", "ddp")
    precision: Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"] = choice(
        "32-true", "32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"
    )


@dataclass(kw_only=True)
class ClassificationConfig(Run):
    """A whole run: training, then the test.

    Args:
        output: the run's folder.
        seed: of the initial weights, of the videos drawn, the order of blocks and all other draws.
    """

    output: str = text("runs/classify", "a folder")
    seed: int = integer(0, 0)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: RecognitionConfig = field(default_factory=RecognitionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: ClassifierTrainerConfig = field(default_factory=ClassifierTrainerConfig)

    @property
    def batch_size(self) -> int:
        """Blocks per step and device."""
        return self.data.batch_size or self.optimizer.resolve().batch_size

    def trained_on(self) -> dict[str, Any]:
        """What a model file tells of its data."""
        return dataclasses.asdict(self.data) | {"seed": self.seed, "task": "recognition"}
