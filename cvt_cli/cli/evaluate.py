"""`cvt evaluate`: labelled images in, accuracy out."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.cli import options
from cvt_cli.cli.groups import grouped
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import Progress
from cvt_cli.errors import ExitCode
from cvt_cli.system.text import counted

NAMED = 5

EXAMPLES = """\
[bold]Examples[/]

cvt evaluate data/val --model my-cvt

cvt evaluate photos/ --labels truth.csv -o evaluation.json
"""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel(options.ModelOptions):
    """The checkpoint, at its own input size."""

    image_size: None = field(default=None, init=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationCompute(options.ExactCompute):
    """How images go through the network, decoded as by default."""

    decode: options.DecodeChoice = field(default=options.DecodeChoice.FAST, init=False)


@grouped
def evaluate(
    context: typer.Context,
    *,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Has a sub-folder of images for each label, named by it; or with --labels, the "
            "folder that its paths start from.",
            show_default=False,
            rich_help_panel=options.INPUT,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSV file with the columns path and label.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    model: EvaluatedModel,
    report: options.Report,
    compute: EvaluationCompute,
    progress: options.ProgressOption = None,
) -> None:
    """Measure a model on labelled images: accuracy, each label, what is taken for what.

    A label is one of the model's or one of its synonyms, or a WordNet id (n01440764) of
    ImageNet-1k. Labels that the model does not have are reported and not counted.
    """
    from cvt_cli.evaluation.evaluation_tables import evaluation_report
    from cvt_cli.evaluation.metrics import TOP_K, from_csv, from_folders, match
    from cvt_cli.evaluation.metrics import evaluate as compare
    from cvt_cli.output.tables import write_report

    format_ = report.pick_format()
    labelled = from_folders(data) if labels is None else from_csv(data, labels)

    # Torch is loaded only now that all that was typed makes sense.
    classifier = compute.classifier(model)
    quiet = context.obj.quiet
    known, unknown = match(labelled, classifier.labels)
    for each in () if quiet else unknown[:NAMED]:
        say(f"not counted: {each.label}, {counted(each.count, 'image')}: {each.reason}")
    if len(unknown) > NAMED and not quiet:
        say(f"not counted: {counted(len(unknown) - NAMED, 'more label')}")

    shown = sys.stderr.isatty() if progress is None else progress
    bar = Progress(shown and not quiet, lambda: len(known))
    records = []
    try:
        for record in classifier.classify((source for source, _ in known), TOP_K):
            records.append(record)
            bar.add(record.error is not None)
    finally:
        bar.close()
    targets = [target for _, target in known]
    evaluation = compare(records, targets, classifier.labels, unknown)
    write_report(evaluation_report(evaluation, classifier.description()), format_, report.output)
    if report.output is not None and not quiet:
        say(f"{report.output}: {counted(evaluation.count, 'image')}, top-1 {evaluation.top1:.2%}")
    for record in () if quiet else evaluation.errors[:NAMED]:
        say(f"{record.path}: {record.error}")
    if evaluation.errors:
        if not quiet:
            of = counted(len(known), "image")
            say(f"{len(evaluation.errors)} of {of} could not be read")
        raise typer.Exit(ExitCode.INPUTS_FAILED)
