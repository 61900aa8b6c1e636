"""`cvt evaluate`: labelled images in, accuracy out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli.cli import options
from cvt_cli.cli.groups import grouped
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import Progress, how_shown
from cvt_cli.errors import ExitCode, UsageError
from cvt_cli.records import Record, ScoreKind
from cvt_cli.system.text import counted

if TYPE_CHECKING:
    from cvt_cli.inference.classifier import Classifier

NAMED = 5

EXAMPLES = """\
[bold]Examples[/]

cvt evaluate data/val --model my-cvt

cvt evaluate photos/ --labels truth.csv -o evaluation.json
"""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel(options.ModelOptions):
    """Options for the model, at its own input size."""

    image_size: None = field(default=None, init=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationCompute(options.ExactCompute):
    """Options for how images go through the network, with the default decoding."""

    decode: options.DecodeChoice = field(default=options.DecodeChoice.FAST, init=False)


@grouped
def evaluate(
    context: typer.Context,
    *,
    data: Annotated[
        Path,
        options.INPUT.argument(
            metavar="FOLDER",
            help="Has a sub-folder of images for each label, named by it; or with --labels, the "
            "folder that its paths start from.",
        ),
    ],
    labels: Annotated[
        Path | None,
        options.INPUT.option(
            "--labels",
            metavar="FILE",
            help="A CSV file with the columns path and label; for a model of several labels at "
            "once a row for each label of an image, or one with an empty label.",
        ),
    ] = None,
    groups: options.GroupsOption = None,
    model: EvaluatedModel,
    report: options.ReportOptions,
    compute: EvaluationCompute,
    reading: options.Reading,
    progress: options.ProgressOption = None,
) -> None:
    """Measure a model on labelled images: accuracy, each label, what is taken for what.

    Of a model of several labels at once: how well each label's scores rank the images.

    A label is one of the model's or one of its synonyms, or a WordNet id (n01440764) of
    ImageNet-1k. Labels that the model does not have are reported and not counted.
    """
    from cvt_cli.evaluation.evaluation_tables import evaluation_report, ranked_report
    from cvt_cli.evaluation.metrics import TOP_K, from_csv, from_folders, match
    from cvt_cli.evaluation.metrics import evaluate as compare
    from cvt_cli.evaluation.ranking import match_several, rank
    from cvt_cli.output.report_tables import write_report

    format_ = report.pick_format()
    group_rows = options.read_groups_option(groups)
    labelled = from_folders(data) if labels is None else from_csv(data, labels)

    # Torch is loaded only now that all that was typed makes sense.
    classifier = compute.classifier(model, groups=group_rows, readers=reading.start(context))
    _check_kind(classifier, by_folder=labels is None)
    quiet = context.obj.quiet
    several = classifier.score_kind is ScoreKind.SIGMOID
    known, unknown = (match_several if several else match)(
        labelled, classifier.labels, classifier.checkpoint.name, groups=classifier.groups
    )
    for each in () if quiet else unknown[:NAMED]:
        say(f"not counted: {each.label}, {counted(each.count, 'image')}: {each.reason}")
    if len(unknown) > NAMED and not quiet:
        say(f"not counted: {counted(len(unknown) - NAMED, 'more label')}")

    bar = Progress(how_shown(quiet, progress), lambda: len(known))
    top_k = len(classifier.answers) if several else TOP_K

    def records() -> Iterator[Record]:
        for record in classifier.classify((source for source, _ in known), top_k):
            yield record
            bar.add(record.error is not None)

    targets: list[Any] = [target for _, target in known]
    run = classifier.description()
    errors: tuple[Record, ...]
    try:
        if several:
            ranked = rank(records(), targets, classifier.names, unknown=unknown)
            finding, count, errors = ranked_report(ranked, run), ranked.count, ranked.errors
            result = f"mean average precision {ranked.mean_average_precision:.2%}"
        else:
            compared = compare(records(), targets, classifier.names, unknown=unknown)
            finding, count, errors = (
                evaluation_report(compared, run),
                compared.count,
                compared.errors,
            )
            result = f"top-1 {compared.top1:.2%}"
    finally:
        bar.close()
    write_report(finding, format_, report.output)
    if report.output is not None and not quiet:
        say(f"{report.output}: {counted(count, 'image')}, {result}")
    for record in () if quiet else errors[:NAMED]:
        say(f"{record.path}: {record.error}")
    if errors:
        if not quiet:
            say(f"{len(errors)} of {counted(len(known), 'image')} could not be read")
        raise typer.Exit(ExitCode.INPUTS_FAILED)


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
