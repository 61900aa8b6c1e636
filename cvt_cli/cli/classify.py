"""`cvt classify`: image files in, labels out."""

import glob
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import typer

from cvt_cli.cli import cluster, run, sinks
from cvt_cli.cli.classify_options import Classification, EngineChoice, Output, Scale
from cvt_cli.cli.compute_options import Compute
from cvt_cli.cli.errors_file import ErrorsFile
from cvt_cli.cli.input_options import Input, Reading
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.run_record import check_run_record
from cvt_cli.errors import UsageError
from cvt_cli.images.find import check_inputs, count_sources, find
from cvt_cli.images.shard import Shard
from cvt_cli.images.source import Source
from cvt_cli.output import FILE_FORMATS, check_format, format_of_file, writer_class
from cvt_cli.output.thumbnails import check_thumbnails, is_marked, thumbnails_of
from cvt_cli.output.update import Pruning
from cvt_cli.system.files import TO_STDOUT, check_name

EXAMPLES = """\
[bold]Examples[/]

cvt classify cat.jpg

cvt classify photos/ --top-k 3 -o labels.csv

cvt classify photos/ -o labels.csv -o report.html

cvt classify photos/ --format jsonl | jq .

cvt classify 'photos/**/*.png' archive.zip https://example.org/cat.jpg

find . -name '*.jpg' -print0 | cvt classify --files-from - -0 -o new.jsonl

cat cat.jpg | cvt classify - --model microsoft/cvt-21

cvt classify s3://bucket/photos/ -o s3://bucket/labels/ --engine ray
"""


@grouped
def classify(
    context: typer.Context,
    *,
    images: Input,
    model: ModelOptions,
    output: Output,
    compute: Compute,
    reading: Reading,
    scale: Scale,
) -> None:
    """Label images with their best classes and scores."""
    # Report wrong values before anything is looked up.
    _ = output.facts, output.only, output.group_rows, model.input_size, images.background_colour
    wanted = Classification(
        images=images, model=model, output=output, compute=compute, reading=reading, scale=scale
    )
    if scale.engine is EngineChoice.RAY:
        _classify_on_ray(context.obj, wanted)
    else:
        _classify_here(context, wanted)


def _classify_on_ray(settings: GlobalOptions, wanted: Classification) -> None:
    cluster.parse_workers(wanted.scale.workers)
    cluster.check_device(wanted.compute.device, wanted.scale.gpus_per_worker)
    target = cluster.pick_target(wanted.images, wanted.output)
    for name, value in (
        ("--shard", wanted.scale.shard),
        ("--run-record", wanted.output.run_record),
        ("--columns thumbnail", wanted.output.thumbnails or None),
        ("--update", wanted.output.update or None),
        ("--prune", wanted.output.prune or None),
    ):
        if value is not None:
            raise UsageError(f"{name} needs --engine local")
    wanted.model.check_threshold(wanted.output.threshold)
    cluster.classify_on_cluster(settings, target, wanted)


