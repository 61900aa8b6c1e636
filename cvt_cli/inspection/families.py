"""Families of vision transformers that the paper compares CvT with (table 1 and table 3)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from cvt_cli.checkpoint.catalog import PUBLISHED
from cvt_cli.model.cost import Cost, count_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CVT_PAPER = "arXiv 2103.15808"
COUNTED = "counted"


@dataclass(frozen=True)
class Family:
    """A family of models: how it turns pictures into tokens and relates them (the paper's table
    1)."""

    name: str
    position_encoding: str
    token_embedding: str
    attention_projection: str
    hierarchical: str


@dataclass(frozen=True)
class Row:
    """A model in the comparison.

    Attributes:
        image_size: (height, width) of its input in pixels.
        pretrained_on: the data that it saw first; empty where that is unknown.
        parameters: as published, to the published digits; exact for a CvT.
        gmacs: 10^9 multiply-adds an image: what the papers call FLOPs. Counted for a CvT.
        top1: accuracy on the ImageNet-1k validation set in percent; None if it is not published.
        source: the paper that publishes parameters and accuracy.
        gmacs_source: the paper that publishes the multiply-adds; "counted" for a CvT.
    """

    model: str
    family: str
    image_size: tuple[int, int]
    pretrained_on: str
    parameters: int
    gmacs: float
    top1: float | None
    source: str
    gmacs_source: str


FAMILIES = (
    Family("ViT/DeiT", "yes", "non-overlapping", "linear", "no"),
    Family("CPVT", "generated", "non-overlapping", "linear", "no"),
    Family("TNT", "yes", "non-overlapping (patch + pixel)", "linear", "no"),
    Family("T2T", "yes", "overlapping (concatenated)", "linear", "partly (tokens)"),
    Family("PVT", "yes", "non-overlapping", "spatial reduction", "yes"),
    Family("CvT", "no", "overlapping (convolution)", "convolution", "yes"),
)


@dataclass(frozen=True)
class _Paper:
    family: str
    source: str
    gmacs_source: str = ""

    def row(
        self, model: str, parameters: float, gmacs: float, *, top1: float, image_size: int = 224
    ) -> Row:
        return Row(
            model,
            family=self.family,
            image_size=(image_size, image_size),
            pretrained_on="ImageNet-1k",
            parameters=round(parameters * 1e6),
            gmacs=gmacs,
            top1=top1,
            source=self.source,
            gmacs_source=self.gmacs_source or self.source,
        )


# Figures from the last version of each paper, for training on ImageNet-1k alone, without
# distillation. ViT and DeiT publish no multiply-adds: theirs are from Swin's table 1, and CPVT's
# from Twins, its authors' next paper.
_VIT = _Paper("ViT/DeiT", "arXiv 2010.11929", "arXiv 2103.14030")
_DEIT = _Paper("ViT/DeiT", "arXiv 2012.12877", "arXiv 2103.14030")
_CPVT = _Paper("CPVT", "arXiv 2102.10882", "arXiv 2104.13840")
_TNT = _Paper("TNT", "arXiv 2103.00112")
_T2T = _Paper("T2T", "arXiv 2101.11986")
_PVT = _Paper("PVT", "arXiv 2102.12122")
OTHERS = (
    _VIT.row("ViT-B/16", 86, 55.4, top1=77.9, image_size=384),
    _DEIT.row("DeiT-S", 22, 4.6, top1=79.8),
    _DEIT.row("DeiT-B", 86, 17.5, top1=81.8),
    _CPVT.row("CPVT-S", 23, 4.6, top1=80.5),
    _CPVT.row("CPVT-B", 88, 17.6, top1=82.3),
    _TNT.row("TNT-S", 23.8, 5.2, top1=81.5),
    _TNT.row("TNT-B", 65.6, 14.1, top1=82.9),
    _T2T.row("T2T-ViT-14", 21.5, 4.8, top1=81.5),
    _T2T.row("T2T-ViT-19", 39.2, 8.5, top1=81.9),
    _T2T.row("T2T-ViT-24", 64.1, 13.8, top1=82.3),
    _PVT.row("PVT-S", 24.5, 3.8, top1=79.8),
    _PVT.row("PVT-M", 44.2, 6.7, top1=81.2),
    _PVT.row("PVT-L", 61.4, 9.8, top1=81.7),
)


def rows() -> list[Row]:
    """List the other families' models as published, then the published CvTs, counted."""
    cvts = [
        replace(
            counted_row(
                entry.name.removeprefix("microsoft/"),
                count_cost(entry.config, (entry.image_size, entry.image_size)),
            ),
            pretrained_on=entry.pretrained_on,
            top1=entry.top1,
            source=CVT_PAPER,
        )
        for entry in PUBLISHED
    ]
    return [*OTHERS, *cvts]


