"""`torch.nn.LSTM`'s own path: cuDNN on NVIDIA GPUs, oneDNN on CPUs. Differentiates itself, so no operator wraps it."""

from .lstm_sequence import forward, unavailable

__all__ = ["forward", "unavailable"]
