"""The composite model of "Unsupervised Learning of Video Representations using LSTMs" (Srivastava et al., 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backends import streaming
from ..ops import autocast_dtype
from .decoders import DecoderRun, run_closed_loop, run_decoders
from .likelihoods import LIKELIHOODS, loss_of_frames
from .stack import LSTMStack, State

DECODERS = ("unconditional", "conditional", None)


class CompositeOutput(NamedTuple):
    """What `FusedComposite` returns; entries of a decoder that doesn't exist or didn't run are None.

    reconstruction `(T_in, B, *frame_shape)` in input order, prediction `(T_out, B, *frame_shape)` (batch first if the
    model is), state `(h_n, c_n)` each `(L, B, H)`, and losses in nats (Bernoulli) or half squared error, summed over a
    frame, averaged over frames and batch; `loss` is the sum of the two.
    """

    reconstruction: Tensor | None
    prediction: Tensor | None
    state: State
    loss: Tensor | None
    reconstruction_loss: Tensor | None
    prediction_loss: Tensor | None


class FusedComposite(nn.Module):
    """One LSTM encoder, a decoder that reconstructs the input in reverse, and one that predicts the future.

    Args:
        frame_shape: shape of a frame, as `(1, 64, 64)`, or the number of features.
        hidden_size, num_layers: of each of the three LSTM stacks.
        reconstruct, predict: `"unconditional"` (the decoder never sees a frame), `"conditional"` (it sees the previous
            one from its second step on), or None (there is no such decoder).
        likelihood: `"bernoulli"` (frames in [0, 1]), `"gaussian"`, or `"rectified"` (features from 0 up).
        copy_state: decoders whose state at the first step *is* the encoder's final state; no step is taken for it.
        peephole: diagonal weights from the cell state to the gates.
        dropout: between layers, as `nn.LSTM`'s.
        batch_first: frames are `(B, T, ...)` instead of `(T, B, ...)`.
        original_encoder_gradient: the encoder's gradient as the paper's released code computed it, in which the
            predictor's overwrites the reconstruction's through the last cell state. Off: the true one.
        backend, recompute: see `lstmvid.LSTM`.

    Parts: `encoder`, `reconstructor`, `predictor`, with `nn.LSTM`'s parameter names; `reconstruction_head`,
    `prediction_head`, `nn.Linear` from the top layer to a frame. Absent ones are None.

    Raises:
        ValueError: an argument is outside of what is listed here.
    """

    def __init__(
        self,
        frame_shape: int | Sequence[int],
        hidden_size: int = 2048,
        num_layers: int = 2,
        *,
        reconstruct: str | None = "unconditional",
        predict: str | None = "conditional",
        likelihood: str = "bernoulli",
        copy_state: Sequence[str] = (),
        peephole: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
        original_encoder_gradient: bool = False,
        backend: str = "auto",
        recompute: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (frame_shape,) if isinstance(frame_shape, int) else tuple(frame_shape)
        copy_state = (copy_state,) if isinstance(copy_state, str) else tuple(copy_state)
        _check_arguments(shape, hidden_size, num_layers, reconstruct, predict, likelihood, copy_state, dropout)
        self.config: dict[str, Any] = {
            "frame_shape": frame_shape if isinstance(frame_shape, int) else list(shape),
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "reconstruct": reconstruct,
            "predict": predict,
            "likelihood": likelihood,
            "copy_state": list(copy_state),
            "peephole": peephole,
            "dropout": dropout,
            "batch_first": batch_first,
            "original_encoder_gradient": original_encoder_gradient,
            "backend": backend,
            "recompute": recompute,
        }
        self.frame_shape, self.likelihood = shape, LIKELIHOODS[likelihood]
        self.reconstruct_mode, self.predict_mode, self.copy_state = reconstruct, predict, copy_state
        self.batch_first, self.original_encoder_gradient = batch_first, original_encoder_gradient
        size, factory = math.prod(shape), {"device": device, "dtype": dtype}

        def stack(input_size: int | None) -> LSTMStack:
            options = {"peephole": peephole, "dropout": dropout, "backend": backend, "recompute": recompute}
            return LSTMStack(input_size, hidden_size, num_layers, **options, **factory)

        def decoder(mode: str | None) -> tuple[LSTMStack | None, nn.Linear | None]:
            if mode is None:
                return None, None
            return stack(size if mode == "conditional" else None), nn.Linear(hidden_size, size, **factory)

        self.encoder = stack(size)
        self.reconstructor, self.reconstruction_head = decoder(reconstruct)
        self.predictor, self.prediction_head = decoder(predict)

    def forward(
        self,
        frames: Tensor,
        targets: Tensor | None = None,
        *,
        predict_steps: int | None = None,
        feedback: float = 0.0,
    ) -> CompositeOutput:
        """Encode `frames`, reconstruct them, and predict what follows.

        Args:
            frames: `(T_in, B, *frame_shape)`, or batch first; `uint8` is scaled by 1/255. For a model on a GPU frames
                and targets may lie in host memory (see `lstmvid.functional.lstm`).
            targets: the true future frames `(T_out, B, *frame_shape)`: the prediction is scored against them, and a
                conditional predictor sees them (teacher forcing).
            predict_steps: without targets, number of frames to generate; a conditional predictor sees its own output.
            feedback: probability, for each step and sample, that a conditional predictor sees its own previous output
                instead of the true frame (scheduled sampling; 1.0 is free-running). Gradients flow through it.

        Raises:
            ValueError: a shape, a range, a device or a combination is wrong.
            TypeError: frames are neither `uint8` nor of the model's dtype.
        """
        x = self._flatten(frames, "frames")
        truth, steps = self._future(x, targets, predict_steps, feedback)
        state = self._encode(x)
        seen = None if self.reconstructor is None else x
        z_reconstruction, z_prediction = self._decode(state, seen, steps, truth, feedback)
        reconstruction = prediction = reconstruction_loss = prediction_loss = None
        if z_reconstruction is not None:
            reconstruction_loss = self._loss(z_reconstruction, x)
            reconstruction = self._unflatten(self.likelihood.mean(z_reconstruction))
        if z_prediction is not None:
            prediction = self._unflatten(self.likelihood.mean(z_prediction))
            prediction_loss = None if truth is None else self._loss(z_prediction, truth)
        losses = [loss for loss in (reconstruction_loss, prediction_loss) if loss is not None]
        loss = sum(losses[1:], losses[0]) if losses else None
        return CompositeOutput(reconstruction, prediction, state, loss, reconstruction_loss, prediction_loss)

    def encode(self, frames: Tensor) -> State:
        """The representation of `frames`: the encoder's final `(h_n, c_n)`, each `(L, B, H)`."""
        return self._encode(self._flatten(frames, "frames"))

    @torch.no_grad()
    def reconstruct(self, frames: Tensor) -> Tensor:
        """`frames` as the reconstruction decoder remembers them, in input order; no gradients."""
        if self.reconstructor is None:
            raise ValueError("this model has no reconstruction decoder (reconstruct=None)")
        x = self._flatten(frames, "frames")
        z, _ = self._decode(self._encode(x), x, 0, None, 0.0)
        return self._unflatten(self.likelihood.mean(z))

    @torch.no_grad()
    def predict(self, frames: Tensor, steps: int) -> Tensor:
        """The `steps` frames that follow `frames`, the predictor running on its own output; no gradients."""
        if steps is None:
            raise ValueError("steps must be at least 1, got None")
        x = self._flatten(frames, "frames")
        _, steps = self._future(x, None, steps, 0.0)
        _, z = self._decode(self._encode(x), None, steps, None, 0.0)
        return self._unflatten(self.likelihood.mean(z))

    @classmethod
    def from_original(
        cls,
        model_pbtxt: str | PathLike,
        checkpoint_h5: str | PathLike | None = None,
        *,
        frame_shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
        recompute: str = "auto",
        batch_first: bool = False,
        original_encoder_gradient: bool = False,
    ) -> FusedComposite:
        """The model that the paper's original model file describes.

        Its weights are the HDF5 checkpoint's or, without one, drawn as the model file says. The files know frames as
        vectors; `frame_shape`, such as (1, 64, 64), makes them images of as many values.

        The single bias of the original is `bias_ih`; `bias_hh` is zero and frozen, as is every block that the file
        leaves out (two trained biases would double the learning rate).

        Raises:
            ValueError: a setting that is not supported, or files that contradict each other; names file and setting.
        """
        from ..compat import original

        description = original.read_model(model_pbtxt)
        arguments = original.composite_arguments(description)
        if frame_shape is not None:
            if math.prod(frame_shape) != arguments["frame_shape"]:
                size = arguments["frame_shape"]
                raise ValueError(
                    f"frame_shape is {tuple(frame_shape)}, but {description.source} has {size} values a frame"
                )
            arguments["frame_shape"] = frame_shape
        model = cls(
            **arguments,
            dtype=dtype,
            device=device,
            backend=backend,
            recompute=recompute,
            batch_first=batch_first,
            original_encoder_gradient=original_encoder_gradient,
        )
        model.load_state_dict(original.composite_state(description, checkpoint_h5))
        for name in original.frozen_parameters(description):
            model.get_parameter(name).requires_grad_(False)
        return model

    # ---- On flat frames: x (T, B, D), time first, uint8 or the model's dtype; z is what the likelihood reads ----

    def _encode(self, x: Tensor) -> State:
        return self.encoder(x, self.encoder.zero_state(x.size(1)))[1]

    def _loss(self, z: Tensor, frames: Tensor) -> Tensor:
        return loss_of_frames(self.likelihood, z, frames)

    def _decode(
        self, state: State, x: Tensor | None, steps: int, truth: Tensor | None, feedback: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """z of the frames `x` and of `steps` frames to come, each where it is wanted, in order of time.

        Decoders whose calls are alike run side by side in one. A conditional reconstruction decoder always sees the
        true frame after, as it goes from the last one to the first; a predictor the true one before, unless in a closed
        loop.
        """
        runs, heads, z = [], [], [None, None]
        if x is not None:
            seen = x if self.reconstruct_mode == "conditional" else None
            copy = "reconstruct" in self.copy_state
            start = self._reconstruction_state(state)
            runs.append(DecoderRun(self.reconstructor, start, len(x), seen, copy, reverse=True))
            heads.append((0, self.reconstruction_head))
        if steps:
            copy, is_conditional = "predict" in self.copy_state, self.predict_mode == "conditional"
            run = DecoderRun(self.predictor, state, steps, truth if is_conditional else None, copy)
            if is_conditional and (truth is None or feedback > 0):
                own = None
                if truth is not None and feedback < 1:
                    own = torch.rand(steps - 1, state[0].size(1), device=state[0].device) < feedback
                z[1] = run_closed_loop(run, self.prediction_head, self.likelihood, own)
            else:
                runs.append(run)
                heads.append((1, self.prediction_head))
        for (which, head), hidden in zip(heads, run_decoders(runs), strict=True):
            z[which] = head(hidden)
        return z[0], z[1]

    def _reconstruction_state(self, state: State) -> State:
        """The encoder's final state, for the reconstruction decoder."""
        if not self.original_encoder_gradient or self.predictor is None:
            return state
        h_n, c_n = state
        return (h_n.detach() if "predict" in self.copy_state else h_n), c_n.detach()

    # ---- Frames and flat vectors ----

    def _flatten(self, frames: Tensor, name: str) -> Tensor:
        """`frames` as (T, B, D), time first."""
        dims = len(self.frame_shape) + 2
        if frames.dim() != dims or tuple(frames.shape[2:]) != self.frame_shape:
            order = "B, T" if self.batch_first else "T, B"
            expected = ", ".join(map(str, self.frame_shape))
            raise ValueError(f"{name} must have shape ({order}, {expected}), got {tuple(frames.shape)}")
        x = (frames.transpose(0, 1) if self.batch_first else frames).flatten(2)
        if x.size(0) == 0:
            raise ValueError(f"{name} must have at least one frame, got an empty sequence {tuple(frames.shape)}")
        weight = self.encoder.weight_hh_l0
        streaming.check_place(f"{name} are", frames, weight.device, "the model is")
        if frames.dtype not in (torch.uint8, weight.dtype) and autocast_dtype(weight.device.type) is None:
            raise TypeError(f"{name} must be uint8 or the model's {weight.dtype}, got {frames.dtype}")
        return x

    def _unflatten(self, x: Tensor) -> Tensor:
        frames = x.unflatten(2, self.frame_shape)
        return frames.transpose(0, 1) if self.batch_first else frames

    def _future(
        self, x: Tensor, targets: Tensor | None, predict_steps: int | None, feedback: float
    ) -> tuple[Tensor | None, int]:
        """The true future as flat frames, if given, and the number of steps to predict."""
        if not 0 <= feedback <= 1:
            raise ValueError(f"feedback must be a probability in [0, 1], got {feedback}")
        if targets is None and predict_steps is None:
            return None, 0
        if self.predictor is None:
            raise ValueError("targets and predict_steps need a predictor, but this model has none (predict=None)")
        if targets is None:
            if predict_steps < 1:
                raise ValueError(f"predict_steps must be at least 1, got {predict_steps}")
            return None, predict_steps
        truth = self._flatten(targets, "targets")
        if truth.size(1) != x.size(1):
            raise ValueError(f"targets hold {truth.size(1)} sequences, frames hold {x.size(1)}")
        if predict_steps not in (None, truth.size(0)):
            raise ValueError(f"predict_steps is {predict_steps}, but targets hold {truth.size(0)} frames")
        return truth, truth.size(0)


def _check_arguments(shape, hidden_size, num_layers, reconstruct, predict, likelihood, copy_state, dropout) -> None:
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"frame_shape must be positive integers, got {shape}")
    for name, value in (("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    for name, value in (("reconstruct", reconstruct), ("predict", predict)):
        if value not in DECODERS:
            raise ValueError(f"{name} must be 'unconditional', 'conditional' or None, got {value!r}")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
    if not 0 <= dropout < 1:  # also false for NaN
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    decoders = {"reconstruct": reconstruct, "predict": predict}
    for name in copy_state:
        if decoders.get(name) is None:
            raise ValueError(f"copy_state names {name!r}, but there is no such decoder")
