"""``lstmvid train``: settings from a YAML file and the command line, checked before anything is created."""

from __future__ import annotations

import sys

from lstmvid.cli import EXIT_USAGE
from lstmvid.cli.settings import SettingsError, read_settings
from lstmvid.training.config import RunConfig

_DESCRIPTION = "Train a composite model on Moving MNIST, or on another data set by --data.source and --data.path."


def main(arguments: list[str]) -> int:
    """Train, or go on training."""
    try:
        config, resume = read_settings(RunConfig, arguments, command="train", description=_DESCRIPTION)
    except SettingsError as error:
        print(f"lstmvid train: {error}", file=sys.stderr)
        return EXIT_USAGE

    # Only now: Lightning takes seconds to import, and wrong settings should be told at once.
    from lstmvid.training.run import train

    train(config, resume=resume)
    return 0
