"""A classifier of sequences on an LSTM encoder, from scratch or fine-tuned from a composite model's."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import streaming
from ..functional import as_frames
from ..ops import autocast_dtype
from .composite import FusedComposite
from .stack import LSTMStack


class SequenceClassifier(nn.Module):
    """A softmax over classes at every step of an LSTM stack (Srivastava et al., 2015, section 3.3).

    Args:
        input_size: features a frame; frames of several dimensions are flattened.
        hidden_size, num_layers, num_classes: sizes.
        input_dropout, dropout, output_dropout: probability of zeroing a value of the first layer's input, of what
            passes between layers, and of the top layer's output on its way to the readout.
        peephole, batch_first, backend, recompute: as for `FusedComposite`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_classes: int,
        *,
        peephole: bool = True,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        batch_first: bool = False,
        backend: str = "auto",
        recompute: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size}
        sizes |= {"num_layers": num_layers, "num_classes": num_classes}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name, value in (("input_dropout", input_dropout), ("dropout", dropout), ("output_dropout", output_dropout)):
            if not 0 <= value < 1:  # also false for NaN
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        self.config: dict[str, Any] = sizes | {
            "peephole": peephole,
            "input_dropout": input_dropout,
            "dropout": dropout,
            "output_dropout": output_dropout,
            "batch_first": batch_first,
            "backend": backend,
            "recompute": recompute,
        }
        self.input_size, self.batch_first = input_size, batch_first
        self.input_dropout, self.output_dropout = input_dropout, output_dropout
        factory = {"device": device, "dtype": dtype}
        options = {"peephole": peephole, "dropout": dropout, "backend": backend, "recompute": recompute}
        self.encoder = LSTMStack(input_size, hidden_size, num_layers, **options, **factory)
        self.head = nn.Linear(hidden_size, num_classes, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(T, B, C)` of `x (T, B, D)` or `(T, B, *frame_shape)`; both batch first if the classifier is.

        Raises:
            ValueError: `x` has another number of features, or no frame, or lies elsewhere; in host memory it may (see
                `lstmvid.functional.lstm`), if the classifier is on a GPU.
            TypeError: `x` is neither `uint8` nor of the classifier's dtype.
        """
        if x.dim() < 3 or x.shape[2:].numel() != self.input_size:
            raise ValueError(f"x must be (T, B, ...) with {self.input_size} features a frame, got {tuple(x.shape)}")
        x = x.transpose(0, 1).flatten(2) if self.batch_first else x.flatten(2)
        if x.size(0) == 0:
            raise ValueError(f"x must have at least one frame, got an empty sequence {tuple(x.shape)}")
        dtype = self.head.weight.dtype
        streaming.check_place("x is", x, self.head.weight.device, "the classifier is")
        if x.dtype not in (torch.uint8, dtype) and autocast_dtype(self.head.weight.device.type) is None:
            raise TypeError(f"x must be uint8 or the classifier's {dtype}, got {x.dtype}")
        if self.training and self.input_dropout:
            x = F.dropout(as_frames(x, dtype), self.input_dropout)
        hidden, _ = self.encoder(x, self.encoder.zero_state(x.size(1)))
        logits = self.head(F.dropout(hidden, self.output_dropout, self.training))
        return logits.transpose(0, 1) if self.batch_first else logits

    def predict_proba(self, x: Tensor) -> Tensor:
        """Class probabilities `(B, C)`: the softmax of every step, averaged over the sequence."""
        return torch.softmax(self(x), dim=-1).mean(1 if self.batch_first else 0)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats against `labels (B,)`, summed over steps, averaged over the batch.

        A label of -100 counts for nothing, as in `torch.nn.functional.cross_entropy`.
        """
        logits = self(x)
        logits = logits.transpose(0, 1) if self.batch_first else logits
        steps, batch, classes = logits.shape
        if tuple(labels.shape) != (batch,) or labels.is_floating_point():
            raise ValueError(f"labels must be ({batch},) integers, got {tuple(labels.shape)} {labels.dtype}")
        total = F.cross_entropy(logits.reshape(-1, classes), labels.expand(steps, batch).reshape(-1), reduction="sum")
        return total / batch

    @classmethod
    def from_encoder(cls, composite: FusedComposite, num_classes: int, **options) -> SequenceClassifier:
        """A classifier that starts from a copy of a pretrained composite's encoder; `options` as the constructor's."""
        encoder = composite.encoder
        weight = encoder.weight_hh_l0
        defaults = {
            "peephole": encoder.peephole,
            "batch_first": composite.batch_first,
            "backend": encoder.backend,
            "recompute": encoder.recompute,
            "device": weight.device,
            "dtype": weight.dtype,
        }
        sizes = (encoder.input_size, encoder.hidden_size, encoder.num_layers)
        classifier = cls(*sizes, num_classes, **(defaults | options))
        classifier.encoder.load_state_dict(encoder.state_dict())
        return classifier

    @classmethod
    def from_original(
        cls,
        model_pbtxt: str | PathLike,
        checkpoint_h5: str | PathLike | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
        recompute: str = "auto",
        batch_first: bool = False,
    ) -> SequenceClassifier:
        """The classifier that an original model file describes; see `FusedComposite.from_original`."""
        from ..compat import original

        description = original.read_model(model_pbtxt)
        classifier = cls(
            **original.classifier_arguments(description),
            dtype=dtype,
            device=device,
            backend=backend,
            recompute=recompute,
            batch_first=batch_first,
        )
        classifier.load_state_dict(original.classifier_state(description, checkpoint_h5))
        for name in original.frozen_parameters(description):
            classifier.get_parameter(name).requires_grad_(False)
        return classifier
