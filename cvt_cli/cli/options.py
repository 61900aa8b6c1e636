"""Options that several subcommands share."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL


@dataclass(frozen=True)
class Settings:
    """The global options, in `context.obj`."""

    debug: bool = False
    quiet: bool = False


INPUT = "Input"
MODEL = "Model"
OUTPUT = "Output"
PERFORMANCE = "Performance"

InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE|FOLDER|ARCHIVE|URL",
        help="Image files, folders (searched with all that is in them), quoted patterns "
        "('photos/**/*.png'), .zip, .tar and .parquet files of images, addresses (https://, s3://, "
        "gs://, hf://), or - for one image on standard input. What is named twice is taken once.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
FilesFromOption = Annotated[
    str | None,
    typer.Option(
        "--files-from",
        metavar="FILE",
        help="Read the names of more inputs here, one a line; - for standard input. A name that "
        "comes twice is taken once.",
        rich_help_panel=INPUT,
    ),
]
NullOption = Annotated[
    bool,
    typer.Option(
        "--null",
        "-0",
        help="Names in --files-from end with NUL, as find -print0 writes them.",
        rich_help_panel=INPUT,
    ),
]
RecursiveOption = Annotated[
    bool,
    typer.Option(
        "--recursive/--no-recursive",
        help="Search the folders in a folder too.",
        rich_help_panel=INPUT,
    ),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Of folders and archives take only the files with such a name or path. Repeatable.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Leave out files and folders with such a name or path. Repeatable.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.1,
        metavar="SECONDS",
        help="How long the network may bring nothing, before each of three tries is given up.",
        rich_help_panel=INPUT,
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Refuse images of more pixels, undecoded. Default: 178956970, Pillow's limit.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
MaxBytesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Refuse files, downloads and archive members of more bytes.",
        rich_help_panel=INPUT,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="CVT_MODEL",
        metavar="NAME",
        help="A CvT on the Hub (org/name, org/name@revision), a folder, a file of weights "
        f"(.safetensors, .bin, .pth), or {BUNDLED_MODEL}, which ships with cvt.",
        rich_help_panel=MODEL,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit on the Hub.", rich_help_panel=MODEL),
]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="Ask the Hub for a newer commit even if the model is in the cache.",
        rich_help_panel=MODEL,
    ),
]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Make no request to the Hub.", rich_help_panel=MODEL),
]


class Activation(StrEnum):
    """What follows the first layer of each MLP."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"


ActivationOption = Annotated[
    Activation | None,
    typer.Option(
        help="In place of the activation that the model names.",
        rich_help_panel=MODEL,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write here instead of to standard output; the file appears whole or not at all.",
        rich_help_panel=OUTPUT,
    ),
]
OutputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write here instead of to standard output; the file appears whole or not at all. "
        "A report to look at ends in .html. Repeatable: -o labels.csv -o report.html. With "
        "--engine ray: a folder, or an address like s3://bucket/labels.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an --output that was interrupted: only what is missing.",
        rich_help_panel=OUTPUT,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that exist, or start an interrupted --output anew.",
        rich_help_panel=OUTPUT,
    ),
]
ProgressOption = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="A progress bar on stderr. Default: on a terminal.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        min=1,
        help="Images through the network at once. Default: what suits the network and the device.",
        show_default=False,
        rich_help_panel=PERFORMANCE,
    ),
]
RunRecordOption = Annotated[
    Path | None,
    typer.Option(
        "--run-record",
        metavar="FILE",
        help="Write what was run here, as JSON: model, options, versions, times, counts.",
        rich_help_panel=OUTPUT,
    ),
]


class DecodeChoice(StrEnum):
    """How images are decoded."""

    FAST = "fast"
    EXACT = "exact"


DecodeOption = Annotated[
    DecodeChoice,
    typer.Option(
        help="fast: large JPEGs are scaled down while they are decoded, greys of 16 "
        "or 32 bits to 8. exact: as Transformers does it.",
        rich_help_panel=PERFORMANCE,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        envvar="CVT_DEVICE",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        rich_help_panel=PERFORMANCE,
    ),
]
DevicesOption = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="CVT_DEVICE",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N or mps; or several, which share the work: cuda:0,cuda:1.",
        rich_help_panel=PERFORMANCE,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="auto, float32, bfloat16 or float16: what the network computes in.",
        rich_help_panel=PERFORMANCE,
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="SIZE",
        help="Input size in pixels: 320, or height x width: 512x384. Default: the model's own.",
        rich_help_panel=MODEL,
    ),
]
ReportFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="table, csv, tsv or json. Default: what the suffix of --output says, else a table.",
        rich_help_panel=OUTPUT,
    ),
]
