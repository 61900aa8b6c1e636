"""`cvt explain`: the parts of a picture that its label comes from."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from cvt_cli.cli import options
from cvt_cli.cli.compute_options import DeviceOption
from cvt_cli.cli.input_options import Pictures, Reading
from cvt_cli.cli.messages import say
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import ReplaceOption, output_option
from cvt_cli.cli.sinks import check_not_an_input
from cvt_cli.errors import CvtError, ExitCode, ImageError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.source import Source
from cvt_cli.records import as_written
from cvt_cli.system.extras import install_hint
from cvt_cli.system.files import check_file, check_folder, write_atomically
from cvt_cli.system.text import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from cvt_cli.explanation.maps import Explainer
    from cvt_cli.images.pool import ReaderPool
    from cvt_cli.images.reading import ImageReader

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

EXAMPLES = """\
[bold]Examples[/]

cvt explain cat.jpg -o why.png

cvt explain cat.jpg -o why.png --label "tiger cat" --method attention

cvt explain photos/*.jpg -o why/

cvt explain cat.jpg --format json | jq .map
"""


class MethodChoice(StrEnum):
    """Names of the methods: a copy of `cvt_cli.explanation.maps.Method`, whose import takes too
    long for --help."""

    GRADCAM = "gradcam"
    ATTENTION = "attention"
    INTEGRATED_GRADIENTS = "integrated-gradients"


class FormatChoice(StrEnum):
    """Formats of an explanation: a picture for people, numbers for programs."""

    PICTURE = "picture"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class ExplanationOptions:
    """Options for what to explain, how, and where to draw it."""

    output: Annotated[
        Path | None,
        output_option(
            metavar="FILE|FOLDER",
            help="A picture (.png, .jpg, .webp) or .json for one image, a folder for several.",
        ),
    ] = None
    label: Annotated[
        str | None,
        options.OUTPUT.option(
            "--label",
            help="The label to explain: a name, synonym, WordNet id or #INDEX. Default: the "
            "best label of each image.",
        ),
    ] = None
    method: Annotated[
        MethodChoice,
        options.OUTPUT.option(
            "--method",
            help="gradcam: which regions support the label. integrated-gradients: which pixels"
            " do; slower. attention: where the class token looks, whatever the label.",
        ),
    ] = MethodChoice.GRADCAM
    format_: Annotated[
        FormatChoice | None,
        options.OUTPUT.option(
            "--format",
            "-f",
            help="picture, or json for the raw map. Default: by the suffix of --output.",
        ),
    ] = None
    overwrite: ReplaceOption = False


@grouped
def explain(
    context: typer.Context,
    *,
    inputs: Annotated[
        list[str],
        options.INPUT.argument(
            metavar="IMAGE|FOLDER...",
            help="Image files, folders, archives, addresses, as for cvt classify.",
        ),
    ],
    explanation: ExplanationOptions,
    model: ModelOptions,
    device: DeviceOption = "auto",
    pictures: Pictures,
    reading: Reading,
) -> None:
    """Show which parts of an image its label comes from, as a heat map."""
    output = explanation.output
    format_ = _pick_format(explanation.format_, output)
    _ = model.input_size
    reader = _reader(pictures)
    readers = reading.start(context)
    search = find(inputs, list_members=readers.members)
    first = list(islice(search, 2))
    is_folder = output is not None and not output.suffix
    if output is not None:
        if len(first) > 1 and not is_folder:
            raise UsageError(
                f"{output} is one file, but there are several images",
                hint="name a folder: no suffix",
            )
        _check_output(output, inputs, is_folder=is_folder, overwrite=explanation.overwrite)
    _check_packages(format_, explanation.method)

    # Torch is loaded only now that all that was typed makes sense.
    from cvt_cli.explanation.maps import Explainer, Method
    from cvt_cli.inference.devices import pick_device
    from cvt_cli.inference.labels import pick_index

    place = pick_device(device)
    checkpoint = model.load()
    label = explanation.label
    index = None if label is None else pick_index(label, checkpoint, "--label")
    explainer = Explainer(checkpoint, Method(explanation.method), place)

    names = _Names()
    failures = 0
    for source in chain(first, search):
        path = output
        if output is not None and is_folder:
            output.mkdir(exist_ok=True)
            path = output / names.next(source.path, format_)
        try:
            picture = _read(source, reader, readers)
            _explain_one(source, picture, explainer, index=index, format_=format_, path=path)
            if path is not None and not context.obj.quiet:
                say(str(path))
        except ImageError as error:
            failures += 1
            say(f"{source.path}: {error}")
    if failures:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def _explain_one(
    source: Source,
    picture: "Image",
    explainer: "Explainer",
    *,
    index: int | None,
    format_: FormatChoice,
    path: Path | None,
) -> None:
    try:
        explanation = explainer(picture, index)
    except ValueError as error:
        raise ImageError(str(error)) from None
    model, method = explainer.checkpoint.name, explainer.method.value
    if format_ is FormatChoice.JSON:
        values = {"path": as_written(source.path), "model": model, "method": method}
        text = json.dumps(values | explanation.to_dict(), ensure_ascii=False) + "\n"
        if path is None:
            sys.stdout.write(text)
        else:
            _write(path, lambda file: file.write(text.encode()))
    elif path is not None:
        from cvt_cli.explanation.picture import draw, save

        image = draw(picture, method, model, explanation=explanation)
        _write(path, lambda file: save(image, file, path.suffix))


def _reader(pictures: Pictures) -> "ImageReader":
    """Make what reads pictures at their own size. Raises `UsageError` if --background is no
    colour."""
    from cvt_cli.images.preprocess import Preprocessing
    from cvt_cli.images.reading import ImageReader

    return ImageReader(
        None,
        Preprocessing(shortest_edge=None, crop=None),
        background=pictures.background_colour,
        accept_truncated=pictures.accept_truncated,
    )


def _read(source: Source, reader: "ImageReader", readers: "ReaderPool") -> "Image":
    """Read a picture at its own size. Raises `ImageError` if that fails."""
    from PIL import Image

    (batch,) = readers.batches(reader, [source], 1)
    if batch[0].pixels is None:
        raise ImageError(batch[0].error or "")
    return Image.fromarray(batch[0].pixels)


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise CvtError(f"{path} can't be written: {reason_of(error)}") from None


class _Names:
    """Picks a different file name for each image."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def next(self, path: str, format_: FormatChoice) -> str:
        """Return the file name for an image: `photos/cat.jpg` is explained in `cat.png`, the next
        cat in `cat-2.png`."""
        suffix = ".json" if format_ is FormatChoice.JSON else ".png"
        # A name from an archive or an address may hold anything.
        stem = re.sub(r"[^\w.() -]", "_", os.path.splitext(os.path.basename(path))[0])[:150]
        numbered = (f"-{number}" for number in count(2))
        for end in chain([""], numbered):
            name = f"{stem or '_'}{end}{suffix}"
            if name.casefold() not in self._taken:
                self._taken.add(name.casefold())
                return name
        raise AssertionError("there is always another number")


def _pick_format(format_: FormatChoice | None, output: Path | None) -> FormatChoice:
    suffix = output.suffix.lower() if output is not None else ""
    if output is None and format_ is not FormatChoice.JSON:
        raise UsageError(
            "a picture needs a file", hint="-o why.png, or --format json for standard output"
        )
    if suffix not in ("", ".json", *PICTURE_SUFFIXES):
        suffixes = " ".join((*PICTURE_SUFFIXES, ".json"))
        raise UsageError(f"{output}: the suffix names no format", hint=f"one of {suffixes}")
    named = FormatChoice.JSON if suffix == ".json" else FormatChoice.PICTURE
    if suffix and format_ not in (None, named):
        raise UsageError(f"{output} and --format {format_} contradict each other")
    return format_ or named


def _check_output(output: Path, inputs: list[str], *, is_folder: bool, overwrite: bool) -> None:
    if not is_folder:
        check_file(output)
    elif output == Path("-"):
        raise UsageError("-: no name for a folder", hint="--format json without --output")
    elif os.path.isdir(output):
        check_folder(output)
    elif os.path.lexists(output):
        raise UsageError(f"{output} is not a folder", hint="a picture's name ends in .png")
    else:
        check_folder(output.parent, output)
    if not os.path.lexists(output) or (is_folder and not any(output.iterdir())):
        return
    if not overwrite:
        what = "is not empty" if is_folder else "exists"
        raise UsageError(f"{output} {what}", hint="--overwrite replaces what is there")
    if not is_folder:
        check_not_an_input(output, inputs)
        return
    place = output.resolve()
    for path in filter(os.path.exists, inputs):
        given = Path(path).resolve()
        if place == given.parent or place.is_relative_to(given):
            raise UsageError(f"{output} holds one of the inputs")


def _check_packages(format_: FormatChoice, method: MethodChoice) -> None:
    needed = [] if method is MethodChoice.ATTENTION else ["captum"]
    needed += ["matplotlib"] if format_ is FormatChoice.PICTURE else []
    for name in needed:
        if find_spec(name) is None:
            raise UsageError(
                f"this needs {name}, which is not installed", hint=install_hint("explain")
            )