def counted_row(name: str, cost: Cost) -> Row:
    """Make the row of a CvT whose accuracy nobody has published. `cost` is that of one image."""
    total = cost.total
    return Row(
        name,
        family="CvT",
        image_size=cost.image_size,
        pretrained_on="",
        parameters=total.parameters,
        gmacs=total.macs / 1e9,
        top1=None,
        source="",
        gmacs_source=COUNTED,
    )


def plot_families(rows: Iterable[Row], file: BinaryIO, format_: str) -> None:
    """Draw accuracy over multiply-adds, the paper's claim as a picture. Rows without accuracy are
    left out; a hollow mark is a model that was pre-trained on more than ImageNet-1k.

    Args:
        format_: a suffix that matplotlib knows.

    Raises:
        OSError: if the disk is full.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(3, 450)
    ticks = [4, 8, 16, 32, 64, 128, 256]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("GMACs an image (10⁹ multiply-adds, logarithmic)")
    axes.set_ylabel("ImageNet-1k top-1 accuracy (%)")
    axes.set_title("Vision transformers: accuracy over cost (hollow: pre-trained on more)")
    axes.grid(alpha=0.25, which="both")
    shown = [row for row in rows if row.top1 is not None]
    colors = _plot_marks(axes, shown)
    axes.legend(loc="lower right")
    figure.draw_without_rendering()  # the sizes of labels are known once the axes have been placed
    _plot_labels(axes, shown, colors)
    figure.savefig(file, dpi=150, format=format_.lower().removeprefix("."))


def _plot_marks(axes: "Axes", rows: list[Row]) -> dict[str, str]:
    colors: dict[str, str] = {}
    for row in rows:
        first = row.family not in colors
        # matplotlib leaves labels that start with "_" out of the legend.
        color = colors.setdefault(row.family, "black" if row.family == "CvT" else f"C{len(colors)}")
        hollow = row.pretrained_on != "ImageNet-1k"
        axes.plot(
            [row.gmacs],
            [row.top1 or 0.0],
            linestyle="none",
            marker="o" if row.family == "CvT" else "s",
            color=color,
            markerfacecolor="white" if hollow else color,
            label=row.family if first else f"_{row.model}",
            zorder=3,
        )
    return colors


def _plot_labels(axes: "Axes", rows: list[Row], colors: dict[str, str]) -> None:
    """Put each label beside its mark, where no other mark and no earlier label is."""
    from matplotlib.transforms import Bbox

    places = {"right": (6, -3), "left": (-6, -3), "above": (0, 6), "below": (0, -12)}
    marks = axes.transData.transform([(row.gmacs, row.top1 or 0.0) for row in rows])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for row in sorted(rows, key=lambda row: row.family != "CvT"):
        for name, offset in places.items():
            label = axes.annotate(
                row.model,
                (row.gmacs, row.top1 or 0.0),
                xytext=offset,
                textcoords="offset points",
                horizontalalignment={"right": "left", "left": "right"}.get(name, "center"),
                fontsize=7,
                color=colors[row.family],
            )
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or name == "below":
                taken.append(box)
                break
            label.remove()
