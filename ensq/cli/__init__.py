"""The command line: parse, call one function, print. Heavy modules are imported inside commands."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

import click

from ensq import __version__
from ensq.errors import EXIT_INTERRUPTED, EXIT_JOBS_FAILED, EnsqError
from ensq.text import Guarded

# Command, module below ensq.cli that holds it, and its line in `ensq --help`: known here, so
# that help needs no command's imports.
_COMMANDS = {
    "run": ("run", "Enqueue, train on this machine, and finalize."),
    "enqueue": ("enqueue", "Write one row per seed into the queue."),
    "worker": ("worker", "Claim members and train them; also under srun."),
    "submit": ("submit", "An array of workers into SLURM's queue."),
    "status": ("status", "Who does what, how far, how good, when done."),
    "finalize": ("finalize", "Statistics, best model and exports."),
    "predict": ("predict", "Energies and forces by all members, with spreads."),
    "evaluate": ("evaluate", "Errors, uncertainty and its calibration."),
    "simulate": ("simulate", "Short dynamics: stable, and as the data?"),
    "report": ("report", "A page of HTML about an ensemble."),
    "export": ("export", "One member, or a checkpoint, as a model file."),
    "retry": ("members", "Queue failed or cancelled members again."),
    "resume": ("members", "Train members on that were stopped early."),
    "cancel": ("members", "Take members out of the queue."),
    "hold": ("members", "Keep members from being trained for now."),
    "release": ("members", "Queue held members again."),
    "show": ("show", "One member: attempts, reasons, log."),
    "drain": ("workers", "Ask workers to finish their epoch and leave."),
    "reap": ("workers", "Take members back from lost workers."),
    "config": ("config", "Check a configuration, or show it in full."),
    "data": ("data", "Convert data sets larger than the memory."),
    "priors": ("priors", "Fit priors to data by Boltzmann inversion."),
    "db": ("db", "Check, back up or upgrade the database."),
    "doctor": ("doctor", "Look at machine, database and SLURM."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"ensq.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ensq")
def cli() -> None:
    """ensq trains ensembles of machine-learned force fields.

    One configuration, n random seeds: `ensq run config.yaml` does it all on this machine;
    `ensq enqueue`, `srun ensq worker`, `ensq status` and `ensq finalize` do it on a cluster.
    """


def main() -> None:
    """Run a command; an error that a person can put right is one line, without a traceback."""
    output, errors = Guarded(sys.stdout), Guarded(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        _run()


def _run() -> None:
    verbose = "-v" in sys.argv[1:] or "--verbose" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EnsqError as error:
        _fail(str(error), error.exit_code, error if verbose else None)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", EXIT_INTERRUPTED, None)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_JOBS_FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", EXIT_JOBS_FAILED, error if verbose else None)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        hint = "" if verbose else "; this is a fault of ensq: -v shows where"
        _fail(f"unexpected {text}{hint}", EXIT_JOBS_FAILED, error if verbose else None)


def _fail(text: str, code: int, error: BaseException | None) -> None:
    if error is not None:
        import traceback

        traceback.print_exception(error)
    safe = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    print(f"ensq: {safe}", file=sys.stderr)
    sys.exit(code)
