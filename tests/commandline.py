"""Run a command line in this process, as a shell would see it."""

import contextlib
import io
import os
from dataclasses import dataclass
from unittest import mock


@dataclass(frozen=True)
class Result:
    """What a shell sees of a command."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None = None

    @property
    def output(self):
        """Both streams."""
        return self.stdout + self.stderr


class CliRunner:
    """Invokes `crystorus` with a list of words."""

    def invoke(self, _app, words, env=None, **_settings):
        """Run it; an exception is one that a user would see as a traceback."""
        from crystorus import cli

        out, err = io.StringIO(), io.StringIO()
        code, exception = 0, None
        with (
            mock.patch.dict(os.environ, env) if env else contextlib.nullcontext(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main(list(map(str, words)))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except Exception as error:  # noqa: BLE001
                code, exception = 1, error
        return Result(code, out.getvalue(), err.getvalue(), exception)
