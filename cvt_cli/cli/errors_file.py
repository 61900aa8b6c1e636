"""The file that `--errors` names: a list of the inputs that could not be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.cli.messages import say
from cvt_cli.cli.name_line import encoded_name
from cvt_cli.cli.sinks import check_not_an_input
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output.journal import files_of
from cvt_cli.system.files import check_file, write_atomically
from cvt_cli.system.text import counted, reason_of


@dataclass(frozen=True)
class ErrorsFile:
    """A list of the inputs that could not be read, as --files-from takes it.

    Attributes:
        path: where it is.
        null: NUL bytes end its names, not line ends.
    """

    path: Path
    null: bool

    @classmethod
    def of(cls, path: Path | None, null: bool) -> "ErrorsFile | None":
        """Return the file for --errors, or None without it."""
        return None if path is None else cls(path, null)

    def check(self, others: Sequence[Path], inputs: list[str], *, replace: bool) -> None:
        """Check, before anything is started, that the file can be written.

        Args:
            others: what else the run writes.
            inputs: what it reads.
            replace: an existing file may be replaced.

        Raises:
            UsageError: if it can't be, or would replace one of those, or another file without
                --overwrite.
        """
        check_file(self.path)
        check_not_an_input(self.path, inputs)
        written = {os.path.realpath(each) for other in others for each in files_of(other)}
        if os.path.realpath(self.path) in written:
            raise UsageError(
                f"{self.path} is one of the outputs, or a file beside one",
                hint="name another --errors",
            )
        if os.path.lexists(self.path) and not replace:
            raise UsageError(f"{self.path} exists", hint="--overwrite replaces it")

    def write(self, failed: Sequence[tuple[str, str]]) -> None:
        """Write the whole list; an empty file if nothing failed.

        Raises:
            CvtError: if it can't be written.
        """
        names = [encoded_name(path, self.null) for path, _ in failed]
        listed = [name for name in names if name is not None]
        if left_out := len(names) - len(listed):
            say(
                f"warning: {self.path}: {counted(left_out, 'name')} with a line break left out; "
                "with --null they fit"
            )
        try:
            # Passwords and signatures of addresses are in it, so that --files-from can use them.
            write_atomically(
                self.path,
                lambda file: file.writelines(listed),
                private=True,
            )
        except OSError as error:
            raise CvtError(f"{self.path} can't be written: {reason_of(error)}") from None
