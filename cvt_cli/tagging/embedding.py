"""Keywords in the picture file itself, by exiv2: XMP, and IPTC for JPEG.

exiv2 writes in memory; the file is replaced when all is whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import exiv2

from cvt_cli.tagging.keywords import Keyword
from cvt_cli.tagging.sidecar import check_own, put
from cvt_cli.tagging.xmp import IPTC, SUBJECT, Packet, TagError

_WRITABLE = {
    "image/jpeg": (),
    "image/png": (),
    "image/jp2": (),
    "image/webp": (),
    "image/vnd.adobe.photoshop": (),
    "image/x-photoshop": (),
    "image/x-canon-cr2": (),
    "image/x-olympus-orf": (),
    # exiv2 takes other makers' raw files for TIFF, too, and would break some.
    "image/tiff": (".tif", ".tiff", ".dng", ".nef", ".pef"),
    "image/x-nikon-nef": (),
    "image/x-pentax-pef": (),
    "image/x-adobe-dng": (),
}
_READ_WRITE = 3
_UTF_8 = "\x1b%G"
_CHARSET = "Iptc.Envelope.CharacterSet"
_KEYWORDS = "Iptc.Application2.Keywords"

exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)


class NotWritable(TagError):
    """exiv2 does not write into files of this kind."""


def tag_picture(
    path: Path,
    keywords: Sequence[Keyword],
    model: str,
    *,
    keep_dates: bool = False,
    dry_run: bool = False,
) -> bool:
    """Put keywords into a picture, in place of those of an earlier run, and tell whether that
    changed anything.

    Raises:
        NotWritable: if exiv2 writes no such files.
        TagError: if the metadata there is broken, the file is read-only, or can't be replaced.
        OSError: if the disk is full or read-only.
    """
    before = check_own(path)
    if before is None:
        raise TagError("no such file")
    data = path.read_bytes()
    image = _opened(data, path.suffix.lower())
    packet = _packet(image)
    iptc = _Iptc(image, packet.added(IPTC), keywords)
    packet.tag(keywords, model, iptc.added)
    is_changed = packet.is_changed or iptc.is_changed
    if dry_run or not is_changed:
        return is_changed
    try:
        iptc.apply()
        if packet.is_empty:
            image.clearXmpPacket()
            image.clearXmpData()
        else:
            image.setXmpPacket(packet.write().decode())
        image.writeMetadata()
        written = bytes(image.data())
    except exiv2.Exiv2Error as error:
        raise TagError(f"exiv2: {_words(error)}") from None
    _check(data, written, path.suffix.lower(), keywords=keywords)
    put(path, written, before, keep_dates=keep_dates)
    return True


def _opened(data: bytes, suffix: str) -> Any:
    try:
        image = exiv2.ImageFactory.open(data)
        image.readMetadata()
    except exiv2.Exiv2Error as error:
        raise NotWritable(f"exiv2 does not read it: {_words(error)}") from None
    suffixes = _WRITABLE.get(image.mimeType())
    can = image.checkMode(exiv2.MetadataId.Xmp) == _READ_WRITE
    if suffixes is None or not can or (suffixes and suffix not in suffixes):
        raise NotWritable("exiv2 does not write into such files")
    return image


def _packet(image: Any) -> Packet:
    try:
        return Packet(image.xmpPacket().encode("utf-8", "surrogateescape"))
    except UnicodeDecodeError:
        raise TagError("the XMP in it is broken: it is not UTF-8") from None


def _check(before: bytes, after: bytes, suffix: str, *, keywords: Sequence[Keyword]) -> None:
    """Check that the file exiv2 wrote has the keywords, and for a JPEG the same scans.

    Raises:
        TagError: if not.
    """
    image = _opened(after, suffix)
    if set(_packet(image).added(SUBJECT)) - {each.flat for each in keywords}:
        raise TagError("exiv2 wrote something else")
    if image.mimeType() == "image/jpeg" and _scans(before) != _scans(after):
        raise TagError("exiv2 would change its pixels")


def _scans(data: bytes) -> bytes:
    """Return a JPEG from its first scan on."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at:]


class _Iptc:
    """The IPTC keywords of a JPEG.

    Attributes:
        added: those that are ours.
        is_changed: whether `apply` changes anything.
    """

    def __init__(self, image: Any, before: Sequence[str], keywords: Sequence[Keyword]) -> None:
        self._data = image.iptcData() if image.mimeType() == "image/jpeg" else None
        self.added: list[str] = []
        self.is_changed = False
        if self._data is None:
            return
        entries = [(datum.key(), datum.toString()) for datum in self._data]
        is_utf_8 = (_CHARSET, _UTF_8) in entries
        # Their encoding is unknown: beside keywords in UTF-8 they would become unreadable.
        if not is_utf_8 and any(not text.isascii() for key, text in entries if key != _CHARSET):
            self._data = None
            return
        there = [text for key, text in entries if key == _KEYWORDS]
        wanted = list(dict.fromkeys(each.flat for each in keywords))
        self._gone = [text for text in before if text in there and text not in wanted]
        self._new = [text for text in wanted if text not in there]
        self.added = [text for text in wanted if text in before or text in self._new]
        self.is_changed = bool(self._gone or self._new)

    def apply(self) -> None:
        """Change the keywords of the image, in memory."""
        if self._data is None or not self.is_changed:
            return
        there = [datum.toString() for datum in self._data if datum.key() == _KEYWORDS]
        kept = [text for text in there if text not in self._gone]
        while (found := self._data.findKey(exiv2.IptcKey(_KEYWORDS))) != self._data.end():
            self._data.erase(found)
        for text in (*kept, *self._new):
            self._data.add(exiv2.IptcKey(_KEYWORDS), exiv2.StringValue(text))
        if self._new:
            self._data[_CHARSET] = _UTF_8
        elif all(datum.key() == _CHARSET for datum in self._data):
            self._data.clear()


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
