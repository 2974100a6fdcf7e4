"""The command line: ``lstmvid`` and one of the commands below.

A sub-command's module is imported when it is called, for most need packages beyond torch and numpy.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import lstmvid

_COMMANDS = {
    "train": "train a composite model on Moving MNIST or another data set",
    "evaluate": "score a model's predictions and reconstructions beside floors",
    "predict": "draw predictions: PNG strips and animated GIFs",
    "classify": "train and test a classifier of videos, fuse streams, average over splits",
    "features": "draw a model's input and output features",
    "report": "write all there is to see of a model into one HTML file",
    "convert": "turn the model files of the paper's authors into ours, or back",
    "extract": "run a pretrained convnet over videos, into an HDF5 file of percepts",
    "plan": "show which backend and kernels an LSTM would run on, and how fast",
    "info": "show versions, devices and which backends can run",
}

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class SettingsError(Exception):
    """Arguments or settings that are not accepted, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: what follows ``lstmvid``; the process's own by default.

    Returns:
        The exit code: 0 only if the command did its job, 2 for arguments and settings that are not accepted, 130 after
        Ctrl-C, 1 for all else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="lstmvid", description=lstmvid.__doc__)
    parser.add_argument("--version", action="version", version=f"lstmvid {lstmvid.__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="command", help="one of those below")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "commands (each has its own --help):\n" + "\n".join(
        f"  {name:10}{summary}" for name, summary in _COMMANDS.items()
    )
    command = parser.parse_args(arguments[:1]).command
    try:
        return importlib.import_module(f"lstmvid.cli.{command}").main(arguments[1:])
    except KeyboardInterrupt:
        return _fail(command, "interrupted", EXIT_INTERRUPTED)
    except SettingsError as error:
        print(f"lstmvid {command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ModuleNotFoundError as error:
        if error.name is None:  # a sentence of our own
            return _fail(command, error)
        package = error.name.partition(".")[0]
        if package == "lstmvid":
            raise
        return _fail(command, f"the package {package} is missing: run `pip install 'lstmvid[train]'`")
    except (ValueError, OSError, FloatingPointError, lstmvid.BackendUnavailable) as error:
        return _fail(command, error)


def _fail(command: str, reason: object, code: int = EXIT_FAILURE) -> int:
    print(f"lstmvid {command}: {' '.join(str(reason).split())}", file=sys.stderr)
    return code
