"""The tables of the comparison of families."""

from collections.abc import Sequence
from dataclasses import asdict

from cvt_cli.inspection.families import FAMILIES, Row
from cvt_cli.output.report_tables import Column, Report, Section, size_in_words

NOTE = (
    "GMACs: 10⁹ multiplications with their addition for one image, which the papers call FLOPs; "
    "for CvT counted here. Where a family's paper publishes none: ViT and DeiT as in arXiv "
    "2103.14030, CPVT as in arXiv 2104.13840, by its authors. Every model was trained on "
    "ImageNet-1k alone but those marked 22k, which saw ImageNet-22k first."
)


def comparison_report(rows: Sequence[Row]) -> Report:
    """Build the report of the models with their figures, then the families with their designs."""
    numbers = (
        Column("model"),
        Column("input", right=True),
        Column("params", right=True),
        Column("GMACs", right=True),
        Column("top-1", right=True),
        Column("arXiv"),
        Column("pre-trained on", from_width=100),
    )
    figures = [
        (
            row.model,
            _input(row.image_size),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.gmacs:.2f}" if row.gmacs < 1 else f"{row.gmacs:.1f}",
            "" if row.top1 is None else f"{row.top1:.1f}",
            row.source.removeprefix("arXiv "),
            row.pretrained_on,
        )
        for row in rows
    ]
    designs = (
        Column("family"),
        Column("position encoding", wraps=True, width=9),
        *(Column(name, wraps=True) for name in ("token embedding", "projection", "hierarchical")),
    )
    families = [tuple(asdict(family).values()) for family in FAMILIES]
    return Report(
        {
            "models": [asdict(row) for row in rows],
            "families": [asdict(family) for family in FAMILIES],
        },
        [asdict(row) for row in rows],
        lambda width: [
            Section("ImageNet-1k accuracy and its cost", numbers, figures, note=NOTE),
            Section("What the families are made of", designs, families),
        ],
    )


def _input(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else size_in_words(size)
