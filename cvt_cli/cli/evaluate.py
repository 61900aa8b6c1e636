"""`cvt evaluate`: labelled images in, accuracy out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli.cli import options
from cvt_cli.cli.compute_options import DecodeChoice, ExactCompute
from cvt_cli.cli.input_options import Pictures, Reading
from cvt_cli.cli.messages import say
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import (
    REPORT_FORMATS,
    GroupsOption,
    ProgressOption,
    ReportOptions,
    format_option,
    read_groups_option,
)
from cvt_cli.cli.progress import Progress, how_shown
from cvt_cli.cli.sinks import check_not_an_input
from cvt_cli.errors import ExitCode, UsageError
from cvt_cli.records import Record, ScoreKind
from cvt_cli.system.text import counted

if TYPE_CHECKING:
    from cvt_cli.evaluation.judgements import Judgement
    from cvt_cli.evaluation.metrics import Evaluation, UnknownLabel
    from cvt_cli.inference.classifier import Classifier

NAMED = 5
PAGE = "html"
_WITH_TRUTH = {"data", "truth", "format_", "output", "overwrite", "progress"}

EXAMPLES = """\
[bold]Examples[/]

cvt evaluate data/val --model my-cvt

cvt evaluate data/val --model my-cvt -o evaluation.html

cvt evaluate photos/ --labels truth.csv --predictions images.csv

