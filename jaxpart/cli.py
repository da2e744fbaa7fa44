"""The command line; `commands/` has a module per command.

Exit codes: 0 a valid partition, 1 none (infeasible, none found, or the checked one is not valid),
2 bad input, 130 interrupted (128 and the number of the signal: 143 for SIGTERM, 129 for SIGHUP).
Heavy packages are imported after the arguments are parsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from jaxpart.arguments import Parser
from jaxpart.commands import evaluate, export, graphs, partition, profile, run, simulate, sweep
from jaxpart.commands.output import say
from jaxpart.errors import InfeasibleError, InputError, NothingFoundError
from jaxpart.runtime import background, interrupt

_COMMANDS = {
    "partition": partition,
    "evaluate": evaluate,
    "simulate": simulate,
    "sweep": sweep,
    "export": export,
    "run": run,
    "profile": profile,
    "graphs": graphs,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the subcommands and gives its exit code.

    Args:
      argv: the arguments. None: those of the process, which this call may end.
    """
    parser = Parser(prog="jaxpart", description="Partitions of graphs over multi-chip modules.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        text = command.DESCRIPTION
        command.add_arguments(commands.add_parser(name, help=text, description=text))
    arguments = parser.parse_args(argv)
    return _run(_COMMANDS[arguments.command].run, arguments, is_process=argv is None)


def run_script(command: str, argv: Sequence[str] | None = None) -> int:
    """One command as a script of its own: runs it and gives its exit code; as `main`."""
    parser = Parser(description=_COMMANDS[command].DESCRIPTION)
    _COMMANDS[command].add_arguments(parser)
    return _run(_COMMANDS[command].run, parser.parse_args(argv), is_process=argv is None)


def _run(
    command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, *, is_process: bool
) -> int:
    with interrupt.command_signals() as signals:
        code = _code_of(command, arguments, signals)
        if is_process:
            # What still compiles is not waited for. And nothing that comes now is worth a word.
            if sys.stdout is not None:  # None: started without one
                sys.stdout.flush()
            if background.is_any_running():
                os._exit(code)
            interrupt.ignore_from_now()
    return code


def _code_of(
    command: Callable[[argparse.Namespace], int],
    arguments: argparse.Namespace,
    signals: interrupt.Interrupts,
) -> int:
    try:
        return command(arguments)
    except InputError as error:
        return say(f"error: {error}", 2)
    except InfeasibleError as error:
        return say(f"infeasible: {error}", 1)
    except NothingFoundError as error:
        return say(f"none found: {error}", 1)
    except KeyboardInterrupt:
        return say(interrupt.NOTHING, signals.code)
