"""Errors that users see, and the exit code of each.

An error's text is one line that says what is wrong; `hint` says what to do. Only `cli/app.py`
prints them.
"""

import enum


class ExitCode(enum.IntEnum):
    """The exit codes of every subcommand."""

    OK = 0
    INPUTS_FAILED = 1
    USAGE = 2
    MODEL = 3
    RUN_FAILED = 4
    INTERRUPTED = 130
    READER_GONE = 141


class CvtError(Exception):
    """An error that is reported in one line, without a traceback."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Remark(UserWarning):
    """Something worth knowing that asks nothing of anybody: shown on a terminal, not in logs, which
    cron mails."""


class Finished(CvtError):
    """Nothing is left for --resume to do: no failure, because schedulers repeat commands."""

    exit_code = ExitCode.OK

    def __init__(self, what: str, *, can_update: bool = False) -> None:
        update = "--update does what is new, changed or failed; " if can_update else ""
        again = f"{update}--overwrite does it again"
        super().__init__(f"{what}: finished, nothing to resume", again)


class UsageError(CvtError):
    """The command line asks for something impossible; nothing was started."""

    exit_code = ExitCode.USAGE


class ModelError(CvtError):
    """The model could not be found, fetched or loaded."""

    exit_code = ExitCode.MODEL


class InputsError(CvtError):
    """No input could be read, so nothing was done."""

    exit_code = ExitCode.INPUTS_FAILED


class ImageError(CvtError):
    """An input could not be read as an image; becomes the error record of that input."""


class NoTemporaryFiles(CvtError):
    """Temporary files can't be written. No input is to blame, so the run ends."""


class Interrupted(CvtError):
    """Ctrl-C or SIGTERM ended the run; the message says what was kept."""

    exit_code = ExitCode.INTERRUPTED
