"""Settings of a run from a YAML file and the command line, in one sentence where they are wrong."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lstmvid.cli import SettingsError
from lstmvid.training.config import CONFIG_FILE
from lstmvid.training.sections import Run

RunT = TypeVar("RunT", bound=Run)


def read_settings(kind: type[RunT], arguments: list[str], *, command: str, description: str) -> tuple[RunT, bool]:
    """The settings that a command was given.

    Args:
        kind: of the run; it has `output` and `seed` beside its sections.
        arguments: what follows the command.
        command, description: of the command, for its help.

    Returns:
        ``(settings, resume)``.

    Raises:
        SettingsError: they are not accepted.
        FileNotFoundError: there is no run to resume.
    """
    try:
        settings, config_file = _parse(arguments, _parser(kind, command, description))
    except ArgumentError as error:
        reason = _in_one_sentence(str(error), kind)
        raise SettingsError(_blame(reason, arguments, _named_config(arguments))) from error
    try:
        return kind.from_dict(_plain(settings)), settings.resume
    except ValueError as error:
        raise SettingsError(_blame(str(error), arguments, config_file)) from error


def _parser(kind: type[Run], command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"lstmvid {command}", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; those below win over it")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output, with its own settings if no --config is given",
    )
    defaults = kind()
    parser.add_argument("--output", type=str, default=defaults.output, help="the run's folder")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of everything that is drawn")
    for name, section in kind.sections().items():
        parser.add_class_arguments(section, name)
    return parser


def _parse(arguments: list[str], parser: ArgumentParser) -> tuple[Namespace, str | None]:
    """The settings, typed but not yet checked, and the file that they come from."""
    settings = parser.parse_args(arguments)
    named = _named_config(arguments)
    if settings.resume and named is None:
        named = str(Path(settings.output, CONFIG_FILE))
        if not Path(named).exists():
            raise FileNotFoundError(f"{settings.output} holds no run to resume, and there is no --config to begin one")
        settings = parser.parse_args(["--config", named, *arguments])
    return settings, named


def _named_config(arguments: list[str]) -> str | None:
    """The value of ``--config``, which is needed where jsonargparse has given up."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser.parse_known_args(arguments)[0].config


def _plain(settings: Namespace) -> dict:
    return {name: value for name, value in settings.as_dict().items() if name not in ("config", "resume")}


def _in_one_sentence(report: str, kind: type[Run]) -> str:
    """jsonargparse's report of several lines, in the words of the settings themselves."""
    report = " ".join(report.split())
    if named := re.match(r'Parser key "([\w.]+)"', report):
        key = named.group(1)
        if key == "config":
            return "there is no such file, or it can't be read"
        value = re.search(r"(?:Got|Given) value: (.*)", report)
        return f"{key} is {value.group(1) if value else 'not accepted'}, expected {kind.expected(key)}"
    if unknown := re.match(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", report):
        return f"{'.'.join(filter(None, unknown.groups()))} is no setting"
    if report.startswith("Unexpected config"):
        return "expected settings by name, such as `seed: 1`"
    return report


def _blame(reason: str, arguments: list[str], config_file: str | None) -> str:
    """What is wrong and whether the file or the command line has it."""
    key = reason.partition(" ")[0]
    if any(argument.partition("=")[0] == f"--{key}" for argument in arguments):
        reason = f"--{reason}"
    elif config_file is not None and not reason.startswith("unrecognized arguments"):
        reason = f"{config_file}: {reason}"
    return reason
