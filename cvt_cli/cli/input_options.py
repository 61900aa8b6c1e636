"""Options for the images to read, and for reading them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.cli.options import INPUT, PERFORMANCE, GlobalOptions
from cvt_cli.images.source import IMAGE_TIMEOUT, MAX_BYTES, MOST_SECONDS, TIMEOUT, Search

if TYPE_CHECKING:
    from cvt_cli.images.background import Colour
    from cvt_cli.images.pool import ReaderPool


class TruncatedChoice(StrEnum):
    """Ways to treat a JPEG whose end is missing."""

    REFUSE = "refuse"
    ACCEPT = "accept"


BackgroundOption = Annotated[
    str | None,
    INPUT.option(
        "--background",
        metavar="COLOUR",
        help="Show transparent images on this colour: white, '#808080'. Default: keep the "
        "colours hidden under transparency, as Transformers does.",
    ),
]
TruncatedOption = Annotated[
    TruncatedChoice,
    INPUT.option(
        "--truncated",
        help="refuse: a truncated JPEG is an error. accept: read what is there, and say so "
        "in the column truncated.",
    ),
]


class _PictureRules:
    """Values that `Pictures` and `Input` derive from their options."""

    background: str | None
    truncated: TruncatedChoice

    @property
    def background_colour(self) -> "Colour | None":
        """Return the colour (red, green, blue) under transparent pictures.

        Raises:
            UsageError: if --background is no colour.
        """
        if self.background is None:
            return None
        from cvt_cli.images.background import parse_colour

        return parse_colour(self.background)

    @property
    def accept_truncated(self) -> bool:
        """Whether to use the readable part of a JPEG whose end is missing."""
        return self.truncated is TruncatedChoice.ACCEPT


@dataclass(frozen=True, kw_only=True)
class Pictures(_PictureRules):
    """Options for pictures that are transparent or cut off."""

    background: BackgroundOption = None
    truncated: TruncatedOption = TruncatedChoice.REFUSE


@dataclass(frozen=True, kw_only=True)
class Input(_PictureRules):
    """Options for the images to read, and how to read them."""

    inputs: Annotated[
        list[str] | None,
        INPUT.argument(
            metavar="IMAGE|FOLDER|ARCHIVE|URL",
            help="Image files, folders (searched recursively), quoted patterns "
            "('photos/**/*.png'), .zip, .tar and .parquet files of images, addresses "
            "(https://, s3://, gs://, hf://), or - for one image on standard input. "
            "Duplicates are read once.",
        ),
    ] = None
    files_from: Annotated[
        str | None,
        INPUT.option(
            "--files-from",
            metavar="FILE",
            help="Read more inputs from this file, one per line; - for standard input.",
        ),
    ] = None
    null: Annotated[
        bool,
        INPUT.option(
            "--null", "-0", help="Names in --files-from end with NUL, as written by find -print0."
        ),
    ] = False
    recursive: Annotated[
        bool, INPUT.option("--recursive/--no-recursive", help="Search subfolders.")
    ] = True
    include: Annotated[
        list[str] | None,
        INPUT.option(
            "--include",
            metavar="GLOB",
            help="Only read files in folders and archives whose name or path matches. Repeatable.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        INPUT.option(
            "--exclude",
            metavar="GLOB",
            help="Skip files and folders whose name or path matches. Repeatable.",
        ),
    ] = None
    default_excludes: Annotated[
        bool,
        INPUT.option(
            "--default-excludes/--no-default-excludes",
            help="Skip what network drives, recycle bins and thumbnailers leave among "
            "photographs: @eaDir, #recycle, $RECYCLE.BIN, Thumbs.db and the like.",
        ),
    ] = True
    timeout: Annotated[
        float,
        INPUT.option(
            "--timeout",
            min=0.1,
            metavar="SECONDS",
            help="Seconds without data before a try is abandoned (three tries).",
        ),
    ] = TIMEOUT
    max_pixels: Annotated[
        int | None,
        INPUT.option(
            "--max-pixels",
            min=1,
            metavar="N",
            help="Refuse images with more pixels, before decoding. Default: 179 million, "
            "Pillow's limit.",
        ),
    ] = None
    max_bytes: Annotated[
        int,
        INPUT.option(
            "--max-bytes",
            min=1,
            metavar="N",
            show_default=False,
            help="Refuse files, downloads and archive members with more bytes. Default: 2 GiB.",
        ),
    ] = MAX_BYTES

    background: BackgroundOption = None
    truncated: TruncatedOption = TruncatedChoice.REFUSE

    @property
    def paths(self) -> list[str]:
        """Return the inputs named on the command line."""
        return self.inputs or []

    @property
    def inputs_and_list(self) -> list[str]:
        """Return all that is read: the named inputs, and the list of names."""
        return [*self.paths, *filter(None, [self.files_from])]

    @property
    def search(self) -> Search:
        """Return how to search the inputs."""
        return Search(
            recursive=self.recursive,
            include=tuple(self.include or ()),
            exclude=tuple(self.exclude or ()),
            files_from=self.files_from,
            null=self.null,
            timeout=min(self.timeout, MOST_SECONDS),
            max_bytes=self.max_bytes,
            default_excludes=self.default_excludes,
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for the processes that read images."""

    image_timeout: Annotated[
        float,
        INPUT.option(
            "--image-timeout",
            min=0.1,
            metavar="SECONDS",
            help="Seconds that an image, or the directory of an archive, may take to decode.",
        ),
    ] = IMAGE_TIMEOUT
    readers: Annotated[
        int | None,
        PERFORMANCE.option(
            "--readers",
            min=1,
            metavar="N",
            help="Maximum number of processes that decode images. Default: one per core.",
        ),
    ] = None

    def start(self, context: typer.Context) -> "ReaderPool":
        """Start the processes, before torch is imported, which takes a while. They end with the
        command.

        Raises:
            OSError: if processes can't be started.
        """
        from cvt_cli.images.pool import ReaderPool

        settings: GlobalOptions = context.obj
        return context.with_resource(
            ReaderPool(self.readers, self.image_timeout, debug=settings.debug)
        )
