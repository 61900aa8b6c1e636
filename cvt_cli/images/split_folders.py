"""Folders of labels: a sub-folder for each, in folders for training and validation or without."""

import re
from collections.abc import Mapping
from pathlib import Path

from cvt_cli.images.skipped import is_junk

# Names of folders that tools split data into, in order of preference; in any capitals.
TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("val", "valid", "validation", "dev", "eval", "test", "testing")
_WORD = re.compile(r"[^\W\d_]+")


def find_split(folder: Path) -> tuple[Path, Path | None] | None:
    """Find the folder to train on and the one to validate on, if a folder was split into such.

    `train` and `training` are one if they have sub-folders: else `train` may be a label, as of
    vehicles. A name with such a word in it (`seg_train`, `training_set`) is one only where both
    have a sub-folder of the same name.
    """
    folders = label_folders(folder)

    def first(words: tuple[str, ...], names: Mapping[Path, set[str]]) -> Path | None:
        return next((path for word in words for path in names if word in names[path]), None)

    whole = {path: {path.name.casefold()} for path in folders}
    train = first(TRAINING_FOLDERS, whole)
    if train is not None:
        named = {*TRAINING_FOLDERS, *VALIDATION_FOLDERS}
        if label_folders(train) or all(names & named for names in whole.values()):
            return train, first(VALIDATION_FOLDERS, whole)
    words = {path: {*_WORD.findall(path.name.casefold())} for path in folders}
    train, val = first(TRAINING_FOLDERS, words), first(VALIDATION_FOLDERS, words)
    if train is not None and val is not None and train != val:
        same = {each.name for each in label_folders(train)}
        if same & {each.name for each in label_folders(val)}:
            return train, val
    return None


def left_out(folder: Path, split: tuple[Path, Path | None]) -> list[Path]:
    """List the sub-folders beside those of a split that are no part of it by their names."""
    named = {*TRAINING_FOLDERS, *VALIDATION_FOLDERS}
    return [
        path
        for path in label_folders(folder)
        if path not in split and named.isdisjoint(_WORD.findall(path.name.casefold()))
    ]


def label_folders(folder: Path) -> list[Path]:
    """List the sub-folders, sorted by name, without hidden ones and what systems leave behind."""
    return sorted(
        (
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and not is_junk(path.name) and path.is_dir()
        ),
        key=lambda path: path.name,
    )