cvt evaluate labels.csv --truth corrections.csv
"""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel(ModelOptions):
    """Options for the model, at its own input size."""

    image_size: None = field(default=None, init=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationCompute(ExactCompute, Pictures):
    """Options for how images go through the network, with the default decoding."""

    decode: DecodeChoice = field(default=DecodeChoice.FAST, init=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ReportOptions):
    """Options for the format of the figures, a page among them."""

    format_: Annotated[
        str | None,
        format_option(
            options.OUTPUT,
            (*REPORT_FORMATS, PAGE),
            help="table, csv, tsv, json or html. Default: by the suffix of --output, else a table.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LabelTables:
    """Options for the files of right labels, where no folders name them."""

    labels: Annotated[
        Path | None,
        options.INPUT.option(
            "--labels",
            metavar="FILE",
            help="A table with the columns path and label: CSV, TSV or JSON Lines, such as an "
            "imagefolder's metadata.csv. For a multi-label model one row per label of an image, "
            "or one with an empty label; or a column of 1 and 0 for each label.",
        ),
    ] = None
    truth: Annotated[
        Path | None,
        options.INPUT.option(
            "--truth",
            metavar="FILE",
            help="The right labels, such as the corrections.csv of a report, or a CSV with the "
            "columns path and label: measures the labels in LABELS, without running a model.",
        ),
    ] = None


@grouped
def evaluate(
    context: typer.Context,
    *,
    data: Annotated[
        Path,
        options.INPUT.argument(
            metavar="FOLDER|LABELS",
            parser=options.named_path,
            help="A folder with a subfolder of images for each label; or with --labels, the "
            "folder its paths are relative to; or with --truth, a file cvt classify wrote.",
        ),
    ],
    tables: LabelTables,
    groups: GroupsOption = None,
    model: EvaluatedModel,
    report: EvaluationReport,
    compute: EvaluationCompute,
    reading: Reading,
    predictions: Annotated[
        Path | None,
        options.OUTPUT.option(
            "--predictions",
            metavar="FILE",
            help="Write one row per image to this .csv or .tsv file: path, truth, prediction, "
            "scores.",
        ),
    ] = None,
    progress: ProgressOption = None,
) -> None:
    """Measure a model on labelled images: accuracy, each label, confusions.

    -o FILE.html makes a page to browse: wrong images first, and a confusion matrix to click.

    For a multi-label model: how well the scores of each label rank the images.

    The truth is one of the model's labels, a synonym, or a WordNet id of ImageNet-1k (n01440764).
    Labels that the model does not have are reported, and not counted.
    """
    from cvt_cli.evaluation.evaluation_tables import evaluation_report, ranked_report
    from cvt_cli.evaluation.metrics import TOP_K, compute_metrics, from_folders, from_table, match
    from cvt_cli.evaluation.ranking import match_several, rank
    from cvt_cli.output.report_tables import write_report

    _check_inputs_stay((data, tables.labels, tables.truth), (report.output, predictions))
    if tables.truth is not None:
        _evaluate_labels(context, data, tables.truth, report=report)
        return
    format_ = _pick_format(report)
    pages = _PerImage(report.output if format_ == PAGE else None, predictions)
    pages.check(report)
    group_rows = read_groups_option(groups)
    labelled = from_folders(data) if tables.labels is None else from_table(data, tables.labels)

    # Torch is loaded only now that all that was typed makes sense.
    classifier = compute.classifier(
        model, images=compute, groups=group_rows, readers=reading.start(context), verify=True
    )
    _check_kind(classifier, by_folder=tables.labels is None)
    quiet, several = context.obj.quiet, classifier.score_kind is ScoreKind.SIGMOID
    if several:
        pages.refuse(classifier.checkpoint.name)
    known, unknown = (match_several if several else match)(
        labelled, classifier.labels, classifier.checkpoint.name, groups=classifier.groups
    )
    if not quiet:
        _name_unknown(unknown)
    compute.settle(classifier, lambda most: min(most, len(known)))
    bar = Progress(how_shown(quiet, progress), lambda: len(known))
    top_k = len(classifier.answers) if several else TOP_K

    def records() -> Iterator[Record]:
        sources = (source for source, _ in known)
        images = classifier.classify(sources, top_k, thumbnails=pages.page is not None)
        for record, target in zip(images, targets, strict=True):
            pages.add(record, target)
            yield record
            bar.add(record.error is not None)

    targets: list[Any] = [target for _, target in known]
    run = classifier.description()
    try:
        if several:
            ranked = rank(records(), targets, classifier.names, unknown=unknown)
            finding, count, errors = ranked_report(ranked, run), ranked.count, ranked.errors
            result = f"mean average precision {ranked.mean_average_precision:.2%}"
        else:
            compared = compute_metrics(records(), targets, classifier.names, unknown=unknown)
            finding, count, errors = (
                evaluation_report(compared, run),
                compared.count,
                compared.errors,
            )
            result = f"top-1 {compared.top1:.2%}"
            pages.write(compared, classifier.names, run)
    finally:
        bar.close()
    if format_ != PAGE:
        write_report(finding, format_, report.output)
    if report.output is not None and not quiet:
        say(f"{report.output}: {counted(count, 'image')}, {result}")
    _name_errors(errors, len(known))


def _check_inputs_stay(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """Check that no file to write is one to read. Raises `UsageError` if one is."""
    names = [str(path) for path in inputs if path is not None]
    for output in outputs:
        if output is not None:
            check_not_an_input(output, names)


def _name_unknown(unknown: "Sequence[UnknownLabel]") -> None:
    """Name the labels that the model does not have."""
    for each in unknown[:NAMED]:
        say(f"not counted: {each.label}, {counted(each.count, 'image')}: {each.reason}")
    if len(unknown) > NAMED:
        say(f"not counted: {counted(len(unknown) - NAMED, 'more label')}")


def _name_errors(errors: Sequence[Record], count: int) -> None:
    """Name the images that could not be read. Raises `typer.Exit` if there are any."""
    for record in errors[:NAMED]:
        say(f"{record.path}: {record.error}")
    if errors:
        say(f"{len(errors)} of {counted(count, 'image')} could not be read")
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def _pick_format(report: ReportOptions) -> str:
    """Return the format of the figures; `PAGE` for a page.

    Raises:
        UsageError: as `Report.pick_format`.
    """
    output = report.output
    by_suffix = report.format_ is None and output is not None and output.suffix.lower() == ".html"
    if not by_suffix and (report.format_ or "").lower() != PAGE:
        return report.pick_format()
    if output is None:
        raise UsageError("html needs --output")
    from cvt_cli.output.report_tables import check_new

    check_new(output, report.overwrite)
    return PAGE


@dataclass
class _PerImage:
    """The files with a row or a card per image: a page, a table, or neither.

    Attributes:
        page: the file of the page; None for none.
        table: the file of the table; None for none.
    """

    page: Path | None
    table: Path | None
    _judgements: "list[Judgement]" = field(default_factory=list, init=False)
    _right: int = field(default=0, init=False)

    def check(self, report: ReportOptions) -> None:
        """Check that the table can be written beside the report. Raises `UsageError` if not."""
        if self.table is None:
            return
        from cvt_cli.output.report_tables import check_new

        other = report.output is not None and os.path.realpath(report.output)
        is_shared = os.path.realpath(self.table) == other
        if is_shared or self.table.suffix.lower() not in (".csv", ".tsv"):
            raise UsageError(f"--predictions {self.table}: a .csv or .tsv of its own")
        check_new(self.table, report.overwrite)

    def refuse(self, model: str) -> None:
        """Raise `UsageError` if anything is to be written: an image has several labels."""
        if self.page is not None or self.table is not None:
            raise UsageError(
                f"{model} has several labels at once: a page and --predictions are for one label "
                "per image",
                hint="-o evaluation.json has the figures, cvt classify -o report.html the images",
            )

    def add(self, record: Record, target: Any) -> None:
        """Keep what is to be written of an image."""
        if self.page is None and self.table is None:
            return
        from cvt_cli.evaluation.evaluation_page import keeps_thumbnail
        from cvt_cli.evaluation.judgements import Judgement

        judgement = Judgement.of(record, target)
        if not keeps_thumbnail(judgement, self._right):
            judgement = replace(judgement, thumbnail=None)
        self._right += judgement.is_correct
        self._judgements.append(judgement)

    def write(
        self, evaluation: "Evaluation", names: Sequence[str], run: Mapping[str, object]
    ) -> None:
        """Write the files. Raises `CvtError` if one can't be written."""
        from cvt_cli.evaluation.evaluation_page import write_page
        from cvt_cli.evaluation.judgements import judgements_report
        from cvt_cli.output.report_tables import write_report

        if self.page is not None:
            write_page(self.page, evaluation, self._judgements, names=names, run=run)
        if self.table is not None:
            format_ = self.table.suffix.lower().removeprefix(".")
            write_report(judgements_report(self._judgements, names), format_, self.table)


