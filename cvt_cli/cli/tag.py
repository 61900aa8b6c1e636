"""`cvt tag`: labels in, keywords in the metadata of the pictures out."""

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.cli.labels_file import (
    NAMED_FAILURES,
    Elsewhere,
    LabelsArgument,
    LabelsFile,
    LabelsFormatOption,
    with_checked_scores,
)
from cvt_cli.cli.messages import say
from cvt_cli.cli.option_groups import Panel, grouped
from cvt_cli.cli.output_options import ProgressOption, read_groups_option
from cvt_cli.cli.progress import Progress, how_shown
from cvt_cli.errors import ExitCode, Interrupted, UsageError
from cvt_cli.system.extras import install_hint
from cvt_cli.system.text import counted, visible

if TYPE_CHECKING:
    from cvt_cli.tagging.keywords import Choice
    from cvt_cli.tagging.tagger import Tagged

EXAMPLES = """\
[bold]Examples[/]

cvt tag labels.csv --min-score 0.5

cvt tag labels.csv --groups imagenet --prefix auto --dry-run

cvt tag labels.csv --embed --keep-dates

cvt tag labels.csv --remove
"""

KEYWORDS = Panel("Keywords")
PLACE = Panel("Where they go")


@dataclass(frozen=True, kw_only=True)
class Keywords:
    """Options for the labels that become keywords."""

    top_k: Annotated[
        int | None,
        KEYWORDS.option(
            "--top-k", "-k", min=1, help="Labels of each picture, at most. Default: 1."
        ),
    ] = None
    min_score: Annotated[
        float | None,
        KEYWORDS.option(
            "--min-score",
            metavar="SCORE",
            help="Lowest score of a label: 0 to 1 (any number for a regression).",
        ),
    ] = None
    groups: Annotated[
        str | None,
        KEYWORDS.option(
            "--groups",
            metavar="FILE|imagenet",
            help="Put each label below its group, as in animal/cat: a file with a label or WordNet "
            "id, a tab and its group in each line.",
        ),
    ] = None
    prefix: Annotated[
        str,
        KEYWORDS.option(
            "--prefix",
            metavar="LEVELS",
            help="Put all keywords below this one, as in auto/cat; / or | separates levels.",
        ),
    ] = ""
    remove: Annotated[
        bool,
        KEYWORDS.option("--remove", help="Remove the keywords that cvt tag added."),
    ] = False

    def choice(self) -> "Choice | None":
        """Return the rules for keywords; None to remove keywords.

        Raises:
            UsageError: if --groups can't be read, or options exclude each other.
        """
        from cvt_cli.tagging.keywords import Choice, group_finder

        if self.remove:
            given = (self.top_k, self.min_score, self.groups, self.prefix or None)
            for name, value in zip(("top-k", "min-score", "groups", "prefix"), given, strict=True):
                if value is not None:
                    raise UsageError(f"--remove and --{name} exclude each other")
            return None
        rows = read_groups_option(self.groups)
        return Choice(
            top_k=self.top_k or 1,
            min_score=self.min_score,
            prefix=self.prefix,
            group_of=group_finder(rows or []),
        )


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Options for where the keywords go."""

    sidecar: Annotated[
        str | None,
        PLACE.option(
            "--sidecar",
            metavar="PROGRAM",
            help="darktable: IMG_1.jpg.xmp, which digiKam reads too. lightroom: IMG_1.xmp, of raw "
            "files alone. Default: darktable.",
        ),
    ] = None
    embed: Annotated[
        bool,
        PLACE.option(
            "--embed",
            help="Write into the pictures: JPEG, TIFF, PNG, WebP, JPEG 2000, PSD, DNG, CR2, NEF, "
            "ORF, PEF; others get a sidecar. Needs exiv2, which is under the GPL.",
        ),
    ] = False
    keep_dates: Annotated[
        bool,
        PLACE.option(
            "--keep-dates",
            help="Keep the dates of files; programs notice changes by them.",
        ),
    ] = False
    dry_run: Annotated[
        bool, PLACE.option("--dry-run", "-n", help="Change nothing; print what would happen.")
    ] = False


@grouped
def tag(
    context: typer.Context,
    *,
    labels: LabelsArgument,
    format_: LabelsFormatOption = None,
    keywords: Keywords,
    writing: Writing,
    progress: ProgressOption = None,
) -> None:
    """Write labels as keywords where photo programs look for them.

    They go into an XMP sidecar beside each picture, or into the picture itself. Other metadata and
    the pixels stay as they are. Run again with other labels, it replaces only its own keywords.
    """
    document = LabelsFile(labels, format_)
    choice = keywords.choice()
    if writing.sidecar not in (None, "darktable", "lightroom"):
        raise UsageError(f"--sidecar {writing.sidecar}: darktable or lightroom")
    if writing.embed and find_spec("exiv2") is None:
        raise UsageError("--embed needs exiv2, which is not installed", hint=install_hint("tag"))

    from cvt_cli.tagging.sidecar import Naming
    from cvt_cli.tagging.tagger import Tagger, TagStatus

    quiet, dry_run = context.obj.quiet, writing.dry_run
    tagger = Tagger(
        choice=choice,
        embed=writing.embed,
        naming=Naming(writing.sidecar or "darktable"),
        model=document.model(),
        keep_dates=writing.keep_dates,
        dry_run=dry_run,
    )
    tally = _Tally()
    elsewhere = Elsewhere()
    bar = Progress(how_shown(quiet, progress), document.count)
    try:
        for tagged in tagger.tag(with_checked_scores(document.records(), keywords.min_score)):
            tally.add(tagged)
            is_failed = tagged.status is TagStatus.FAILED
            bar.add(is_failed)
            error = tagged.error if is_failed else None
            is_there = tagged.status is not TagStatus.LEFT
            with bar.paused():
                for path, reason in elsewhere.named(tagged.path, error, is_there=is_there):
                    say(f"{visible(path)}: {reason}")
                if tally.is_new_kind(tagged) and not quiet:
                    kind = tally.kind(tagged)
                    say(f"{kind} files get a sidecar: {tagged.instead}")
                if dry_run and tagged.status in (TagStatus.DONE, TagStatus.CLEARED):
                    words = ", ".join(each.joined("/") for each in tagged.keywords) or "nothing"
                    print(f"{visible(str(tagged.target))}: {visible(words)}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {counted(tally.done, 'file')}; run the same command again to "
            "continue"
        ) from None
    finally:
        bar.close()
    elsewhere.check(labels)
    if not quiet:
        would = "would have " if dry_run else ""
        say(f"{labels}: {would}{tally.in_words(remove=keywords.remove)}")
    if tally.failed:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


class _Tally:
    """Counts what became of the pictures."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._kinds: set[str] = set()

    @property
    def done(self) -> int:
        return self._counts["done"] + self._counts["cleared"]

    @property
    def failed(self) -> int:
        return self._counts["failed"]

    def add(self, tagged: "Tagged") -> None:
        self._counts[tagged.status.value] += 1

    def kind(self, tagged: "Tagged") -> str:
        """Return the kind of a picture: its suffix."""
        name = tagged.path.rpartition("/")[2]
        return visible(f".{name.rpartition('.')[2].lower()}" if "." in name else name)

    def is_new_kind(self, tagged: "Tagged") -> bool:
        """Tell whether a picture is the first of its kind that got a sidecar in place of embedded
        keywords."""
        kind = self.kind(tagged)
        if not tagged.instead or kind in self._kinds:
            return False
        self._kinds.add(kind)
        return True

    def in_words(self, *, remove: bool) -> str:
        cleared, none = self._counts["cleared"], self._counts["none"]
        if remove:
            text = f"untagged {counted(cleared, 'picture')}"
            text += f"; {none} had no keywords of cvt tag" if none else ""
        else:
            text = f"tagged {counted(self._counts['done'], 'picture')}"
            text += f" and untagged {cleared}" if cleared else ""
            text += f"; {none} have no label that is wanted" if none else ""
        if there := self._counts["there"]:
            text += f"; {there} already up to date"
        if left := self._counts["left"]:
            text += f"; {left} without a result stay as they are"
        if self.failed:
            more = self.failed - NAMED_FAILURES
            text += f"; {self.failed} failed"
            text += f", {more} of them not named here" if more > 0 else ""
        return text
