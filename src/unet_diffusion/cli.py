"""The command line: `unet-diffusion <command> [key=value]`, `python scripts/<command>.py`."""

import importlib
import signal
import sys
from collections.abc import Sequence

from unet_diffusion import __version__

COMMANDS = (
    *("train", "sample", "denoise", "restore", "evaluate", "report", "export", "playground"),
    *("train_features", "benchmark"),
)
"""The modules in commands/, each with a function of its name and the schema of its arguments."""


def main() -> None:
    """`unet-diffusion <command> [key=value]`."""
    usage = f"unet-diffusion <command> [key=value], with one of {', '.join(COMMANDS)}"
    command, *overrides = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print(usage)
        sys.exit()
    if command == "--version":
        print(f"unet_diffusion {__version__}")
        sys.exit()
    if command not in COMMANDS:
        print(f"error: no command '{command}'. Usage: {usage}", file=sys.stderr)
        sys.exit(2)
    run_script(command, overrides)


def run_script(command: str, overrides: Sequence[str] | None = None) -> None:
    """Runs a command with the overrides of the command line, and exits with its status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of Ctrl-C in the imports below
    application = importlib.import_module("unet_diffusion.application")
    sys.exit(application.run(command, sys.argv[1:] if overrides is None else overrides))
