"""A stack of LSTM layers as a plain module: the part that the encoder-decoders are made of.

Not an `nn.LSTM`, so that models of it compile with `fullgraph=True`; parameters have `nn.LSTM`'s names all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..ops import LayerWeights, lstm_sequence

State = tuple[Tensor, Tensor]


class LSTMStack(nn.Module):
    """`num_layers` LSTM layers of `hidden_size` units, with optional input and peepholes.

    Args:
        input_size: features a frame, or None: the first layer has no input and no `weight_ih` at all.
        dropout: probability of zeroing an output of each layer but the last, in training, as `nn.LSTM`'s.

    Weights start as `nn.LSTM`'s do, uniform in +-1/sqrt(hidden_size); peepholes start at zero.
    """

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        num_layers: int = 1,
        *,
        peephole: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
        recompute: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        backends.check_names(backend, recompute)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.peephole, self.dropout, self.backend, self.recompute = peephole, dropout, backend, recompute
        factory = {"device": device, "dtype": dtype}

        def parameter(name: str, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))

        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            if width is not None:
                parameter(f"weight_ih_l{layer}", 4 * hidden_size, width)
            parameter(f"weight_hh_l{layer}", 4 * hidden_size, hidden_size)
            parameter(f"bias_ih_l{layer}", 4 * hidden_size)
            parameter(f"bias_hh_l{layer}", 4 * hidden_size)
            if peephole:
                parameter(f"weight_peephole_l{layer}", 3 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; peepholes are zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, weight in self.named_parameters():
            if "peephole" in name:
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)

    def layer_weights(self) -> list[LayerWeights]:
        """The parameters as the operators take them."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
        return [
            LayerWeights(*(getattr(self, f"{name}_l{layer}", None) for name in names))
            for layer in range(self.num_layers)
        ]

    def zero_state(self, batch: int) -> State:
        """Zeros `(L, B, H)` for `h` and `c`."""
        zeros = self.weight_hh_l0.new_zeros(self.num_layers, batch, self.hidden_size)
        return zeros, zeros

    def forward(self, input: Tensor | None, state: State, steps: int | None = None) -> tuple[Tensor, State]:
        """`input (T, B, D)` or None with `steps`; `state` `(h_0, c_0)`, each `(L, B, H)`. Returns output and state."""
        inputs = [] if input is None else [input]
        output, h_n, c_n = run_groups([self], inputs, [state], steps if input is None else input.size(0))
        return output[0], (h_n[0], c_n[0])

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return text + (", peephole=True" if self.peephole else "")


def run_groups(
    stacks: Sequence[LSTMStack],
    inputs: list[Tensor],
    states: Sequence[State],
    steps: int,
    *,
    reverse: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stacks of one architecture over the same number of steps, side by side in one call.

    `inputs`: none, one `(T, B, D)` for all stacks, or one for each; with a frame less the step that runs first sees
    nothing. `reverse`: which stacks run from the last step to the first. Returns output `(G, T, B, H)` and the final
    states `(G, L, B, H)`.
    """
    first = stacks[0]
    h_0, c_0 = (torch.stack(tensors) for tensors in zip(*states, strict=True))
    weights = [stack.layer_weights() for stack in stacks]
    options = {"steps": steps, "reverse": reverse, "backend": first.backend, "recompute": first.recompute}
    if not (first.training and first.dropout > 0 and first.num_layers > 1):
        output, h_n, c_n, _ = lstm_sequence(inputs, h_0, c_0, weights, **options)
        return output, h_n, c_n
    h_n, c_n = [], []
    for layer in range(first.num_layers):
        if layer:
            inputs = [F.dropout(x, first.dropout) for x in output.unbind(0)]
        one_layer = [[stack[layer]] for stack in weights]
        part = slice(layer, layer + 1)
        output, h, c, _ = lstm_sequence(inputs, h_0[:, part], c_0[:, part], one_layer, **options)
        h_n.append(h)
        c_n.append(c)
    return output, torch.cat(h_n, dim=1), torch.cat(c_n, dim=1)
