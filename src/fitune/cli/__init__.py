"""The command line: one file per command, imported when the command runs, so that `--help` answers at once.

In: words on the command line. Out: an exit status: 0 done, 1 an error of fitune (printed without traceback), 2 wrong
usage, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. Knows no work: each command calls one package.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from errno import errorcode
from importlib import import_module
from importlib.util import find_spec
from signal import SIGINT

import click

from fitune.distributed import ranks
from fitune.errors import NO_MEMORY, FituneError, ToldByFirst, did_you_mean, no_memory_left
from fitune.signals import ENDING, Stopped, exit_status, handled, raise_stopped

# name → (module:function, one line of help). The order is that of a first day with fitune.
COMMANDS = {
    "demo": ("fitune.cli.demo:demo", "Teach the built-in model Pig Latin on this machine, in minutes."),
    "train": ("fitune.cli.train:train", "Fine-tune a model, or --resume a run."),
    "chat": ("fitune.cli.talk.chat:chat", "Talk to a run or a model."),
    "generate": ("fitune.cli.talk.generate:generate", "Answer prompts; --top N shows the most likely next tokens."),
    "serve": ("fitune.cli.talk.serve:serve", "Serve a run or a model to OpenAI clients."),
    "evaluate": ("fitune.cli.talk.evaluate:evaluate", "Measure a run or a model on a dataset."),
    "export": (
        "fitune.cli.export:export",
        "Export a result: adapter, merged, GGUF or Ollama, with a fidelity report.",
    ),
    "push": ("fitune.cli.push:push", "Push a result to the Hugging Face Hub."),
    "score": ("fitune.cli.talk.score:score", "Judge answers with a reward model."),
    "data": ("fitune.cli.data:data", "Show, check, split and make datasets."),
    "plan": ("fitune.cli.plan.plan:plan", "Predict the memory of a run, without a GPU and without weights."),
    "adapters": (
        "fitune.cli.adapters:adapters",
        "List, show, compare, combine, rename, delete adapters; check a merge.",
    ),
    "runs": ("fitune.cli.runs:runs", "List, show and compare runs."),
    "studio": ("fitune.cli.studio.studio:studio", "Runs, data and plans in the browser."),
    "doctor": ("fitune.cli.pages.doctor:doctor", "Tell what is installed, found and missing here."),
    "settings": (
        "fitune.cli.pages.settings:settings",
        "Every setting: schema, reference, example; import other tools' configs.",
    ),
}
STOPPED = "stopped; `fitune runs list` lists unfinished runs, `fitune train --resume RUN` continues one"
HELP = {"help_option_names": ["-h", "--help"]}


class LazyGroup(click.Group):
    """Commands by name; a command's module is imported when it runs, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (target, _) in COMMANDS.items() if find_spec(target.partition(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(module), function)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f'there is no command "{args[0]}"{near}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings=HELP)
@click.version_option(package_name="fitune")
def cli() -> None:
    """Fine-tune the largest open LLM that fits your hardware.

    \b
    fitune demo                              a first fine-tune, on any machine
    fitune data check my.jsonl               what would be trained
    fitune train --data.train my.jsonl       train on it
    """
    from fitune.console import hush_libraries

    hush_libraries()


def _say(text: str) -> None:
    """A last line on stderr, which may be a terminal that has been closed."""
    from fitune.console import printable

    with suppress(OSError):
        click.echo(printable(text), err=True)


def _in_words(error: OSError) -> str:
    """An error of the operating system that no command has put in words."""
    where = f"{error.filename}: " if error.filename else ""
    name = f" ({errorcode[error.errno]})" if error.errno and error.errno in errorcode else ""
    return f"{where}{error.strerror or error}{name}; check the path, its permissions and the space on its disk"


def main() -> None:
    """Entry point of the command `fitune`."""
    try:
        with handled(ENDING, raise_stopped):
            status = cli.main(prog_name="fitune", standalone_mode=False)
            sys.stdout.flush()  # a full disk behind `>` is told here, not when Python has ended
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say(STOPPED)
        status = exit_status(SIGINT)
    except Stopped as stopped:
        _say(STOPPED)
        status = exit_status(stopped.number)
    except ToldByFirst:
        status = 1
    except FituneError as error:
        _say(f"error: {error}" if ranks.is_first() else f"error: rank {ranks.rank()}: {error}")
        status = 1
    except BrokenPipeError:
        # The reader (`head`, a pager) has gone; Python would complain again when it flushes stdout at exit.
        sys.stderr.close()
        status = 0
    except (MemoryError, ImportError) as error:
        if not no_memory_left(error):
            raise
        _say(f"error: {NO_MEMORY}")
        status = 1
    except OSError as error:
        _say(f"error: {_in_words(error)}")
        with suppress(OSError):
            if sys.stdout is sys.__stdout__:
                sys.stdout.close()  # what is left in it cannot be written; Python would try again
        status = 1
    if ranks.size() > 1:
        from fitune.distributed import together

        together.leave()
    sys.exit(status if isinstance(status, int) else 0)
