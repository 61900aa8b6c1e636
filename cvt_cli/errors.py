"""What can go wrong in front of a user, and the exit code of each.

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
    """A failure to report in one line, without a traceback."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Finished(CvtError):
    """--resume found nothing left to do: no failure, for schedulers repeat it."""

    exit_code = ExitCode.OK

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: finished, nothing to resume", "--overwrite does it again")


class UsageError(CvtError):
    """What was typed can't be done; nothing was started."""

    exit_code = ExitCode.USAGE


class ModelError(CvtError):
    """The model could not be had."""

    exit_code = ExitCode.MODEL


class InputsError(CvtError):
    """No input could be read, so nothing was done."""

    exit_code = ExitCode.INPUTS_FAILED


class ImageError(CvtError):
    """One input could not be read as an image: it becomes that input's error record."""


class NoTemporaryFiles(CvtError):
    """The disk of the temporary files is full or gone. No input is to blame, so the run ends."""


class Interrupted(CvtError):
    """Ctrl-C or SIGTERM ended the run; says what was kept."""

    exit_code = ExitCode.INTERRUPTED
