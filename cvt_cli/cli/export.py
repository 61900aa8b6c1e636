"""`cvt export`: a checkpoint becomes a file for other runtimes."""

import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL
from cvt_cli.cli import options
from cvt_cli.cli.messages import say
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import ReplaceOption
from cvt_cli.errors import UsageError
from cvt_cli.system.extras import install_hint
from cvt_cli.system.files import write_atomically

SUFFIXES = (".onnx", ".pt2")
# The packages of the extra, by the names that Python imports.
NEEDED = ("onnx", "onnxscript", "onnxruntime")

EXAMPLES = f"""\
[bold]Examples[/]

cvt export my-cvt -o model.onnx

cvt export {BUNDLED_MODEL} -o model.pt2

cvt export microsoft/cvt-13 -o wide.onnx --image-size 224x384
"""


@dataclass(frozen=True, kw_only=True)
class Exported(ModelOptions):
    """Options for the checkpoint, which is named without --model here."""

    model: Annotated[
        str,
        options.MODEL.argument(
            metavar="MODEL",
            help="A CvT on the Hub, a folder, a file of weights or a bundled name.",
            show_default=False,
        ),
    ] = field()


@grouped
def export(
    context: typer.Context,
    *,
    model: Exported,
    output: Annotated[
        Path,
        options.OUTPUT.option(
            "--output",
            "-o",
            metavar="FILE",
            help=".onnx (extra onnx) for ONNX Runtime, OpenVINO, browsers and others, or .pt2,"
            " a torch.export program. It appears complete or not at all.",
        ),
    ],
    overwrite: ReplaceOption = False,
) -> None:
    """Export a model as ONNX or as a torch.export program, with its labels and preprocessing.

    The file takes a batch of normalised images of one size and returns logits. It is written only
    if its logits match the model's to 1e-4.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{output}: no such format", hint=f"a name in {' or '.join(SUFFIXES)}")

    from cvt_cli.output.report_tables import check_new

    check_new(output, overwrite)
    if suffix == ".onnx":
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise UsageError(
                f"{output}: ONNX needs {', '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not installed",
                hint=install_hint("onnx"),
            )
    _ = model.input_size
    begin = time.monotonic()
    loaded = model.load()
    size = loaded.preprocessing.image_size
    if size is None:
        raise UsageError(
            f"{model.model} names no input size, and an exported file has one",
            hint="--image-size 224 gives one",
        )

    import torch

    from cvt_cli.export import exported

    images = torch.zeros(2, 3, *size)
    if suffix == ".onnx":
        content = exported.to_onnx(loaded, images)
        difference = exported.check(loaded, exported.run_onnx(content), size)
    else:
        content = exported.to_program(loaded, images)
        difference = exported.check(loaded, exported.run_program(content), size)
    write_atomically(output, lambda file: file.write(content))
    if not context.obj.quiet:
        kind = f"ONNX opset {exported.OPSET}" if suffix == ".onnx" else "torch.export program"
        say(
            f"{kind}: {exported.INPUT} (batch, 3, {size[0]}, {size[1]}) to {exported.OUTPUT} "
            f"(batch, {len(loaded.labels)}), any batch; {len(content) / 1e6:.1f} MB, logits within "
            f"{difference:.1g} of the model's at batches of "
            f"{' and '.join(map(str, exported.CHECKED_BATCH_SIZES))}; "
            f"{time.monotonic() - begin:.0f} s"
        )
    print(output)
