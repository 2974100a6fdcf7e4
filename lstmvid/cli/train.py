"""``lstmvid train``: settings from a YAML file and the command line, checked before anything is created."""

from __future__ import annotations

from lstmvid.cli.settings import read_settings
from lstmvid.training.config import RunConfig

_DESCRIPTION = "Train a composite model on Moving MNIST, or on another data set by --data.source and --data.path."


def main(arguments: list[str]) -> int:
    """Train, or go on training."""
    config, resume = read_settings(RunConfig, arguments, command="train", description=_DESCRIPTION)

    # Only now: Lightning takes seconds to import, and wrong settings should be told at once.
    from lstmvid.training.run import train

    train(config, resume=resume)
    return 0
