"""Options that several subcommands share, in groups; `cvt_cli.cli.groups` turns groups into
options. All are in this one file, so that each is found, and written, once.

An option that is in more than one group is an alias here, such as `OverwriteOption`.
"""

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL, DEFAULT_MODEL
from cvt_cli.cli.completion import one_of
from cvt_cli.cli.groups import Panel
from cvt_cli.cli.messages import say
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.images.size import parse_image_size
from cvt_cli.images.source import IMAGE_TIMEOUT, MAX_BYTES, TIMEOUT, Search
from cvt_cli.output import FORMATS
from cvt_cli.records import COLUMNS, THUMBNAIL
from cvt_cli.system.cores import share_cores
from cvt_cli.system.text import reason_of

if TYPE_CHECKING:
    from cvt_cli.checkpoint.group_table import GroupedLabel
    from cvt_cli.checkpoint.load import Checkpoint
    from cvt_cli.images.background import Colour
    from cvt_cli.images.pool import ReaderPool
    from cvt_cli.inference.classifier import Classifier

INPUT = Panel("Input")
MODEL = Panel("Model")
OUTPUT = Panel("Output")
PERFORMANCE = Panel("Performance")
SCALE = Panel("Scale")

# Formats of reports, as `output.report_tables` writes them; importing that loads rich.
REPORT_FORMATS = ("table", "csv", "tsv", "json")


@dataclass(frozen=True)
class GlobalOptions:
    """The global options, kept in `context.obj`."""

    debug: bool = False
    quiet: bool = False


def is_typed(context: typer.Context, name: str | None) -> bool:
    """Tell whether an option stood on the command line.

    Args:
        name: of its parameter.
    """
    source = context.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


def typed_options(context: typer.Context) -> dict[str, str]:
    """Return the options that stood on the command line, by their parameters' names."""
    return {
        parameter.name or "": parameter.opts[0]
        for parameter in context.command.params
        if is_typed(context, parameter.name)
    }


def split_names(names: str | None) -> list[str]:
    """Split names at commas; a comma that is part of a name is written with a backslash."""
    if names is None:
        return []
    parts = re.split(r"(?<!\\),", names)
    return [part.replace("\\,", ",").strip() for part in parts if part.strip()]


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} can't be read: {reason_of(error)}",
            hint="--labels @FILE has one label per line",
        ) from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UsageError(f"{path} names no label")
    return lines


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


def dtype_option(panel: Panel, *, help: str, metavar: str = "DTYPE") -> Any:
    """Declare `--dtype`."""
    return panel.option("--dtype", metavar=metavar, help=help)


RevisionOption = Annotated[
    str | None, MODEL.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.")
]
RefreshOption = Annotated[
    bool,
    MODEL.option("--refresh", help="Check the Hub for a newer commit even if the model is cached."),
]
OfflineOption = Annotated[bool, MODEL.option("--offline", help="Make no requests to the Hub.")]
ImageSizeOption = Annotated[
    str | None,
    MODEL.option(
        "--image-size",
        metavar="SIZE",
        help="Input size in pixels: 320, or height x width: 512x384. Default: the model's own.",
    ),
]
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


class DecodeChoice(StrEnum):
    """Ways to decode images."""

    FAST = "fast"
    EXACT = "exact"


DecodeOption = Annotated[
    DecodeChoice,
    PERFORMANCE.option(
        "--decode",
        help="fast: scale large JPEGs down while decoding, and 16- and 32-bit greys to 8 "
        "bits. exact: decode as Transformers does.",
    ),
]
DeviceOption = Annotated[
    str,
    PERFORMANCE.option(
        "--device", envvar="CVT_DEVICE", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps."
    ),
]
DtypeOption = Annotated[
    str,
    dtype_option(PERFORMANCE, help="Compute in auto, float32, bfloat16 or float16."),
]


class TuneChoice(StrEnum):
    """The values of `--tune`: when to measure which form of the network is the fastest."""

    NEVER = "never"
    AUTO = "auto"
    NOW = "now"


TuneOption = Annotated[
    TuneChoice,
    PERFORMANCE.option(
        "--tune",
        help="Measure which form of the network is the fastest on this CPU. auto: for a long run, "
        "once; kept in the cache. never: the usual form. now: again.",
    ),
]


