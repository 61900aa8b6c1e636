"""Sources: the inputs of a run, and the options of a search for them."""

import errno
import io
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import translate
from typing import BinaryIO, Protocol

from cvt_cli.errors import ImageError
from cvt_cli.images import formats
from cvt_cli.images.skipped import Skipped, is_junk
from cvt_cli.records import masked
from cvt_cli.system.text import reason_of, visible

# Suffixes matter in folders and archives only; a file that is named itself is tried in any case.
IMAGE_SUFFIXES = tuple(formats.suffixes())

_ARCHIVE_SUFFIXES = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "gz",
    ".tgz": "gz",
    ".tar.bz2": "bz2",
    ".tbz2": "bz2",
    ".tbz": "bz2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zst",
    ".tzst": "zst",
    ".parquet": "parquet",
}

# The error of a text that is named as an image.
TEXT = "text, not an image"
# Bytes of a photograph, at most: a raw one of 100 megapixels has a tenth of it.
MAX_BYTES = 2**31
# Photographs hardly shrink. Bytes that an archive gives for each of its own, at most.
BOMB_RATIO = 200
TIMEOUT = 30.0
# Seconds to wait, at most: the system's calls take no more than 24 days, and infinity is none.
MOST_SECONDS = 1e6
# Seconds that an image may take to decode.
IMAGE_TIMEOUT = 30.0


class Place(Protocol):
    """The place of an input's bytes, as data that can be sent to another process."""

    @property
    def is_local(self) -> bool:
        """Whether any process on this machine can open it."""
        ...

    def open(self) -> BinaryIO:
        """Open a seekable file, or one that is read once for an archive that is a stream.

        Raises:
            ImageError: where there is nothing to read, and nothing else.
        """
        ...


# Without slots: millions go to readers, and pickle writes a dictionary in a fifth of the time.
@dataclass(frozen=True)
class Source:
    """An input: its path as it was given or found, and the place of its bytes.

    What comes from a stream (standard input, a compressed archive) is opened once only.

    Attributes:
        is_archive: it stands for all images in it.
        key: what `Shard` deals it by, where inputs are dealt; see `shard.key_of`.
    """

    path: str
    place: Place
    is_archive: bool = False
    key: str = ""

    @property
    def error(self) -> str | None:
        """Return why it can't be read, if the search knows that already."""
        return self.place.message if isinstance(self.place, Nowhere) else None

    def open(self) -> BinaryIO:
        """Open a seekable file, or one that is read once for an archive that is a stream."""
        return self.place.open()


@dataclass(frozen=True, slots=True)
class Nowhere:
    """A place that can't be read, and the reason."""

    message: str
    hint: str = ""
    is_local: bool = True

    def open(self) -> BinaryIO:
        """Raise the reason as an ImageError."""
        raise ImageError(self.message, self.hint)


@dataclass(frozen=True)
class LocalFile:
    """A place: a file on this machine.

    Attributes:
        max_bytes: size above which it is refused; None for what is read piece by piece.
    """

    path: str
    max_bytes: int | None = None
    is_local: bool = True

    def open(self) -> BinaryIO:
        """Open the file. Raises: ImageError."""
        try:
            # Opening a FIFO would wait forever, and opening a device may start it.
            facts = os.stat(self.path)
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError("not a regular file")
            if self.max_bytes is not None and facts.st_size > self.max_bytes:
                raise too_large(self.max_bytes)
            return open(self.path, "rb", opener=_open_without_waiting)
        except OSError as error:
            raise ImageError(os_reason(error, self.path)) from None
        except ValueError:  # a NUL in it, or half a character
            raise ImageError("not a possible file name") from None


