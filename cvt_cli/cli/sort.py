"""`cvt sort`: labels in, files in a folder for each label out."""

import os
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.cli import options
from cvt_cli.cli.labels_file import (
    NAMED_FAILURES,
    Elsewhere,
    LabelsArgument,
    LabelsFile,
    LabelsFormatOption,
    with_checked_scores,
)
from cvt_cli.cli.look_first import OrderOptions, print_order
from cvt_cli.cli.messages import say
from cvt_cli.cli.option_groups import Panel, grouped
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.output_options import ProgressOption
from cvt_cli.cli.progress import Progress, Shown, how_shown
from cvt_cli.errors import ExitCode, Interrupted, UsageError
from cvt_cli.system.text import counted, visible

if TYPE_CHECKING:
    from cvt_cli.sorting.placing import Outcome

EXAMPLES = """\
[bold]Examples[/]

cvt sort labels.csv sorted/ --dry-run

cvt sort labels.csv sorted/ --link --min-score 0.3

cvt sort labels.csv sorted/ --move && cvt sort --undo sorted/

jq -c 'select(.error == null)' labels.jsonl | cvt sort - sorted/ -f jsonl

cvt sort features.parquet --order diverse --first 100 > look.txt
"""

ACTIONS = Panel("What is done")


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Options for what is done with the files."""

    move: Annotated[bool, ACTIONS.option("--move", help="Move the files.")] = False
    link: Annotated[bool, ACTIONS.option("--link", help="Make hard links.")] = False
    symlink: Annotated[bool, ACTIONS.option("--symlink", help="Make symbolic links.")] = False
    undo: Annotated[
        bool,
        ACTIONS.option(
            "--undo",
            help="Put back what --move moved into a folder, which is named alone: cvt sort --undo "
            "sorted/.",
        ),
    ] = False
    dry_run: Annotated[
        bool, ACTIONS.option("--dry-run", "-n", help="Change nothing; print what would happen.")
    ] = False
    min_score: Annotated[
        float | None,
        ACTIONS.option(
            "--min-score",
            metavar="SCORE",
            help="Put files whose best score is lower into _uncertain: 0 to 1 (any number for "
            "a regression).",
        ),
    ] = None


@grouped
def sort(
    context: typer.Context,
    *,
    labels: LabelsArgument,
    folder: Annotated[
        Path | None,
        options.OUTPUT.argument(
            metavar="DIR",
            parser=options.named_path,
            help="Where the folders go: one per label, and _uncertain for files without one.",
        ),
    ] = None,
    placing: Placing,
    wanted: OrderOptions,
    format_: LabelsFormatOption = None,
    progress: ProgressOption = None,
) -> None:
    """Copy, move or link files into a folder for each label.

    The default is to copy. Nothing is overwritten: a file whose name is taken gets a number.
    Sidecars (.xmp, .aae, .pp3, .arp, .dop) go with their picture. Files that could not be
    classified stay where they are. Run it again to continue.

    --order sorts the list instead: which pictures to look at first.
    """
    options.named_path(labels)
    if placing.undo:
        others = [*_given(placing), *_given(wanted), *(["--format"] if format_ else [])]
        _check_undo(labels, folder, others)
        _undo(Path(labels), context.obj, progress, dry_run=placing.dry_run)
        return
    _check_mode(folder, placing, wanted)
    if wanted.order is not None:
        print_order(labels, format_, wanted, quiet=context.obj.quiet)
        return
    assert folder is not None
    if placing.move + placing.link + placing.symlink > 1:
        raise UsageError("--move, --link and --symlink exclude each other")
    document = LabelsFile(labels, format_)
    # os.path, because Path raises an error for a name that is too long or not permitted.
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{folder} is not a folder")
    how = how_shown(context.obj.quiet, progress)
    _place(document, folder, placing, how=how, quiet=context.obj.quiet)


def _place(
    document: LabelsFile, folder: Path, placing: Placing, *, how: Shown | bool, quiet: bool
) -> None:
    """Sort the files of a list into a folder, and print what became of them."""
    from cvt_cli.sorting.placing import Action, Sorter, SortStatus

    chosen = {
        Action.MOVE: placing.move,
        Action.LINK: placing.link,
        Action.SYMLINK: placing.symlink,
    }
    action = next((each for each, wanted in chosen.items() if wanted), Action.COPY)
    dry_run = placing.dry_run
    tally = _Tally()
    elsewhere = Elsewhere()
    bar = Progress(how, document.count)
    sorter = Sorter(folder, action, placing.min_score, dry_run=dry_run)
    try:
        for outcome in sorter.sort(with_checked_scores(document.records(), placing.min_score)):
            tally.add(outcome)
            bar.add(outcome.status is SortStatus.FAILED)
            with bar.paused():
                is_failed = outcome.status is SortStatus.FAILED
                for path, error in elsewhere.named(
                    outcome.path,
                    outcome.error if is_failed else None,
                    is_there=outcome.status is not SortStatus.LEFT,
                ):
                    say(f"{path}: {error}")
                if outcome.status is SortStatus.DONE and dry_run:
                    print(f"{visible(outcome.path)} -> {visible(str(outcome.target))}")
                if dry_run:
                    for sidecar, place in outcome.sidecars:
                        print(f"{visible(str(sidecar))} -> {visible(str(place))}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {counted(tally.new, 'file')}; run the same command again to "
            "continue"
        ) from None
    finally:
        bar.close()
    elsewhere.check(document.name)
    if not dry_run:
        tally.print()
    if not quiet:
        done = f"would {action.value}" if dry_run else _PAST[action.value]
        say(f"{folder}: {done} {tally.in_words()}")
        if action is Action.MOVE and tally.new and not dry_run and sys.stderr.isatty():
            say(f"to put them back: cvt sort --undo {shlex.quote(str(folder))}")
    if tally.failed:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def _check_undo(labels: str, folder: Path | None, given: list[str]) -> None:
    """Raise `UsageError` where --undo comes with more than a folder and --dry-run."""
    if folder is not None:
        raise UsageError(
            "--undo takes the folder alone", hint=f"cvt sort --undo {shlex.quote(str(folder))}"
        )
    others = [name for name in given if name not in ("--undo", "--dry-run")]
    if others:
        raise UsageError(f"--undo can't be combined with {', '.join(others)}")
    if not os.path.isdir(labels):
        is_file = os.path.exists(labels)
        raise UsageError(
            f"{labels}: {'not a folder' if is_file else 'no such folder'}",
            hint="name the folder that files were moved into: cvt sort --undo sorted/",
        )


def _undo(folder: Path, settings: GlobalOptions, progress: bool | None, *, dry_run: bool) -> None:
    """Put back what was moved into a folder, and print what became of it."""
    from cvt_cli.sorting.moved import undo

    count, failed = 0, 0
    bar = Progress(how_shown(settings.quiet, progress), lambda: None)
    try:
        for each in undo(folder, dry_run=dry_run):
            bar.add(bool(each.error))
            count += not each.error
            failed += bool(each.error)
            with bar.paused():
                if each.error and failed <= NAMED_FAILURES:
                    say(f"{visible(str(each.file))}: {each.error}")
                elif dry_run and not each.error:
                    print(f"{visible(str(each.file))} -> {visible(str(each.origin))}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {counted(count, 'file')}; run the same command again to continue"
        ) from None
    finally:
        bar.close()
    if not settings.quiet:
        done = "would move" if dry_run else "moved"
        more = failed - NAMED_FAILURES
        unnamed = f", {more} of them not named here" if more > 0 else ""
        stay = f"; {failed} stay{unnamed}" if failed else ""
        say(f"{folder}: {done} {counted(count, 'file')} back{stay}")
    if failed:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def _given(group: "Placing | OrderOptions") -> list[str]:
    """Name the options of a group that are not left at their defaults."""
    return [
        "--" + each.name.replace("_", "-")
        for each in fields(group)
        if getattr(group, each.name) != each.default
    ]


def _check_mode(folder: Path | None, placing: Placing, wanted: OrderOptions) -> None:
    """Raise `UsageError` where options of --order and of folders are mixed, or neither is named."""
    ordering, placed = _given(wanted), _given(placing)
    if wanted.order is None:
        if ordering:
            raise UsageError(f"{ordering[0]} needs --order")
        if folder is None:
            raise UsageError(
                "no folder to sort into is named", hint="cvt sort LABELS DIR, or use --order"
            )
        return
    if folder is not None:
        raise UsageError("--order prints a list and sorts into no folder", hint="leave DIR out")
    if placed:
        raise UsageError(f"--order can't be combined with {', '.join(placed)}")


_PAST = {"copy": "copied", "move": "moved", "link": "linked", "symlink": "linked"}


class _Tally:
    """Counts what became of the files."""

    def __init__(self) -> None:
        # For each folder: how many files belong there, and how many of them are new.
        self._folders: dict[str, list[int]] = {}
        self._left = 0
        self._sidecars = 0
        self.failed = 0
        self.new = 0

    def add(self, outcome: "Outcome") -> None:
        from cvt_cli.sorting.placing import SortStatus

        self._left += outcome.status is SortStatus.LEFT
        self.failed += outcome.status is SortStatus.FAILED
        self._sidecars += len(outcome.sidecars)
        if outcome.target is not None:
            new = outcome.status is SortStatus.DONE
            counts = self._folders.setdefault(outcome.folder, [0, 0])
            counts[0] += 1
            counts[1] += new
            self.new += new

    def in_words(self) -> str:
        text = counted(self.new, "file")
        if self._sidecars:
            text += f" and {counted(self._sidecars, 'sidecar')}"
        text += f" into {counted(len(self._folders), 'folder')}"
        there = sum(files - new for files, new in self._folders.values())
        if there:
            text += f"; {there} already there"
        if self._left:
            text += f"; {self._left} without a result stay where they are"
        if self.failed:
            more = self.failed - NAMED_FAILURES
            text += f"; {self.failed} failed"
            text += f", {more} of them not named here" if more > 0 else ""
        return text

    def print(self) -> None:
        """Print the counts of each folder: a table on a terminal, else tab-separated lines."""
        rows = sorted(self._folders.items())
        if not sys.stdout.isatty():
            for name, (files, new) in rows:
                print(f"{visible(name)}\t{files}\t{new}")
        elif rows:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(box=None, pad_edge=False)
            table.add_column("folder", overflow="fold")
            table.add_column("files", justify="right")
            table.add_column("new", justify="right")
            for name, counts in rows:
                table.add_row(Text(visible(name)), *map(str, counts))
            Console(highlight=False).print(table)
