"""Images in archives, by `zip_images`, `tar_images` and `parquet_images`: read in place, nothing is
ever unpacked to the disk.

Untrusted bytes: a member's name is never used as a path of the file system, links are not
followed, and sizes are checked while reading.
"""

from collections.abc import Iterator

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.source import Filter, Place, Source, failing, one_line
from cvt_cli.images.tar_images import stream_members, tar_members
from cvt_cli.images.zip_images import zip_members

# Kinds that have their directory at the end.
NEEDS_SEEK = ("zip", "parquet")


def members(
    path: str, kind: str, place: Place, *, seekable: bool, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """Yield the images in an archive, in its order.

    A member that is not a regular file or has an unsafe name (absolute, or with "..") is a
    `Source` that fails. Where the archive is broken, one more fails under the archive's own path.

    Args:
        path: of the archive; members are `path::name`.
        kind: as `kind_of_archive` says.
        place: of the archive.
        seekable: it is opened so; and a tar archive can be opened for each member anew. Those
            of `NEEDS_SEEK` must be seekable.
        wanted: which members to take.
        max_bytes: size above which a member is refused.
    """
    found = False
    try:
        if kind == "zip":
            each = zip_members(path, place, wanted, max_bytes=max_bytes)
        elif kind == "parquet":
            from cvt_cli.images.parquet_images import parquet_members

            each = parquet_members(path, place, max_bytes)
        elif kind == "tar" and seekable:
            each = tar_members(path, place, wanted, max_bytes=max_bytes)
        else:
            each = stream_members(path, kind, place, wanted=wanted, max_bytes=max_bytes)
        for source in each:
            found = True
            yield source
    except NoTemporaryFiles:
        raise
    except ImageError as error:
        yield failing(path, error)
    except MemoryError:
        yield failing(path, "takes more memory than an archive may (a decompression bomb?)")
    # Hostile bytes make these modules raise nearly anything; it concerns this archive only.
    except Exception as error:
        yield failing(path, f"broken archive: {one_line(error)}")
    else:
        if not found:
            yield failing(path, wanted.without_images("an archive"))
