"""Tags the pictures of records, in sidecars or in the files themselves."""

import enum
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import CvtError, ImageError
from cvt_cli.images.names import existing
from cvt_cli.records import Record
from cvt_cli.system.files import sweep
from cvt_cli.system.text import reason_of
from cvt_cli.tagging.keywords import Choice, Keyword
from cvt_cli.tagging.process import PictureWriter, Unwritable
from cvt_cli.tagging.sidecar import Naming, sidecar_of, tag_sidecar
from cvt_cli.tagging.xmp import TagError

# Errors of the disk: other files would fail, too.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class TagStatus(enum.Enum):
    """Results of tagging a picture."""

    DONE = "done"
    THERE = "there"  # nothing was to be changed
    CLEARED = "cleared"  # it had keywords and has none now
    NONE = "none"  # it had none and gets none
    LEFT = "left"  # the record is an error
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Tagged:
    """The result of tagging one record's picture.

    Attributes:
        path: as the record has it.
        target: the file that has the keywords; None if there is none.
        keywords: those that it has now.
        error: why it has none, for `TagStatus.FAILED`.
        instead: why a sidecar was written in place of the picture; "" where none was.
    """

    status: TagStatus
    path: str
    target: Path | None = None
    keywords: tuple[Keyword, ...] = ()
    error: str = ""
    instead: str = ""


@dataclass(frozen=True, kw_only=True)
class Tagger:
    """Writes the keywords of records where photo programs look for them.

    Attributes:
        choice: what becomes a keyword; None to take away what was added.
        embed: write into the pictures, where exiv2 can.
        naming: of the sidecars.
        model: the model's name, if it is known.
        keep_dates: leave the dates of files that are there.
        dry_run: change nothing.
    """

    choice: Choice | None
    embed: bool = False
    naming: Naming = Naming.DARKTABLE
    model: str = ""
    keep_dates: bool = False
    dry_run: bool = False

    def tag(self, records: Iterable[Record]) -> Iterator[Tagged]:
        """Yield the result for each record's picture, in order.

        Raises:
            CvtError: if the disk is full or read-only; what was done stays.
        """
        with ExitStack() as stack:
            writer = None
            if self.embed:
                writer = stack.enter_context(
                    PictureWriter(keep_dates=self.keep_dates, dry_run=self.dry_run)
                )
            swept: set[Path] = set()
            for record in records:
                if record.error is not None:
                    yield Tagged(TagStatus.LEFT, record.path)
                    continue
                try:
                    yield self._tag(record, writer, swept)
                except (TagError, ImageError) as error:
                    yield Tagged(TagStatus.FAILED, record.path, error=str(error))
                except OSError as error:
                    if error.errno in _FATAL:
                        raise CvtError(
                            f"{record.path} can't be tagged: {reason_of(error)}",
                            hint="fix that, then run the same command again to continue",
                        ) from None
                    yield Tagged(TagStatus.FAILED, record.path, error=reason_of(error))

    def _tag(self, record: Record, writer: PictureWriter | None, swept: set[Path]) -> Tagged:
        """Tag a picture.

        Args:
            swept: the folders that have been cleared of what killed runs left.
        """
        picture = existing(record.path)
        if picture is None:
            raise TagError(_why_none(record.path))
        if not self.dry_run and picture.parent not in swept:
            swept.add(picture.parent)
            sweep(picture.parent)
        if not picture.is_file():
            raise TagError("not a file")
        keywords = self.choice.keywords(record) if self.choice is not None else ()
        instead = ""
        if writer is not None:
            try:
                changed = writer.tag(picture, keywords, self.model)
                status = _status(changed, keywords)
                return Tagged(status, record.path, target=picture, keywords=keywords)
            except Unwritable as error:
                instead = str(error)
        sidecar = sidecar_of(picture, self.naming)
        changed = tag_sidecar(
            sidecar, keywords, self.model, keep_dates=self.keep_dates, dry_run=self.dry_run
        )
        status = _status(changed, keywords)
        return Tagged(status, record.path, target=sidecar, keywords=keywords, instead=instead)


def _status(changed: bool, keywords: Sequence[Keyword]) -> TagStatus:
    if keywords:
        return TagStatus.DONE if changed else TagStatus.THERE
    return TagStatus.CLEARED if changed else TagStatus.NONE


def _why_none(path: str) -> str:
    if path == "-":
        return "standard input has no file to tag"
    if "://" in path:
        return "an address: download it to tag it"
    if "::" in path:
        return "in an archive: unpack it to tag it"
    return "no such file"
