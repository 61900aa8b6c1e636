"""`cvt embed`: image files in, the vectors behind their labels out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.cli import run, sinks
from cvt_cli.cli.compute_options import ExactCompute
from cvt_cli.cli.errors_file import ErrorsFile
from cvt_cli.cli.input_options import Input, Reading
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import (
    ErrorsOption,
    OverwriteOption,
    ProgressOption,
    PruneOption,
    ResumeOption,
    RunRecordOption,
    UpdateOption,
    output_option,
)
from cvt_cli.cli.run_record import check_run_record
from cvt_cli.errors import UsageError
from cvt_cli.images.find import check_inputs, count_sources, find
from cvt_cli.images.source import Source
from cvt_cli.output import EMBEDDING_FORMATS, embedding_writer_class, format_of_file
from cvt_cli.output.update import Pruning
from cvt_cli.records import RecordShape
from cvt_cli.system.files import check_file, check_name

EXAMPLES = """\
[bold]Examples[/]

cvt embed photos/ -o features.parquet

cvt embed photos/ -o features.npy --model microsoft/cvt-21

cvt embed photos/ -o features.npy --update
"""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsOutput:
    """Options for the file of embeddings."""

    output: Annotated[
        Path,
        output_option(
            help=".parquet: columns path, embedding (a list), error. .npy: one row "
            "per input, NaN for errors; paths and errors go to .paths.txt and .errors.txt"
            " beside it."
        ),
    ]
    resume: ResumeOption = False
    update: UpdateOption = False
    prune: PruneOption = False
    overwrite: OverwriteOption = False
    run_record: RunRecordOption = None
    errors: ErrorsOption = None
    progress: ProgressOption = None


@grouped
def embed(
    context: typer.Context,
    *,
    output: EmbeddingsOutput,
    images: Input,
    model: ModelOptions,
    compute: ExactCompute,
    reading: Reading,
) -> None:
    """Turn images into vectors for search and clustering.

    A vector is the class token after the last norm, the input of the layer that computes the
    scores: 384 float32 numbers for CvT-13 and CvT-21, 1024 for CvT-W24.
    """
    path, resume, overwrite = output.output, output.resume, output.overwrite
    update = output.update
    check_name(path)
    format_ = format_of_file(path, EMBEDDING_FORMATS)
    _ = model.input_size, images.background_colour
    writer = embedding_writer_class(format_)
    check_inputs(images.paths, images.search)
    sinks.unfinished([path], resume and not (overwrite or update))
    sinks.check_targets(
        [(path, writer)], images.paths, resume=resume, overwrite=overwrite, update=update
    )
    sinks.check_prune(output.prune, update)
    beside = _beside(path) if format_ == "npy" else ()
    for each in beside:
        check_file(each)
        ours = sinks.is_taken_up(path, resume or update) or (update and os.path.lexists(path))
        if os.path.lexists(each) and not (overwrite or ours):
            raise UsageError(f"{each} exists", hint="--overwrite replaces it")
    check_run_record(output.run_record, [path, *beside], images.paths, overwrite=overwrite)
    errors = ErrorsFile.of(output.errors, images.null)
    if errors is not None:
        others = [path, *beside, *filter(None, [output.run_record])]
        errors.check(others, images.inputs_and_list, replace=overwrite or resume or update)

    # Torch is loaded only now that all that was typed makes sense.
    readers = reading.start(context)
    classifier = compute.classifier(model, images=images, readers=readers, verify=True)

    def count(most: int | None = None) -> int | None:
        return count_sources(images.paths, images.search, list_members=readers.members, most=most)

    compute.settle(classifier, count, sinks.recorded_form([path], resume=resume, update=update))
    shape = RecordShape(top_k=0, embedding_dim=classifier.embedding_dim)
    description = classifier.description(digest=True) | {
        "default_excludes": images.default_excludes
    }
    pruning = Pruning(images.paths, images.search.recursive) if output.prune else None
    targets = [(path, format_)]
    sink: sinks.Sink
    if update:
        sink = sinks.open_update(
            targets, shape, run=description, pruning=pruning, writer_class=embedding_writer_class
        )
    else:
        sink = sinks.open_sinks(
            targets,
            shape,
            description,
            resume=resume,
            overwrite=overwrite,
            writer_class=embedding_writer_class,
        )

    def sources() -> Iterator[Source]:
        found = find(images.paths, images.search, list_members=readers.members)
        return pruning.watch(found) if pruning is not None else found

    run.write_records(
        context.obj,
        run.Sources(
            find=sources,
            count=count,
        ),
        classifier.embed_batches,
        sink=sink,
        batch_size=classifier.batch_size,
        progress=output.progress,
        run_record=output.run_record,
        description=description | {"format": format_},
        errors_file=errors,
    )


def _beside(output: Path) -> tuple[Path, ...]:
    from cvt_cli.output.npy import errors_of, paths_of

    return paths_of(output), errors_of(output)
