"""Extras: packages that only some uses need, and how to install them."""

import re
from functools import cache

PACKAGE = "cvt-cli"
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
# Extras for working on the project.
_INTERNAL = {"dev"}


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """Return the extras of this installation and the requirements of each, in pip's form; empty if
    cvt runs without having been installed."""
    from importlib.metadata import PackageNotFoundError, metadata, requires  # slow to import

    try:
        names = metadata(PACKAGE).get_all("Provides-Extra") or []
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {name: [] for name in names if name not in _INTERNAL}
    for line in lines:
        requirement, _, marker = line.partition(";")
        if (extra := _EXTRA.search(marker)) and extra[1] in found:
            found[extra[1]].append(requirement.strip())
    return {name: tuple(needed) for name, needed in found.items()}


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    It names the packages themselves, not `cvt-cli[extra]`: that works for every way in which cvt
    may have been installed, and asks no index for a name that may be somebody else's.
    """
    needed = extras().get(extra, ())
    if not needed:
        return f'pip install ".[{extra}]" in a checkout of cvt'
    return "pip install " + " ".join(f'"{requirement}"' for requirement in needed)
