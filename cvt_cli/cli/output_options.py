"""Options for what a command writes, and where.

An option that is in more than one group is an alias here, such as `OverwriteOption`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cvt_cli.cli.completion import one_of
from cvt_cli.cli.option_groups import Panel
from cvt_cli.cli.options import OUTPUT

if TYPE_CHECKING:
    from cvt_cli.checkpoint.group_table import GroupedLabel

# Formats of reports, as `output.report_tables` writes them; importing that loads rich.
REPORT_FORMATS = ("table", "csv", "tsv", "json")


def read_groups_option(name: str | None) -> "list[GroupedLabel] | None":
    """Read the table that --groups names; None for none.

    Raises:
        UsageError: if it can't be read, or has no group.
    """
    if name is None:
        return None
    from cvt_cli.checkpoint.group_table import read_groups

    return read_groups(name)


def output_option(*, help: str, metavar: str = "FILE", **settings: Any) -> Any:
    """Declare `--output`."""
    return OUTPUT.option("--output", "-o", metavar=metavar, help=help, **settings)


def format_option(panel: Panel, formats: Sequence[str], *, help: str) -> Any:
    """Declare `--format` of a command that knows these formats."""
    complete = one_of(*formats)
    return panel.option("--format", "-f", metavar="FORMAT", help=help, autocompletion=complete)


OutputOption = Annotated[
    Path | None,
    output_option(
        help="Write to this file instead of standard output; it appears complete or not at all.",
    ),
]
ResumeOption = Annotated[
    bool,
    OUTPUT.option("--resume", help="Continue an interrupted --output with what is missing."),
]
UpdateOption = Annotated[
    bool,
    OUTPUT.option(
        "--update",
        help="Bring a finished --output up to date: keep the rows of unchanged files, redo"
        " those that are new, changed or failed.",
    ),
]
PruneOption = Annotated[
    bool,
    OUTPUT.option(
        "--prune",
        help="With --update: drop the rows of files that are gone from the named folders.",
    ),
]
OverwriteOption = Annotated[
    bool,
    OUTPUT.option(
        "--overwrite", help="Replace existing files, or restart an interrupted --output."
    ),
]
ReplaceOption = Annotated[
    bool, OUTPUT.option("--overwrite", help="Replace files that are there already.")
]
RunRecordOption = Annotated[
    Path | None,
    OUTPUT.option(
        "--run-record",
        metavar="FILE",
        help="Write a record of the run to this file, as JSON: model, options, versions, "
        "times, counts.",
    ),
]
ProgressOption = Annotated[
    bool | None,
    OUTPUT.option(
        "--progress/--no-progress",
        help="Show a progress bar on stderr. Default: on a terminal; elsewhere one line "
        "per minute.",
    ),
]
ReportFormatOption = Annotated[
    str | None,
    format_option(
        OUTPUT,
        REPORT_FORMATS,
        help="table, csv, tsv or json. Default: by the suffix of --output, else a table.",
    ),
]
ErrorsOption = Annotated[
    Path | None,
    OUTPUT.option(
        "--errors",
        metavar="FILE",
        help="Write the inputs that could not be read to this file, one per line, as "
        "--files-from reads them; with --null, each ends with NUL.",
    ),
]
GroupsOption = Annotated[
    str | None,
    OUTPUT.option(
        "--groups",
        metavar="FILE|imagenet",
        help="Answer with groups of labels and add up their scores: imagenet for about 120"
        " everyday groups (cat, bird, car) of ImageNet's labels, or a file whose "
        "lines are a label or WordNet id, a tab and a group. Labels in no group stand"
        " for themselves.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options for the format of a report, and where it goes."""

    format_: ReportFormatOption = None
    output: OutputOption = None
    overwrite: ReplaceOption = False

    def pick_format(self) -> str:
        """Return the requested format, or else that of the file's suffix.

        Raises:
            UsageError: if there is no such format, or the file can't be written.
        """
        from cvt_cli.output.report_tables import check_new, pick_format

        check_new(self.output, self.overwrite)
        return pick_format(self.format_, self.output)
