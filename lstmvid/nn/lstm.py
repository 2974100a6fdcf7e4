"""`lstmvid.LSTM`: `torch.nn.LSTM`, faster where a kernel of ours is, and with peepholes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import backends
from ..backends import Request, streaming
from ..ops import LayerWeights, autocast_dtype, in_function_transform, lstm_sequence

State = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """A drop-in for `torch.nn.LSTM`: same arguments, parameters, initialisation, shapes, errors and state_dict.

    Args:
        peephole: add `weight_peephole_l{k}{_reverse}` of shape `(3*H,)`, order i, f, o, zeros at first: the input and
            forget gates see the cell state before the step, the output gate the one after it.
        backend: `"auto"`, the fastest one that can run the call; or `"cuda"`, `"triton"`, `"cpu"`, `"torch"`
            (`torch.nn.LSTM`'s own path: cuDNN, oneDNN), `"reference"`. One that is named and can't run the call
            raises `lstmvid.BackendUnavailable` with the reason.
        recompute: whether backward reads saved gates (`"none"`), computes them again (`"gates"`), or does so where
            they would take more than an eighth of the device's memory (`"auto"`).

    On a GPU the backends `cuda` and `triton` take an input in host memory too, pinned or not, and bring it a window of
    time at a time; then it can't require a gradient.

    The other arguments, the shapes and the errors are `torch.nn.LSTM`'s. Inside a `torch.func` transform and under
    `torch.jit.trace`, `"auto"` takes plain torch code or `torch.nn.LSTM`'s own path (docs/drop-in.md).
    """

    # On the class, so that an nn.LSTM that is given this class has them too.
    peephole: bool = False
    backend: str = "auto"
    recompute: str = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
        *,
        peephole: bool = False,
        backend: str = "auto",
        recompute: str = "auto",
    ) -> None:
        backends.check_names(backend, recompute)
        layout = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(*layout, device=device, dtype=dtype)
        if peephole and self.proj_size:
            raise ValueError("peephole=True does not go together with proj_size")
        self.peephole, self.backend, self.recompute = peephole, backend, recompute
        if peephole:
            # After nn.LSTM drew its own: peepholes change none of these draws.
            for suffix in self._suffixes():
                weight = self.get_parameter(f"weight_hh_{suffix}").new_zeros(3 * self.hidden_size)
                self.register_parameter(f"weight_peephole_{suffix}", nn.Parameter(weight))

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def reset_parameters(self) -> None:
        """Draw the weights as `nn.LSTM` does; peepholes become zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, weight in self.named_parameters():
            if "peephole" in name:
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.peephole:
            text += ", peephole=True"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None):
        """`output, (h_n, c_n)` in `nn.LSTM`'s shapes, `PackedSequence` in and out included."""
        packed = isinstance(input, PackedSequence)
        if not packed and input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        backend = self._resolve(input, hx)
        if backend == "torch":
            self._check_weights()
            return super().forward(input, hx)
        # As attributes and not as parameters: parametrised and replicated modules compute them.
        weights = [self._layer_weights(suffix) for suffix in self._suffixes()]
        return (self._forward_packed if packed else self._forward_padded)(input, hx, weights, backend)

    def _resolve(self, input: Tensor | PackedSequence, hx: State | None) -> str:
        """The backend; without a look at the weights by name, which takes longer than a small call may."""
        packed = isinstance(input, PackedSequence)
        if packed:
            data, (steps, batch) = input.data, (len(input.batch_sizes), int(input.batch_sizes[0]))
        else:
            data, sizes = input, (*input.shape[:-1], 1)[:2]
            steps, batch = reversed(sizes) if self.batch_first and input.dim() == 3 else sizes
        device = data.device.type
        if not packed and (weight := self._flat_weights[0]) is not None and streaming.is_elsewhere(data, weight.device):
            device = weight.device.type
        request = Request(
            device=device,
            dtype=autocast_dtype(device) or data.dtype,
            steps=steps,
            batch=batch,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            groups=2 if self.bidirectional else 1,
            peephole=self.peephole,
            lengths=packed,
            packed=packed,
            recompute=self.recompute,
            proj_size=self.proj_size,
            needs_grad=torch.is_grad_enabled() and self._needs_grad(data, hx),
            transformed=in_function_transform(),
            traced=torch.jit.is_tracing(),
        )
        return backends.resolve(self.backend, request)

    def _needs_grad(self, data: Tensor, hx: State | None) -> bool:
        if data.requires_grad or (hx is not None and (hx[0].requires_grad or hx[1].requires_grad)):
            return True
        # What nn.LSTM keeps references to; of a parametrised weight to an old value. A list, for dynamo gives up on a
        # generator that is a frame of its own.
        return "parametrizations" in self._modules or any([w.requires_grad for w in self._flat_weights])  # noqa: C419

    def _forward_padded(self, input: Tensor, hx: State | None, weights: list[LayerWeights], backend: str):
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        weight = weights[0].weight_hh
        streams = backend in streaming.STREAMING and streaming.is_elsewhere(input, weight.device)
        if streams:
            streaming.check_place("input is", input, weight.device, "the LSTM is")
        if hx is None:
            hx = self._zero_state(weight if streams else input, input.size(0 if self.batch_first else 1))
        else:
            expected = 3 if batched else 2
            if hx[0].dim() != expected or hx[1].dim() != expected:
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {expected}-D but got "
                    f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            if not batched:
                hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(input, hx, None)
        hx = self._operands(weight if streams else input, hx, weight)
        if input.size(1 if self.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        output, hidden = self._run(input.transpose(0, 1) if self.batch_first else input, hx, None, weights, backend)
        if self.batch_first:
            output = output.transpose(0, 1)
        if batched:
            return output, hidden
        return output.squeeze(0 if self.batch_first else 1), (hidden[0].squeeze(1), hidden[1].squeeze(1))

    def _forward_packed(self, packed: PackedSequence, hx: State | None, weights: list[LayerWeights], backend: str):
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        # Without its indices the padded batch stays in the packed order, longest first.
        padded, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        hx = self._zero_state(data, padded.size(1)) if hx is None else self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(data, hx, batch_sizes)
        hx = self._operands(data, hx, weights[0].weight_hh)
        output, hidden = self._run(padded, hx, lengths, weights, backend)
        output = pack_padded_sequence(output, lengths).data
        result = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return result, self.permute_hidden(hidden, unsorted_indices)

    def _zero_state(self, input: Tensor, batch: int) -> State:
        directions = 2 if self.bidirectional else 1
        zeros = input.new_zeros(self.num_layers * directions, batch, self.hidden_size)
        return zeros, zeros

    @staticmethod
    def _operands(input: Tensor, hx: State, weight: Tensor) -> State:
        """The states as `torch.lstm` takes them: of the input's device and dtype, under autocast of autocast's.

        Raises:
            RuntimeError: input, weights and states don't lie together, in the words of `torch.lstm`.
        """
        cast = autocast_dtype(input.device.type)
        for kind, tensor in (("parameter", weight), ("hidden", hx[0]), ("hidden", hx[1])):
            if tensor.device != input.device:
                found = f"found input tensor at {input.device} and {kind} tensor at {tensor.device}"
                raise RuntimeError(f"Input and {kind} tensors are not at the same device, {found}")
            if kind == "hidden" and cast is None and tensor.dtype != input.dtype:
                found = f"found input tensor with {input.dtype} and hidden tensor with {tensor.dtype}"
                raise RuntimeError(f"Input and hidden tensors are not the same dtype, {found}")
        return hx if cast is None else (hx[0].to(cast), hx[1].to(cast))

    def _layer_weights(self, suffix: str) -> LayerWeights:
        """One layer's and direction's; AttributeError names the one that was deleted."""
        biases = (f"bias_ih_{suffix}", f"bias_hh_{suffix}") if self.bias else ()
        names = (f"weight_ih_{suffix}", f"weight_hh_{suffix}", *biases)
        own = self._parameters
        peephole = getattr(self, f"weight_peephole_{suffix}") if self.peephole else None
        return LayerWeights(*[own[n] if n in own else getattr(self, n) for n in names], peephole=peephole)

    def _check_weights(self) -> None:
        """nn.LSTM has references of its own and would not notice that one was deleted."""
        if not all(map(self._parameters.__contains__, self._flat_weights_names)):
            for name in self._flat_weights_names:
                getattr(self, name)  # computed by a parametrisation, or an AttributeError that names it

    def _run(
        self, input: Tensor, hx: State, lengths: Tensor | None, weights: list[LayerWeights], backend: str
    ) -> tuple[Tensor, State]:
        """Time first: output [T, B, directions * H] and the states [layers * directions, B, H]."""
        groups = 2 if self.bidirectional else 1
        dropout = self.dropout if self.training else 0.0
        # Layers of a plain stack go down in one call; what sits between layers (the other direction's output, dropout)
        # splits it.
        together = self.num_layers if groups == 1 and dropout == 0 else 1
        h_n, c_n, output = [], [], input
        for layer in range(0, self.num_layers, together):
            if layer and dropout > 0:
                output = F.dropout(output, dropout)
            part = slice(layer * groups, (layer + together) * groups)
            stacks = [weights[part][group::groups] for group in range(groups)]
            # [layers * groups, B, H], layers outermost -> [G, L, B, H]
            if groups == 1:
                h_0, c_0 = hx[0][part].unsqueeze(0), hx[1][part].unsqueeze(0)
            else:
                h_0, c_0 = (s[part].unflatten(0, (together, groups)).transpose(0, 1) for s in hx)
            result = lstm_sequence(
                [output],
                h_0,
                c_0,
                stacks,
                steps=output.size(0),
                lengths=None if lengths is None else lengths.to(output.device),
                reverse=[False, True][:groups],
                backend=backend,
                recompute=self.recompute,
            )
            if groups == 1:  # views, whose gradients are views, too
                output = result.output.squeeze(0)
                h_n.append(result.h_n.squeeze(0))
                c_n.append(result.c_n.squeeze(0))
            else:
                output = torch.cat(result.output.unbind(0), dim=-1)
                h_n.append(result.h_n.transpose(0, 1).flatten(0, 1))
                c_n.append(result.c_n.transpose(0, 1).flatten(0, 1))
        return output, ((h_n[0], c_n[0]) if len(h_n) == 1 else (torch.cat(h_n), torch.cat(c_n)))