def _classify_here(context: typer.Context, wanted: Classification) -> None:
    images, output, scale = wanted.images, wanted.output, wanted.scale
    if scale.workers is not None or scale.gpus_per_worker is not None:
        name = "--workers" if scale.workers is not None else "--gpus-per-worker"
        raise UsageError(f"{name} needs --engine ray")
    paths = _check_paths(output.outputs)
    resume, overwrite = output.resume, output.overwrite
    targets = _pick_targets(
        output.format_, sinks.unfinished(paths, resume and not (overwrite or output.update))
    )
    pages = [path for path, name in targets if name == "html" and path is not None]
    # Thumbnails from an earlier report are not inputs.
    thumbnails = [each for each in map(thumbnails_of, pages) if is_marked(each)]
    excluded = (glob.escape(each.name) for each in thumbnails)
    search = replace(images.search, exclude=(*images.search.exclude, *excluded))
    part = Shard.parse(scale.shard) if scale.shard is not None else Shard(1, 1)
    check_inputs(images.paths, search)
    sinks.check_targets(
        [(path, writer_class(name)) for path, name in targets],
        images.paths,
        resume=resume,
        overwrite=overwrite,
        update=output.update,
    )
    if output.thumbnails and all(name != "xlsx" for _, name in targets):
        raise UsageError(
            "--columns thumbnail needs -o FILE.xlsx",
            hint="-o report.html shows every image too",
        )
    sinks.check_prune(output.prune, output.update)
    check_run_record(output.run_record, paths, images.paths, overwrite=overwrite)
    errors = ErrorsFile.of(output.errors, images.null)
    if errors is not None:
        others = [*paths, *filter(None, [output.run_record])]
        errors.check(others, images.inputs_and_list, replace=overwrite or resume or output.update)
    for page in pages:
        check_thumbnails(page, overwrite or sinks.is_taken_up(page, resume), images.paths)

    # Torch is loaded only now that all that was typed makes sense.
    readers = wanted.reading.start(context)
    from cvt_cli.inference.scores import record_shape

    wanted.model.check_threshold(output.threshold)
    # The digest reads all weights once more, which takes a while: only where it is recorded.
    recorded = bool(paths) or output.run_record is not None
    classifier = wanted.compute.classifier(
        wanted.model,
        images=images,
        only=output.only,
        groups=output.group_rows,
        readers=readers,
        verify=recorded,
    )

    def count(most: int | None = None) -> int | None:
        return count_sources(images.paths, search, part, list_members=readers.members, most=most)

    wanted.compute.settle(
        classifier, count, sinks.recorded_form(paths, resume=resume, update=output.update)
    )
    shape = record_shape(
        classifier.score_kind,
        len(classifier.answers),
        output.top_k,
        threshold=output.threshold,
        columns=output.facts,
    )
    shape = replace(shape, thumbnails=output.thumbnails)
    description = classifier.description(digest=recorded) | {
        "top_k": shape.top_k,
        "threshold": output.threshold,
        "columns": list(shape.columns),
        "shard": str(part),
        "default_excludes": search.default_excludes,
    }
    pruning = Pruning(images.paths, search.recursive) if output.prune else None
    sink: sinks.Sink
    if output.update:
        files = [(path, name) for path, name in targets if path is not None]
        sink = sinks.open_update(files, shape, run=description, pruning=pruning)
    else:
        sink = sinks.open_sinks(targets, shape, description, resume=resume, overwrite=overwrite)
    description["format"] = ", ".join(name for _, name in targets)

    def sources() -> Iterator[Source]:
        return find(images.paths, search, shard=part, list_members=readers.members)

    run.write_records(
        context.obj,
        run.Sources(
            find=lambda: pruning.watch(sources()) if pruning is not None else sources(),
            count=count,
            has_others=lambda: part.has_others,
        ),
        lambda sources, first_batch: classifier.classify_batches(
            sources,
            shape.top_k,
            threshold=output.threshold,
            columns=shape.columns,
            thumbnails=bool(pages) or shape.thumbnails,
            first_batch=first_batch,
        ),
        sink=sink,
        batch_size=classifier.batch_size,
        progress=output.progress,
        run_record=output.run_record,
        errors_file=errors,
        description=description,
    )


def _check_paths(names: list[str]) -> list[Path]:
    """Turn the names of outputs into paths. Raises `UsageError` if one can't be a file on this
    machine."""
    for name in names:
        if "://" in name:
            raise UsageError(
                f"{name}: an output must be a local file", hint="--engine ray writes there"
            )
    paths = [Path(name) for name in names]
    for path in paths:
        check_name(path, TO_STDOUT)
    return paths


def _pick_targets(name: str | None, outputs: list[Path]) -> list[tuple[Path | None, str]]:
    """Pair each output with its format; without outputs, standard output."""
    if name is not None:
        check_format(name)
    if not outputs:
        return [(None, name or ("table" if sys.stdout.isatty() else "plain"))]
    for path in outputs:
        if outputs.count(path) > 1:
            raise UsageError(f"{path} is named twice as --output")
    # With a report among the outputs, --format applies to the others.
    return [
        (path, name if name and (path.suffix != ".html" or len(outputs) == 1) else _format_of(path))
        for path in outputs
    ]


def _format_of(path: Path) -> str:
    return format_of_file(path, FILE_FORMATS)
