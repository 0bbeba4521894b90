"""What the command lines of both packages share: errors in one sentence, and exit statuses.

0 is done, 1 it failed, 2 the command is not understood, 130 Ctrl-C, 143 told to end (SIGTERM).
"""

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from cyclopts import App

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
_PACKAGES = ("crystorus.", "crystal_fidelity.", "reproduction")
_STYLES = {"error": "bold red", "warning": "bold yellow", "stopped": "bold yellow"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that the same cleaning up is done."""


class HelpPages:
    """Draws the panels of a help page: docstrings as flowing text, no defaults that say nothing."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Draw one panel of options or commands."""
        from cyclopts.help.formatters import DefaultFormatter
        from rich.text import Text

        for entry in panel.entries:
            text = getattr(entry.description, "primary_renderable", None)
            if isinstance(text, Text):
                entry.description.primary_renderable = Text(" ".join(text.plain.split()))
            if entry.default in ("", "False", "()", "[]", '""'):
                entry.default = None
        DefaultFormatter()(console, options, panel)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Draw the line that says how the command is called.

        Args:
            console: Of rich.
            options: Of the console.
            usage: cyclopts' own line, which is replaced.
        """
        from cyclopts.help.formatters import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)


def make_app(name: str, text: str, version: Callable[[], str] | None = None) -> "App":
    """Make a group of commands as both packages have them.

    Args:
        name: What is typed.
        text: What the help page says first.
        version: Answers `--version`; None for a group within another.
    """
    from cyclopts import App, Parameter

    app = App(
        name=name,
        help=text,
        help_flags=["--help", "-h"],
        help_format="plaintext",  # the others import a Markdown parser, slower than all the rest
        help_formatter=HelpPages(),
        version=version,
        version_flags=["--version"] if version else [],
        default_parameter=Parameter(negative=()),  # no --no-overwrite beside --overwrite
    )
    if version is not None:
        app.register_install_completion_command(
            help="Let the Tab key complete commands and options in this shell.",
            help_flags=[],
            version_flags=[],
        )
    return app


def run(
    app: "App",
    words: Sequence[str],
    *,
    renamed: Mapping[tuple[str, str], str] | None = None,
    after_interrupt: Mapping[str, str] | None = None,
) -> int:
    """Carry out a command line and return its exit status.

    Args:
        app: The commands. One that returns a whole number gives the exit status.
        words: What was typed after the program's name; `--debug` lets tracebacks through.
        renamed: New names of options by (command, old option), of commands by ("", old command);
            "!" and the reason for an option with a value that is gone.
        after_interrupt: By command, what an interrupt leaves behind and how to go on.
    """
    from cyclopts import CycloptsError

    prepare_threads()
    app.suppress_keyboard_interrupt = False  # it is told here
    debug = "--debug" in words
    words = _with_new_names([w for w in words if w != "--debug"], renamed or {})
    try:
        with _sigterm_raises(), _own_warnings_in_a_line():
            result = app(
                words, exit_on_error=False, print_error=False, result_action="return_value"
            )
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except CycloptsError as error:
        asked = " ".join((app.name[0], *(error.command_chain or ())))
        stop = "" if str(error).endswith((".", "?")) else "."
        log("error", f"{error}{stop} See {asked} --help")
        return USAGE
    except KeyboardInterrupt as error:
        left = (after_interrupt or {}).get(_command(words), "interrupted")
        log("stopped", left)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:  # of `crystorus info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            raise
        log("error", describe(error, app.name[0]))
        return FAILED


def describe(error: Exception, program: str) -> str:
    """Put an error into one sentence: our own as they are, others with what they are.

    Args:
        error: What was raised.
        program: Named in the remedy.
    """
    if type(error).__module__.startswith(_PACKAGES):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        remedy = "make room and try again" if error.errno == errno.ENOSPC else "check the path"
        return f"{error.filename or 'a file'}: {error.strerror}; {remedy}"
    return (
        f"unexpected {type(error).__name__}: {error}. Run it as `{program} --debug …` for the "
        "traceback, and report it"
    )


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: 1 crystal, 2 crystals.

    Args:
        n: The number.
        noun: In the singular, one whose plural ends in s.
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def log(kind: str, message: str) -> None:
    """Print one line on stderr, its kind in colour where there are colours.

    Args:
        kind: Such as "note" or "warning".
        message: One line.
    """
    from rich.console import Console
    from rich.text import Text

    # A Text is printed as it is: brackets in a path are no markup.
    line = Text.assemble((f"{kind}: ", _STYLES.get(kind, "bold")), message)
    Console(stderr=True, soft_wrap=True).print(line)


def prepare_threads() -> None:
    """Let threads that wait for each other spin only for a short while; call it before torch.

    OpenMP spins for five milliseconds if nobody says otherwise: on a machine with other work a
    hundred times as slow as a short spin, which costs nothing on an idle one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _command(words: Sequence[str]) -> str:
    """Return the words before the first that is no command, of at most two."""
    head = words[:2] if words[:1] and words[0] in ("data", "templates", "weights") else words[:1]
    return " ".join(word for word in head if not word.startswith("-"))


def _with_new_names(words: Sequence[str], renamed: Mapping[tuple[str, str], str]) -> list[str]:
    new: list[str] = []
    rest = iter(words)
    for place, word in enumerate(rest):
        if word == "--":
            return [*new, word, *rest]
        old, equals, value = word.partition("=") if word.startswith("-") else (word, "", "")
        now = renamed.get(("" if place == 0 else _command(new), old))
        if now is None:
            new.append(word)
        elif now.startswith("!"):
            log("warning", f"{old} is gone: {now[1:]}")
            next(rest if not equals else iter(()), None)
        else:
            log("warning", f"{old} is now {now}: the old name is understood in this version only")
            new.append(now + equals + value)
    return new


@contextmanager
def _own_warnings_in_a_line() -> Iterator[None]:
    """Show warnings of our packages as `log` does, without the line of code."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.startswith(_PACKAGES):
                log("warning", str(message))
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` while the block runs, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
