"""Reading: sources become pixels of the input size, in threads, ahead of the consumer."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
from PIL import Image

from cvt_cli.errors import ImageError
from cvt_cli.images.background import Colour
from cvt_cli.images.decode import MAX_PIXELS, decode, to_rgb
from cvt_cli.images.exif import photo_facts
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.reduction import full_size
from cvt_cli.images.source import Source, in_words, one_line, os_reason
from cvt_cli.images.thumbnail import THUMBNAIL_SIZE, make_thumbnail
from cvt_cli.images.truncated import is_incomplete
from cvt_cli.model.config import CvtConfig
from cvt_cli.system.cores import DECODE_THREADS

# Tokens in the first stage of an image whose size is left open. Each is compared with a quarter of
# the others: 4 megapixels for the published networks, a minute and 2 GB.
MAX_TOKENS = 2**18


@dataclass(slots=True)
class DecodedImage:
    """An input after reading: pixels or an error.

    Attributes:
        path: the input as it was given.
        pixels: (H, W, 3) uint8; None if there is an error.
        error: why there are no pixels, in one line.
        columns: the facts that were asked for, out of `records.COLUMNS`.
        thumbnail: a JPEG, if it was asked for.
        out_of_memory: that is the error.
    """

    path: str
    pixels: np.ndarray | None = None
    error: str | None = None
    columns: dict[str, int | float | str | None] = field(default_factory=dict)
    thumbnail: bytes | None = None
    out_of_memory: bool = False


class ImageReader:
    """Reads images for a network. Needs neither weights nor torch.

    Args:
        config: of the network; an image too small for it is an error, and one of which the
            preprocessing leaves it more than `MAX_TOKENS`. None for whatever size there is.
        preprocessing: what its input looks like.
        max_pixels: width times height above which an image is refused.
        exact_decode: decode as Transformers does; see `Classifier`.
        background: what lies behind transparent parts; None for the colours that are hidden there.
        accept_truncated: use the readable part of a JPEG whose end is missing.

    Attributes:
        exact: it does.
        admit: is called with each open image and its full (width, height) before it is decoded.
        reduce_to: shorter side in pixels down to which the decoder may scale; None for exact.
    """

    def __init__(
        self,
        config: CvtConfig | None,
        preprocessing: Preprocessing,
        max_pixels: int = MAX_PIXELS,
        *,
        exact_decode: bool = False,
        background: Colour | None = None,
        accept_truncated: bool = False,
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.exact = exact_decode
        self.background = background
        self.accept_truncated = accept_truncated
        self.admit: Callable[[Image.Image, tuple[int, int]], None] | None = None
        self.reduce_to = None if exact_decode else preprocessing.reduce_to
        if self.reduce_to is not None:
            # For tiny networks too: making thumbnails must not change any score.
            self.reduce_to = max(self.reduce_to, THUMBNAIL_SIZE)

    def batches(
        self,
        sources: Iterable[Source | Image.Image],
        batch_size: int,
        columns: Sequence[str] = (),
        *,
        thumbnails: bool = False,
        ahead: int = 1,
        threads: int = DECODE_THREADS,
    ) -> Iterator[list[DecodedImage]]:
        """Yield batches of `batch_size` sources, decoded in threads; `ahead` more batches are
        decoded while the consumer has one.

        The last of a batch may be errors: a batch's members depend on the order of the sources
        only, so that a run which is taken up later computes the same batches.
        """
        stream = iter(sources)
        pending: deque[Future[DecodedImage]] = deque()
        pool = ThreadPoolExecutor(threads, "decode")
        try:
            while True:
                for source in islice(stream, (1 + ahead) * batch_size - len(pending)):
                    pending.append(pool.submit(self.read, source, columns, thumbnails))
                if not pending:
                    return
                batch = [pending.popleft() for _ in range(min(batch_size, len(pending)))]
                yield [future.result() for future in batch]
        finally:
            # Don't wait for threads that may be reading from a server that never answers.
            pool.shutdown(wait=False, cancel_futures=True)

    def read(
        self,
        source: Source | Image.Image,
        columns: Sequence[str] = (),
        with_thumbnail: bool = False,
    ) -> DecodedImage:
        """Read one image; a failure is in its `error`."""
        result = DecodedImage(source.path if isinstance(source, Source) else "")
        start = time.perf_counter()
        try:
            if isinstance(source, Source):
                with source.open() as file:
                    result.columns |= _file_facts(file, columns)
                    result.columns |= photo_facts(file, columns, self.max_pixels)
                    image = decode(
                        file,
                        self.max_pixels,
                        reduce_to=self.reduce_to,
                        exact=self.exact,
                        checked=self.admit,
                        enough=self.preprocessing.resized_edge,
                        background=self.background,
                        accept_truncated=self.accept_truncated,
                    )
            else:
                result.columns |= photo_facts(source, columns, self.max_pixels)
                image = to_rgb(
                    source, self.max_pixels, exact=self.exact, background=self.background
                )
            width, height = full_size(image)
            facts = {"width": width, "height": height, "truncated": int(is_incomplete(image))}
            result.columns |= {name: facts[name] for name in columns if name in facts}
            self.check_size(image)
            pixels = self.preprocessing.pixels(image)
            if with_thumbnail:
                # The thumbnail is scaled down in place, so it needs a copy.
                result.thumbnail = make_thumbnail(image.copy() if image is source else image)
            result.pixels = pixels
        except MemoryError:
            result.error, result.out_of_memory = "out of memory", True
        except OSError as error:
            result.error = os_reason(error)
        except ImageError as error:
            result.error = in_words(error)
        except ValueError as error:
            result.error = one_line(error)
        if "seconds" in columns:
            result.columns["seconds"] = round(time.perf_counter() - start, 6)
        return result

    def check_size(self, image: Image.Image) -> None:
        """Check that the network can take the preprocessed image.

        Raises:
            ValueError: if that is too small.
            ImageError: if it is larger than its attention has memory and time for.
        """
        if self.config is None:
            return
        size = self.preprocessing.size_of(*full_size(image))
        rows, columns = self.config.tokens(*size)[0]
        # A fixed size was chosen by the user; a varying one is up to whoever made the image.
        if self.preprocessing.image_size is None and rows * columns > MAX_TOKENS:
            raise ImageError(
                f"{size[0]}x{size[1]} pixels for the network make {rows * columns} tokens, more "
                f"than the limit of {MAX_TOKENS}; --image-size gives all images one size"
            )


def _file_facts(file: BinaryIO, columns: Sequence[str]) -> dict[str, int | float | str | None]:
    facts: dict[str, int | float | str | None] = {}
    if "bytes" in columns:
        facts["bytes"] = file.seek(0, os.SEEK_END)
    if "sha256" in columns:
        file.seek(0)
        facts["sha256"] = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
    file.seek(0)
    return facts