@dataclass(frozen=True, slots=True)
class Bytes:
    """A place: the bytes themselves."""

    data: bytes
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Open a file in memory."""
        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class Search:
    """Options of a search for inputs.

    Attributes:
        recursive: folders are searched with the folders in them.
        include: GLOBs for the name, or the path below what is searched, of files in folders and
            archives: only these.
        exclude: GLOBs likewise, for files and folders to leave out.
        files_from: a file with the names of more inputs; "-" for standard input.
        null: its names end with NUL bytes, not with newlines.
        timeout: seconds that the network may bring nothing.
        max_bytes: size above which a file, a download, standard input or an archive's member is
            refused.
        default_excludes: what `skipped.JUNK` names is left out of folders and archives.
        image_timeout: seconds that an image, or the directory of an archive, may take to decode,
            for readers on other machines.
    """

    recursive: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    files_from: str | None = None
    null: bool = False
    timeout: float = TIMEOUT
    max_bytes: int = MAX_BYTES
    default_excludes: bool = True
    image_timeout: float = IMAGE_TIMEOUT


def kind_of_archive(path: str) -> str | None:
    """Return "zip", "parquet", "tar", "gz", "bz2", "xz" or "zst" (the last four are compressed
    tars) by the suffix; else None."""
    path = path.lower()
    return next((kind for suffix, kind in _ARCHIVE_SUFFIXES.items() if path.endswith(suffix)), None)


class Filter:
    """Selects the wanted files in folders and archives."""

    def __init__(self, search: Search) -> None:
        # A pattern with a suffix is taken literally; 'cat*' still means images.
        with_suffix = [glob for glob in search.include if os.path.splitext(glob)[1]]
        self._all = not search.include
        self._include = _any_of(search.include)
        self._include_with_suffix = _any_of(with_suffix)
        self._exclude = _any_of(search.exclude)
        self._default_excludes = search.default_excludes
        self.skipped = Skipped()

    def wants_file(self, name: str, relative: str) -> bool:
        """Tell whether to read a file.

        Args:
            name: the last part of its path.
            relative: its path below what is searched, with slashes.
        """
        if self.is_hidden(name) or self.is_junk(name) or _matches(self._exclude, name, relative):
            return False
        if name.lower().endswith(IMAGE_SUFFIXES):
            return self._all or _matches(self._include, name, relative)
        return _matches(self._include_with_suffix, name, relative)

    def wants_folder(self, name: str, relative: str) -> bool:
        """Tell whether to search a folder."""
        return (
            not self.is_hidden(name)
            and not self.is_junk(name)
            and not _matches(self._exclude, name, relative)
        )

    def is_junk(self, name: str) -> bool:
        """Tell whether a file or folder is left out only because of its name."""
        return self._default_excludes and is_junk(name)

    def is_hidden(self, name: str) -> bool:
        """Tell whether a file or folder is left out because its name starts with a dot."""
        return name.startswith(".") and not is_junk(name)

    def is_unknown(self, name: str, relative: str) -> bool:
        """Tell whether a file is left out only because it does not look like an image."""
        return (
            not self.is_hidden(name)
            and not self.is_junk(name)
            and not name.lower().endswith(IMAGE_SUFFIXES)
            and not _matches(self._exclude, name, relative)
            and (self._all or _matches(self._include, name, relative))
        )

    def without_images(self, what: str) -> str:
        """Describe a folder or an archive that holds nothing that is wanted."""
        return f"{what} without images" + ("" if self._all else " that match --include")

    def wants_member(self, path: str, *, is_file: bool = True) -> bool:
        """Tell whether to read the file at this path in an archive. A file that is left out because
        of what it is called is counted in `skipped`.

        Args:
            is_file: it is neither a folder nor a link.
        """
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        folders = (
            self.wants_folder(part, "/".join(parts[: depth + 1]))
            for depth, part in enumerate(parts[:-1])
        )
        wanted = bool(parts) and all(folders) and self.wants_file(parts[-1], "/".join(parts))
        if is_file and parts and not wanted:
            self._note(parts)
        return wanted

    def _note(self, parts: list[str]) -> None:
        """Count a file of an archive, if it is left out and not because somebody said so."""
        for depth, part in enumerate(parts):
            inner = "/".join(parts[: depth + 1])
            if self.is_junk(part) and not self.is_hidden(part):
                self.skipped.add_junk_member(part)
                return
            if depth < len(parts) - 1:
                if not self.wants_folder(part, inner):
                    return
            elif self.is_unknown(part, inner):
                self.skipped.add_file(part)


def failing(path: str, error: str | ImageError) -> Source:
    """Make a source that can't be read, with the reason."""
    hint = error.hint if isinstance(error, ImageError) else ""
    return Source(path, Nowhere(str(error), hint))


def bomb() -> ImageError:
    """Make the error for an archive that holds more than any with photographs."""
    return ImageError(
        f"expands more than {BOMB_RATIO}-fold (a decompression bomb?)",
        hint="unpack it if you trust it",
    )


def too_large(limit: int) -> ImageError:
    """Make the error for more bytes than `limit`."""
    return ImageError(
        f"more than the limit of {limit} bytes",
        hint="raise --max-bytes if you trust it",
    )


def _open_without_waiting(path: str, flags: int) -> int:
    # It may have become a FIFO a moment ago.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def os_reason(error: OSError, path: str = "") -> str:
    """Return the operating system's message, for an error record."""
    if error.errno == errno.ENOENT:
        return "a dangling link" if os.path.islink(path) else "no such file"
    if error.errno == errno.EACCES:
        return "permission denied"
    return reason_of(error)


def in_words(error: ImageError) -> str:
    """Return the message and the hint, for an error record."""
    return "; ".join(filter(None, (one_line(error), error.hint)))


def one_line(error: BaseException) -> str:
    """Return the message of a foreign exception as one line that is safe to show."""
    return visible(masked(" ".join(str(error).split()))) or type(error).__name__


def _any_of(globs: tuple[str, ...] | list[str]) -> re.Pattern[str] | None:
    # Names compare as on the system: on Windows capitals and the kind of slash do not matter.
    patterns = [translate(os.path.normcase(glob)) for glob in globs]
    return re.compile("|".join(patterns)) if patterns else None


def _matches(pattern: re.Pattern[str] | None, name: str, relative: str) -> bool:
    if pattern is None:
        return False
    return any(pattern.match(os.path.normcase(each)) for each in (name, relative))
