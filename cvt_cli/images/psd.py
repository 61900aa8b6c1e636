"""Mends of how Pillow reads the merged picture of a PSD."""

from typing import Any, BinaryIO

from PIL import ImageFile

# Of a PSD's header: where it has the number of channels.
_CHANNELS_AT = 12


def mend_channels(image: Any, file: BinaryIO) -> None:
    """Let an open PSD read its colours from where they are.

    In a packed picture the sizes of all lines come first, those of further channels (saved
    selections, spot colours) too, which Pillow takes for the beginning of the colours. And a bitmap
    has ones for black.

    Args:
        image: as Pillow has opened it; its tiles are replaced.
        file: its file. The position is restored.
    """
    tiles = image.tile
    if image.mode == "1":
        image.tile = [tile._replace(args="1;I") for tile in tiles]
    if not tiles or tiles[0].codec_name != "packbits":
        return
    position = file.tell()
    file.seek(_CHANNELS_AT)
    channels = int.from_bytes(file.read(2), "big")
    height = image.size[1]
    if channels > len(tiles):
        # The first tile's offset is the end of the sizes of as many channels as there are tiles.
        start = tiles[0].offset - 2 * len(tiles) * height
        file.seek(start)
        sizes = ImageFile._safe_read(file, 2 * channels * height)
        offset = start + len(sizes)
        mended = []
        for index, tile in enumerate(image.tile):
            mended.append(tile._replace(offset=offset))
            lines = memoryview(sizes)[2 * height * index : 2 * height * (index + 1)]
            offset += sum(lines[::2]) * 256 + sum(lines[1::2])
        image.tile = mended
    file.seek(position)