class Activation(StrEnum):
    """Activations of an MLP, between its two layers."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"


class TruncatedChoice(StrEnum):
    """Ways to treat a JPEG whose end is missing."""

    REFUSE = "refuse"
    ACCEPT = "accept"


BackgroundOption = Annotated[
    str | None,
    INPUT.option(
        "--background",
        metavar="COLOUR",
        help="Show transparent images on this colour: white, '#808080'. Default: keep the "
        "colours hidden under transparency, as Transformers does.",
    ),
]
TruncatedOption = Annotated[
    TruncatedChoice,
    INPUT.option(
        "--truncated",
        help="refuse: a truncated JPEG is an error. accept: read what is there, and say so "
        "in the column truncated.",
    ),
]


class _PictureRules:
    """Values that `Pictures` and `Input` derive from their options."""

    background: str | None
    truncated: TruncatedChoice

    @property
    def background_colour(self) -> "Colour | None":
        """Return the colour (red, green, blue) under transparent pictures.

        Raises:
            UsageError: if --background is no colour.
        """
        if self.background is None:
            return None
        from cvt_cli.images.background import parse_colour

        return parse_colour(self.background)

    @property
    def accept_truncated(self) -> bool:
        """Whether to use the readable part of a JPEG whose end is missing."""
        return self.truncated is TruncatedChoice.ACCEPT


@dataclass(frozen=True, kw_only=True)
class Pictures(_PictureRules):
    """Options for pictures that are transparent or cut off."""

    background: BackgroundOption = None
    truncated: TruncatedOption = TruncatedChoice.REFUSE


@dataclass(frozen=True, kw_only=True)
class Input(_PictureRules):
    """Options for the images to read, and how to read them."""

    inputs: Annotated[
        list[str] | None,
        INPUT.argument(
            metavar="IMAGE|FOLDER|ARCHIVE|URL",
            help="Image files, folders (searched recursively), quoted patterns "
            "('photos/**/*.png'), .zip, .tar and .parquet files of images, addresses "
            "(https://, s3://, gs://, hf://), or - for one image on standard input. "
            "Duplicates are read once.",
        ),
    ] = None
    files_from: Annotated[
        str | None,
        INPUT.option(
            "--files-from",
            metavar="FILE",
            help="Read more inputs from this file, one per line; - for standard input.",
        ),
    ] = None
    null: Annotated[
        bool,
        INPUT.option(
            "--null", "-0", help="Names in --files-from end with NUL, as written by find -print0."
        ),
    ] = False
    recursive: Annotated[
        bool, INPUT.option("--recursive/--no-recursive", help="Search subfolders.")
    ] = True
    include: Annotated[
        list[str] | None,
        INPUT.option(
            "--include",
            metavar="GLOB",
            help="Only read files in folders and archives whose name or path matches. Repeatable.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        INPUT.option(
            "--exclude",
            metavar="GLOB",
            help="Skip files and folders whose name or path matches. Repeatable.",
        ),
    ] = None
    default_excludes: Annotated[
        bool,
        INPUT.option(
            "--default-excludes/--no-default-excludes",
            help="Skip what network drives, recycle bins and thumbnailers leave among "
            "photographs: @eaDir, #recycle, $RECYCLE.BIN, Thumbs.db and the like.",
        ),
    ] = True
    timeout: Annotated[
        float,
        INPUT.option(
            "--timeout",
            min=0.1,
            metavar="SECONDS",
            help="Seconds without data before a try is abandoned (three tries).",
        ),
    ] = TIMEOUT
    max_pixels: Annotated[
        int | None,
        INPUT.option(
            "--max-pixels",
            min=1,
            metavar="N",
            help="Refuse images with more pixels, before decoding. Default: 178956970, "
            "Pillow's limit.",
        ),
    ] = None
    max_bytes: Annotated[
        int,
        INPUT.option(
            "--max-bytes",
            min=1,
            metavar="N",
            help="Refuse files, downloads and archive members with more bytes.",
        ),
    ] = MAX_BYTES

    background: BackgroundOption = None
    truncated: TruncatedOption = TruncatedChoice.REFUSE

    @property
    def paths(self) -> list[str]:
        """Return the inputs named on the command line."""
        return self.inputs or []

    @property
    def inputs_and_list(self) -> list[str]:
        """Return all that is read: the named inputs, and the list of names."""
        return [*self.paths, *filter(None, [self.files_from])]

    @property
    def search(self) -> Search:
        """Return how to search the inputs."""
        return Search(
            recursive=self.recursive,
            include=tuple(self.include or ()),
            exclude=tuple(self.exclude or ()),
            files_from=self.files_from,
            null=self.null,
            timeout=self.timeout,
            max_bytes=self.max_bytes,
            default_excludes=self.default_excludes,
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for the processes that read images."""

    image_timeout: Annotated[
        float,
        INPUT.option(
            "--image-timeout",
            min=0.1,
            metavar="SECONDS",
            help="Seconds that an image, or the directory of an archive, may take to decode.",
        ),
    ] = IMAGE_TIMEOUT
    readers: Annotated[
        int | None,
        PERFORMANCE.option(
            "--readers",
            min=1,
            metavar="N",
            help="Maximum number of processes that decode images. Default: one per core.",
        ),
    ] = None

    def start(self, context: typer.Context) -> "ReaderPool":
        """Start the processes, before torch is imported, which takes a while. They end with the
        command.

        Raises:
            OSError: if processes can't be started.
        """
        from cvt_cli.images.pool import ReaderPool

        settings: GlobalOptions = context.obj
        return context.with_resource(
            ReaderPool(self.readers, self.image_timeout, debug=settings.debug)
        )


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Options for the revision of a model on the Hub, and for asking for it."""

    revision: RevisionOption = None
    refresh: RefreshOption = False
    offline: OfflineOption = False


WeightsKeyOption = Annotated[
    str | None,
    MODEL.option(
        "--weights-key",
        metavar="KEY",
        help="Which network to load from a weights file that holds several, such as model_ema.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles(Hub):
    """Options for the files a checkpoint is read from, and the network among them."""

    weights_key: WeightsKeyOption = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for the checkpoint, and what to change in it."""

    model: Annotated[
        str,
        MODEL.option(
            "--model",
            "-m",
            envvar="CVT_MODEL",
            metavar="NAME",
            help="A CvT on the Hub (org/name, org/name@revision), a folder, a file of weights "
            f"(.safetensors, .bin, .pth), or {BUNDLED_MODEL}, which ships with cvt.",
        ),
    ] = DEFAULT_MODEL
    revision: RevisionOption = None
    activation: Annotated[
        Activation | None,
        MODEL.option("--activation", help="Override the model's activation."),
    ] = None
    image_size: ImageSizeOption = None
    class_names: Annotated[
        Path | None,
        MODEL.option(
            "--class-names",
            metavar="FILE",
            help="Labels for a model that has none: one per line, or JSON (a list, id2label, "
            "ImageNet's class index).",
        ),
    ] = None
    weights_key: WeightsKeyOption = None
    refresh: RefreshOption = False
    offline: OfflineOption = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """Return the labels in --class-names.

        Raises:
            UsageError: if the file can't be read, or holds none.
        """
        from cvt_cli.checkpoint.class_names import read_class_names

        return None if self.class_names is None else read_class_names(self.class_names)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Return height and width of the network's input in pixels; None for the model's own.

        Raises:
            UsageError: if --image-size is not a size.
        """
        return None if self.image_size is None else parse_image_size(self.image_size)

    def check_threshold(self, threshold: float | None) -> None:
        """Check a --threshold against the kind of the model's scores, before its weights are
        fetched or loaded.

        Raises:
            ModelError: if the configuration can't be read.
            UsageError: if no score can be at it.
        """
        if threshold is None or 0 <= threshold <= 1:  # which any model's can
            return
        from cvt_cli.checkpoint.load import load
        from cvt_cli.checkpoint.resolve import resolve
        from cvt_cli.inference.scores import check_threshold, kind_of
        from cvt_cli.records import ScoreKind

        check_threshold(threshold, ScoreKind.RAW)
        kind = ScoreKind.SOFTMAX  # or sigmoid, of a file without a configuration
        files = resolve(
            self.model, self.revision, self.refresh, offline=self.offline, weights=False
        )
        if files.config is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is loaded again, and warns then
                kind = kind_of(load(files))
        check_threshold(threshold, kind)

    def load(self, verify: bool = False) -> "Checkpoint":
        """Load the checkpoint for the requested input size.

        Args:
            verify: as in `checkpoint.resolve`.

        Raises:
            ModelError: if it can't be found or loaded.
            UsageError: if --image-size is not a size.
        """
        from cvt_cli.checkpoint.load import load
        from cvt_cli.checkpoint.resolve import resolve

        checkpoint = load(
            resolve(
                self.model,
                self.revision,
                self.refresh,
                offline=self.offline,
                weights_key=self.weights_key,
                verify=verify,
            ),
            self.activation,
            self.names,
        )
        size = self.input_size
        return checkpoint if size is None else checkpoint.with_image_size(size)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Options for how images go through the network."""

    decode: DecodeOption = DecodeChoice.FAST
    device: Annotated[
        str,
        PERFORMANCE.option(
            "--device",
            envvar="CVT_DEVICE",
            metavar="DEVICE",
            help="auto, cpu, cuda, cuda:N or mps; several share the work: cuda:0,cuda:1.",
        ),
    ] = "auto"
    dtype: DtypeOption = "auto"
    batch_size: Annotated[
        int | None,
        PERFORMANCE.option(
            "--batch-size",
            "-b",
            min=1,
            help="Images per batch. Default: chosen for the network and the device.",
        ),
    ] = None
    tune: TuneOption = TuneChoice.AUTO

    @property
    def exact_decode(self) -> bool:
        """Whether to decode images as Transformers does."""
        return self.decode is DecodeChoice.EXACT

    def classifier(
        self,
        model: ModelOptions,
        *,
        images: "Input | Pictures | None" = None,
        only: Sequence[str] = (),
        groups: "Sequence[GroupedLabel] | None" = None,
        readers: "ReaderPool | None" = None,
        verify: bool = False,
    ) -> "Classifier":
        """Load torch and the network. Both share the cores with the decoders.

        Args:
            model: the checkpoint.
            images: how they are read; None for the defaults.
            only: the labels to choose from; empty for all.
            groups: the rows of --groups; None for none.
            readers: who reads; None for threads of this process.

        Raises:
            ModelError: if the checkpoint can't be found or loaded.
            UsageError: if the device, the dtype or a label does not exist.
        """
        images = images or Input()
        background = images.background_colour
        share_cores()
        from cvt_cli.images.decode import MAX_PIXELS
        from cvt_cli.inference.classifier import Classifier

        return Classifier(
            model.model,
            revision=model.revision,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            hidden_act=model.activation,
            refresh=model.refresh,
            offline=model.offline,
            image_size=model.input_size,
            class_names=model.names,
            weights_key=model.weights_key,
            verify=verify,
            exact_decode=self.exact_decode,
            only=only,
            groups=groups,
            max_pixels=getattr(images, "max_pixels", None) or MAX_PIXELS,
            background=background,
            accept_truncated=images.accept_truncated,
            readers=readers,
        )

    def settle(
        self,
        classifier: "Classifier",
        count: Callable[[int], int | None],
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        """Give the classifier the form of the network for its run; where that was measured now,
        say so. A run of one batch pays nothing for it.

        Args:
            count: counts the images of the run, up to so many; None if nobody knows.
            recorded: the form of the run that is taken up; None without any.
        """

        def counted(most: int) -> int | None:
            try:
                return count(most)
            except CvtError:  # the run itself reports it
                return None

        if recorded is None:
            if self.tune is TuneChoice.NEVER:
                return
            few = classifier.batch_size + 1
            if self.tune is TuneChoice.AUTO and (counted(few) or few) < few:
                return
        from cvt_cli.inference.tuning import Origin, Request, Tune, settle

        before = time.perf_counter()
        origin = settle(classifier, Request(Tune(self.tune), counted, recorded))
        if origin is Origin.MEASURED:
            seconds = time.perf_counter() - before
            say(f"the fastest form here, measured in {seconds:.1f} s: {classifier.form}")


@dataclass(frozen=True, kw_only=True)
class ExactCompute(Compute):
    """The same options, with float32 as the default: for numbers that are compared."""

    dtype: DtypeOption = "float32"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options for the format of a report, and where it goes."""

    format_: ReportFormatOption = None
    output: OutputOption = None
    overwrite: OverwriteOption = False

    def pick_format(self) -> str:
        """Return the requested format, or else that of the file's suffix.

        Raises:
            UsageError: if there is no such format, or the file can't be written.
        """
        from cvt_cli.output.report_tables import check_new, pick_format

        check_new(self.output, self.overwrite)
        return pick_format(self.format_, self.output)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options for what a record of `cvt classify` holds, and where it goes."""

    top_k: Annotated[
        int | None,
        OUTPUT.option(
            "--top-k",
            "-k",
            min=1,
            help="Labels per image. Default: 5; for a multi-label model with --threshold, all "
            "that reach it.",
        ),
    ] = None
    format_: Annotated[
        str | None,
        format_option(
            OUTPUT,
            FORMATS,
            help=f"{', '.join(FORMATS)}. Default: by the suffix of --output; else a table on a "
            "terminal, plain lines (path, best label, score) in a pipe.",
        ),
    ] = None
    output: Annotated[
        list[str] | None,
        output_option(
            help="Write to this file instead of standard output; it appears complete or not at"
            " all. .html makes a page to browse. Repeatable: -o labels.csv -o "
            "report.html. With --engine ray: a folder, or an address like "
            "s3://bucket/labels."
        ),
    ] = None
    resume: ResumeOption = False
    update: UpdateOption = False
    prune: PruneOption = False
    overwrite: OverwriteOption = False
    threshold: Annotated[
        float | None,
        OUTPUT.option(
            "--threshold",
            metavar="SCORE",
            help="Lowest score of a label, 0 to 1 (any number for a regression); an image may "
            "get no label.",
        ),
    ] = None
    labels: Annotated[
        list[str] | None,
        OUTPUT.option(
            "--labels",
            metavar="A,B,...|@FILE",
            help="Choose among these labels only: names, synonyms, WordNet ids or #INDEX, or a"
            " file with one per line. Softmax scores are over these. Repeatable.",
        ),
    ] = None
    groups: GroupsOption = None
    columns: Annotated[
        str | None,
        OUTPUT.option(
            "--columns",
            metavar="A,B,...",
            help=f"Columns to add: {', '.join(COLUMNS)}; in .xlsx also {THUMBNAIL}, for up to "
            "5,000 images.",
        ),
    ] = None
    run_record: RunRecordOption = None
    errors: ErrorsOption = None
    progress: ProgressOption = None

    @property
    def outputs(self) -> list[str]:
        """Return the files, folders and addresses to write to."""
        return self.output or []

    @cached_property  # a file may be a pipe, which is read once
    def only(self) -> list[str]:
        """Return the labels to choose from, as `inference.labels.pick_indexes` takes them; none for
        all.

        Raises:
            UsageError: if a file of them can't be read, or has none.
        """
        only: list[str] = []
        for value in self.labels or ():
            only += _lines_of(Path(value[1:])) if value.startswith("@") else [value]
        return only

    @cached_property
    def group_rows(self) -> "list[GroupedLabel] | None":
        """The rows of --groups; None for none.

        Raises:
            UsageError: if the file can't be read, or has none.
        """
        return read_groups_option(self.groups)

    @property
    def facts(self) -> tuple[str, ...]:
        """Return the facts to add to each record, out of `records.COLUMNS`.

        Raises:
            UsageError: if there is no such column.
        """
        names = tuple(name for name in split_names(self.columns) if name != THUMBNAIL)
        for name in names:
            if name not in COLUMNS:
                known = ", ".join((*COLUMNS, THUMBNAIL))
                raise UsageError(f"{name}: no such column", hint=f"one of {known}")
        return names

    @property
    def thumbnails(self) -> bool:
        """Whether `THUMBNAIL` is among the columns."""
        return THUMBNAIL in split_names(self.columns)


class EngineChoice(StrEnum):
    """Engines that run the stages: this machine, or Ray."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Options for where the work is done: here, on a cluster, or as one of several jobs."""

    engine: Annotated[
        EngineChoice,
        SCALE.option(
            "--engine",
            help="local: this machine. ray: a Ray cluster, or this machine through Ray; "
            "--output is then a folder of parts, which cvt merge joins.",
        ),
    ] = EngineChoice.LOCAL
    ray_address: Annotated[
        str | None,
        SCALE.option(
            "--ray-address",
            envvar="RAY_ADDRESS",
            metavar="HOST:PORT",
            help="The cluster's head, or auto on one of its nodes. Default: start Ray here.",
        ),
    ] = None
    workers: Annotated[
        str | None,
        SCALE.option(
            "--workers",
            metavar="N|MIN:MAX",
            help="Number of copies of the network. Default: chosen for the cluster.",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        SCALE.option(
            "--gpus-per-worker",
            min=0,
            metavar="N",
            help="GPUs per copy; fractions are allowed. Default: 1 if there are any.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        SCALE.option(
            "--shard",
            metavar="K/N",
            help="Label only the share of job K of N, by a hash of each path: 3/64.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Classification:
    """All option groups of `cvt classify`."""

    images: Input
    model: ModelOptions
    output: Output
    compute: Compute
    reading: Reading
    scale: Scale
