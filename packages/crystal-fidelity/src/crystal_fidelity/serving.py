"""Many commands in one process, for programs that would pay the imports every time."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from typing import TextIO

import typer


def serve(app: typer.Typer, requests: Iterable[str], answers: TextIO) -> None:
    """Run commands until the requests end.

    Args:
        app: The command line.
        requests: Lines of JSON, each the list of words of one command.
        answers: Gets a line of JSON for each, `{"status": 0, "error": ""}`; what a command prints
            goes to standard error.
    """
    for request in requests:
        with redirect_stdout(sys.stderr):
            status, error = _run(app, json.loads(request))
        answers.write(json.dumps({"status": status, "error": error}) + "\n")
        answers.flush()


def _run(app: typer.Typer, words: Sequence[str]) -> tuple[int, str]:
    """Return exit status and message as the command line gives them."""
    try:
        app(list(words))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return status, f"exit status {status}" if status else ""
    except (ValueError, KeyError, OSError, ImportError) as error:
        return 2, str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return 0, ""
