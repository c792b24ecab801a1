"""The command `estl`: each command is a function, and its options are the function's signature.

Only what parses is imported here. A command imports what it needs when it runs: PyTorch and
Lightning take seconds, and `--help` does not wait for them.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from estl.commands.flags import DEFAULTS
from estl.commands.memory import keep_freed_memory

app = App(
    name="estl",
    help="Spiking neural networks for vision, trained with better supervision.\n\n"
    "estl COMMAND --help lists the options of a command.",
    help_format="plaintext",
    version_flags=[],
    default_parameter=DEFAULTS,
)
app.command("estl.commands.fit:fit", help="Train a student.")
app.command("estl.commands.test:test", help="Accuracy of a checkpoint.")
app.command("estl.commands.predict:predict", help="Classes of event files.")
app.command("estl.commands.data:app", name="data", help="Fetch, check, show, pack a data set.")
app.command("estl.commands.recipes:recipes", help="The recipes that come with ESTL.")
app.command(
    "estl.commands.train_teacher:train_teacher", help="Train a small CLIP vision tower as teacher."
)
app.command("estl.commands.ablate:ablate", help="What each part of the guided distillation adds.")
app.command("estl.commands.compare:compare", help="Plain, TET and TSE side by side.")
app.command("estl.commands.tune:tune", help="Search the thresholds of TSE on validation.")


def main(args: Sequence[str] | None = None) -> int:
    """Run `estl` with the arguments of a command line; returns the exit status.

    A user's mistake ends with one line on standard error and status 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    keep_freed_memory()
    command = " ".join(["estl", *args[:1]]) if args and not args[0].startswith("-") else "estl"
    try:
        status = app(args, exit_on_error=False, print_error=False, result_action="return_value")
        return status if isinstance(status, int) else 0
    except (CycloptsError, ValueError, OSError, FloatingPointError) as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        go_on = "estl fit --resume RUN" if args[0] == "fit" else "the same command"
        print(f"{command}: interrupted; continue with {go_on}", file=sys.stderr)
        return 130
