"""The file of `--plot`, checked before anything is computed."""

from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.system.extras import install_hint

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot_file(path: Path, output: Path | None) -> None:
    """Check that a plot can be drawn, before anything else is done.

    Args:
        output: what else is written.

    Raises:
        UsageError: if matplotlib is missing, the suffix is none of `PLOT_SUFFIXES`, or both are one
            file.
    """
    if output is not None and path.resolve() == output.resolve():
        raise UsageError(f"{path}: named by --plot and by --output", hint="give each a file")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(
            f"{path}: the suffix names no format", hint=f"one of {', '.join(PLOT_SUFFIXES)}"
        )
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib", hint=install_hint("plot")) from None
