"""Processes forked after a call on several threads.

Of OpenMP's threads, which torch and the kernels share, only the one that forks lives on in the child, and GCC's library
waits there for the others forever: a forked process has to do with one thread, as a `DataLoader`'s workers do.
"""

from __future__ import annotations

import functools
import os

import torch


@functools.cache
def prepare_for_forks() -> None:
    """Once a process has computed with several threads: those that are forked from it begin with one."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)
