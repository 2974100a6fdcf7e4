"""`closed_loop` on Triton: one launch for all steps where they are small, else some steps' launches as one CUDA graph.

Where one program holds a stack of few units, a frame and all weights (configuration.py says where), it goes through all
steps for its sequences: nothing but results goes to memory, and neither a graph nor any work is needed. Else a step is
2 L + 1 launches, forward and backward: each layer's product with what it sees, the step kernels of `lstm_sequence`, and
the head's product, which applies the link and chooses the next frame (backward: its slope); one by one where no graph
can be captured.

The products of those launches are kernels of ours, not the library's. A captured library call keeps the addresses it
was captured with: of weights that autocast or a sum of biases makes anew at each call, of hidden states and gates that
belong to the call; each operand would have to lie in memory of the graph, and backward be copied there in every layer
and step. And graphs captured on one stream share the library's workspace, which two that run at a time would overwrite.
Ours take addresses from the graph's table as the recurrence does, so that one graph serves any tensors of its shapes,
and the link costs no launch. What goes over all steps at once, the weights' gradients, is the library's.
"""

from __future__ import annotations

__all__ = ["backward", "forward"]


def forward(*arguments):
    """As the operator's schema says (`lstmvid/ops/closed_loop.py`)."""
    from .closed_loop_fwd import forward

    return forward(*arguments)


def backward(*arguments):
    """As the schema of the operator's backward says."""
    from .closed_loop_bwd import backward

    return backward(*arguments)