def _evaluate_labels(
    context: typer.Context,
    labels: Path,
    truth: Path,
    *,
    report: ReportOptions,
) -> None:
    """Measure labels that were written before, without running a model.

    Raises:
        UsageError: if an option was typed that only a model or images have a use for, or a file
            can't be read.
    """
    from cvt_cli.evaluation.evaluation_tables import evaluation_report
    from cvt_cli.evaluation.truth import compare_rows
    from cvt_cli.output.read_back import read_rows
    from cvt_cli.output.report_tables import write_report

    typed = [
        option for name, option in options.typed_options(context).items() if name not in _WITH_TRUTH
    ]
    if typed:
        raise UsageError(
            f"--truth can't be combined with {', '.join(typed)}",
            hint="it measures labels and runs no model",
        )
    format_ = _pick_format(report)
    if format_ == PAGE:
        raise UsageError(
            "--truth makes no page, which needs the images",
            hint="-o evaluation.json has the figures",
        )
    compared = compare_rows(read_rows(labels), read_rows(truth))
    run = {"labels": str(labels), "truth": str(truth)}
    write_report(evaluation_report(compared, run), format_, report.output)
    if report.output is not None and not context.obj.quiet:
        images = counted(compared.count, "image")
        say(f"{report.output}: {images}, top-1 {compared.top1:.2%}")


def _check_kind(classifier: "Classifier", by_folder: bool) -> None:
    """Check that such labels can measure such a model. Raises `UsageError` if not."""
    name = classifier.checkpoint.name
    if classifier.score_kind is ScoreKind.RAW:
        raise UsageError(
            f"{name} is a regression, and cvt evaluate measures labels",
            hint="cvt classify -o values.csv writes its values",
        )
    several = classifier.score_kind is ScoreKind.SIGMOID and len(classifier.labels) > 1
    if several and by_folder:
        raise UsageError(
            f"{name} has several labels at once, and an image lies in one folder",
            hint="--labels names a CSV file with a row path,label for each label of an image",
        )
