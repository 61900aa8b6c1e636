"""Sidecars: files beside a picture that hold its metadata, or what was done to it.

Programs name them in two ways: after the picture's whole name (`IMG_1.jpg.xmp`: darktable, digiKam,
RawTherapee, DxO), or with a suffix in place of its own (`IMG_1.xmp`: Lightroom, Apple Photos'
export; `IMG_1.AAE`: an iPhone's edits).
"""

import os
import re
from pathlib import Path

from cvt_cli.images.formats import RAW_SUFFIXES

# Of darktable and digiKam; RawTherapee and its offspring ART; DxO PhotoLab.
_AFTER_NAME = (".xmp", ".pp3", ".arp", ".dop")
_FOR_SUFFIX = (".xmp", ".aae")
SIDECAR_SUFFIXES = tuple(dict.fromkeys((*_AFTER_NAME, *_FOR_SUFFIX)))
# IMG_1_01.jpg.xmp is darktable's for a second version of IMG_1.jpg.
_VERSION = re.compile(r"(.+)_[0-9]{2,}(\.[^.]+)", re.DOTALL)


class Sidecars:
    """Finds the sidecars of pictures. A folder is listed once, when its first picture is asked
    for: what is moved away after that is still known."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._names: dict[str, list[str]] = {}
        self._raws: set[str] = set()

    def of(self, picture: Path) -> list[str]:
        """Return the names of the sidecars of a picture, sorted. Each begins with the stem of the
        picture's name.

        `IMG_1.xmp` is of the raw file of this name where there is one beside a JPEG.
        """
        if picture.parent != self._folder:
            self._list(picture.parent)
        stem, suffix = picture.stem, picture.suffix
        found = self._names.get(picture.name, [])
        if suffix.lower() in RAW_SUFFIXES or stem not in self._raws:
            found = found + [
                name for name in self._names.get(stem, ()) if _suffix(name) in _FOR_SUFFIX
            ]
        return sorted(name for name in found if name != picture.name)

    def _list(self, folder: Path) -> None:
        self._folder, self._names, self._raws = folder, {}, set()
        try:
            names = os.listdir(folder)
        except OSError:
            return  # its files can be used by name alone, or it is gone
        pictures = set(names)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in RAW_SUFFIXES:
                self._raws.add(stem)
            elif suffix.lower() in SIDECAR_SUFFIXES:
                self._names.setdefault(stem, []).append(name)
                version = None if stem in pictures else _VERSION.fullmatch(stem)
                if version is not None:
                    self._names.setdefault(version[1] + version[2], []).append(name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
