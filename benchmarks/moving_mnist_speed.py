"""How many Moving MNIST sequences a second the generator makes on one core.

python benchmarks/moving_mnist_speed.py
"""

from __future__ import annotations

import statistics
import time

import torch

from lstmvid.data import MovingMNIST, load_digits

BATCH_SIZES = (1, 16, 80, 256, 1000)
ROUNDS = 7


def sequences_per_second(data: MovingMNIST, batch_size: int) -> float:
    """The median rate of a few rounds, each about 400 sequences or one batch."""
    batches = max(1, 400 // batch_size)
    data.batch(0, batch_size)
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for index in range(batches):
            data.batch(index, batch_size)
        rates.append(batches * batch_size / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = MovingMNIST(load_digits())
    print(f"loading {len(data.digits)} digits: {time.perf_counter() - start:.2f} s")
    print(f"{data.num_frames} frames of {data.frame_size} x {data.frame_size}, {data.num_digits} digits, one core:")
    for batch_size in BATCH_SIZES:
        print(f"  batch {batch_size:5}: {sequences_per_second(data, batch_size):9,.0f} sequences/s")


if __name__ == "__main__":
    main()
