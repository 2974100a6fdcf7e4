"""The classifier of sequences as Lightning wants it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import lstmvid
from lstmvid.evaluation.recognition import VideoAverage
from lstmvid.training.base import PresetTraining
from lstmvid.training.checkpoint import load_model
from lstmvid.training.classification_config import ClassificationConfig
from lstmvid.training.presets import initialise


class ClassifierTraining(PresetTraining):
    """Trains `lstmvid.SequenceClassifier` on batches of blocks ``(T, B, *frame_shape)`` and labels ``(B,)``.

    A step draws dropout.

    Logs ``train/loss`` and ``train/accuracy``, of a step of a block, and ``validation/cross_entropy`` and
    ``validation/accuracy``, of a video, whose scores are the mean of its blocks'.

    Args:
        config: of the run; draws the initial weights from torch's global generator, seeded with the run's seed.
        frame_shape: of the data.
        num_classes: of the data.
        watched: classes ``(V,)`` of the videos in validation.
    """

    def __init__(
        self, config: ClassificationConfig, frame_shape: tuple[int, ...], num_classes: int, watched: Tensor
    ) -> None:
        super().__init__(config)
        self.watched = watched
        self.model = build_classifier(config, frame_shape, num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss whose gradient the preset wants: summed over steps, and over the batch or its mean."""
        frames, labels = batch
        steps, count = frames.shape[:2]
        logits = self.model(frames)
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.expand(steps, count).flatten(), reduction="sum"
        )
        accuracy = (logits.detach().argmax(-1) == labels).float().mean()
        figures = {"train/loss": total.detach() / (steps * count), "train/accuracy": accuracy}
        self.log_dict(figures, batch_size=count, sync_dist=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])
        # Lightning averages gradients over devices: the sum over all of their batches takes the factor back.
        return total * (self.trainer.world_size if self.preset.sum_gradients else 1 / count)

    def on_validation_epoch_start(self) -> None:
        """Begin to gather."""
        self._average = VideoAverage(len(self.watched), self.model.head.out_features, self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score some videos' blocks."""
        frames, videos = batch
        self._average.update(videos, self.model.predict_proba(frames))

    def on_validation_epoch_end(self) -> None:
        """Score the videos, whose blocks may be spread over the ranks."""
        average = self._average
        average.sums = self.trainer.strategy.reduce(average.sums, reduce_op="sum")
        average.counts = self.trainer.strategy.reduce(average.counts, reduce_op="sum")
        probabilities, labels = average.compute(), self.watched.to(self.device)
        chosen = probabilities.gather(1, labels[:, None]).clamp_min(1e-12)
        self.log("validation/cross_entropy", -chosen.log().mean().float())
        self.log("validation/accuracy", (probabilities.argmax(1) == labels).float().mean())


def build_classifier(
    config: ClassificationConfig, frame_shape: tuple[int, ...], num_classes: int
) -> lstmvid.SequenceClassifier:
    """The run's classifier with its initial weights: the preset's, and the pretrained encoder's where there is one.

    Raises:
        FileNotFoundError: there is no such encoder.
        ValueError: it is for other frames, or settings ask for another size than it has.
    """
    settings, preset = config.model, config.optimizer.resolve()
    options = {
        name: getattr(settings, name) for name in ("input_dropout", "dropout", "output_dropout", "backend", "recompute")
    }
    size = math.prod(frame_shape)
    if settings.encoder is None:
        peephole = True if settings.peephole is None else settings.peephole
        sizes = settings.hidden_size or 2048, settings.num_layers or 2
        model = lstmvid.SequenceClassifier(size, *sizes, num_classes, peephole=peephole, **options)
        initialise(model, preset)
        return model
    pretrained, _ = load_model(settings.encoder)
    encoder = pretrained.encoder
    if encoder.input_size != size:
        raise ValueError(
            f"model.encoder {settings.encoder} is for frames of {encoder.input_size} values, the data have {size}"
        )
    for name in ("hidden_size", "num_layers", "peephole"):
        wanted, given = getattr(settings, name), getattr(encoder, name)
        if wanted is not None and wanted != given:
            raise ValueError(f"model.{name} is {wanted}, but that of model.encoder {settings.encoder} is {given}")
    model = lstmvid.SequenceClassifier.from_encoder(pretrained.float(), num_classes, batch_first=False, **options)
    initialise(model, preset)
    model.encoder.load_state_dict(encoder.state_dict())
    if preset.sum_gradients:  # which trains one bias a gate
        _join_biases(model)
    if not settings.train_encoder:
        model.encoder.requires_grad_(False)
    return model


@torch.no_grad()
def _join_biases(model: lstmvid.SequenceClassifier) -> None:
    for name, bias in model.encoder.named_parameters():
        if "bias_hh" in name:
            model.encoder.get_parameter(name.replace("bias_hh", "bias_ih")).add_(bias)
            bias.zero_()
