"""The tables of an inspection: a checkpoint, its stages, its layers, its weights, two side by
side."""

import math
import textwrap
from collections.abc import Iterator
from typing import Any

from cvt_cli.inspection.facts import Inspection, layer_record
from cvt_cli.inspection.weights import WeightsFacts
from cvt_cli.model.cost import Layer, Total
from cvt_cli.output.report_tables import (
    Cell,
    Column,
    Report,
    Section,
    Share,
    si,
    si_unit,
    size_in_words,
)

LABEL_WIDTH = 11
MAX_CELL_WIDTH = 26  # in the table of stages
PLAIN_WIDTH = 100  # at which plain text is wrapped
# Widths of a terminal from which on bars are long, and names are written in full.
LONG_BARS_FROM = 74
FULL_NAMES_FROM = 80

STAGES_NOTE = (
    "A stage turns its input into tokens, rows × columns of them, each a vector of that width. A "
    "token is made from a window of kernel × kernel (pixels in stage 1, then tokens), one every "
    "stride. As many blocks as the depth then let the tokens exchange information: attention, "
    "with that many heads side by side, looks up keys and values, of which there may be fewer. "
)
CLASS_TOKEN_NOTE = "+ 1 is the class token, from which the head reads the answer. "
COST_NOTE = "A MAC is a multiplication with its addition; papers often call that a FLOP."

ACTIVATIONS = {"gelu": "GELU", "quick_gelu": "QuickGELU"}
PROJECTIONS = {"dw_bn": "{0}×{0} conv.", "avg": "{0}×{0} avg.", "linear": "none"}


def inspection_report(inspection: Inspection, layers: bool, weights: WeightsFacts | None) -> Report:
    """Build the report of a checkpoint: summary, stages and kinds of layers; every layer and every
    weight on request."""
    document = inspection.as_json(layers=layers)
    records: list[dict[str, Any]] = inspection.stage_records()
    # The head belongs to no stage, but without it the columns would not add up.
    records.append(dict.fromkeys(records[0], "") | {"stage": "head"} | document["head"])
    if layers:
        records = [_flat(layer_record(layer)) for layer in inspection.cost.layers()]
    if weights is not None:
        document["weights"] = weights.as_json()
        records = [_flat(tensor) for tensor in document["weights"]["tensors"]]

    def sections(width: int | None) -> Iterator[Section]:
        yield _summary(inspection)
        yield from _stages(inspection, width)
        yield _kinds(inspection, width)
        if layers:
            yield from _layers(inspection, width)
        if weights is not None:
            yield from _weights(weights)

    return Report(document, records, lambda width: list(sections(width)))


def labels_report(inspection: Inspection) -> Report:
    """Build the report of the labels by class index."""
    labels = inspection.labels or ()
    columns = (Column(right=True), Column(wraps=True))
    rows = [(str(index), label) for index, label in enumerate(labels)]
    return Report(
        {"model": inspection.name, "labels": list(labels)},
        [{"index": index, "label": label} for index, label in enumerate(labels)],
        lambda width: [Section("", columns, rows)],
    )


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Format shapes as `1x64x56x56`, for a cell of a CSV."""
    return {
        key: "x".join(map(str, value)) if isinstance(value, list) else value
        for key, value in record.items()
    }


def _summary(one: Inspection) -> Section:
    cost, config = one.cost, one.config
    total = cost.total
    rows = [
        ("model", f"{_plural(config.num_stages, 'stage')}, {_plural(sum(config.depth), 'block')}, "
                  f"{_plural(config.num_labels, 'label')}, {ACTIVATIONS[config.hidden_act]}"),
        ("parameters", f"{total.parameters:,} ({si_unit(cost.weight_bytes, 'B')} in {cost.dtype})"),
        ("cost", f"{si_unit(total.macs, 'MACs')} = {si_unit(total.flops, 'FLOPs')} for "
                 f"{_images(cost.batch_size)} of {size_in_words(one.image_size)}"),
        ("activations", f"at most {si_unit(cost.peak_activation_bytes, 'B')} at once, "
                        f"{si_unit(total.activation_bytes, 'B')} in all (training keeps about "
                        f"that), {cost.dtype}"),
        ("input", one.preprocessing.in_words()),
        ("scores", one.score_kind.in_words),
    ]  # fmt: skip
    if one.published is not None:
        rows.append(
            (
                "published",
                f"{one.published.top1}% top-1 on ImageNet-1k, {one.published.gmacs} GMACs, "
                f"pre-trained on {one.published.pretrained_on}",
            )
        )
    rows += [
        (key, value_in_words(one.card[key])) for key in ("license", "datasets") if one.card.get(key)
    ]
    rows += _whereabouts(one)
    return Section(one.name, (Column(width=LABEL_WIDTH), Column(wraps=True)), rows)


def _whereabouts(one: Inspection) -> Iterator[tuple[str, str]]:
    if one.files is None:
        yield "cached", f"no; `cvt models --download {one.name}` fetches it"
        return
    if one.files.commit is not None:
        yield "commit", one.files.commit
        yield "cached", "yes" if one.has_local_weights else "the configuration, not the weights"
    else:
        yield "from", f"{one.source}, {one.layout} layout"
    for facts in one.file_facts:
        yield "file", f"{facts.path.name}, {si_unit(facts.size, 'B')}, SHA-256 {facts.sha256}"


def _stages(one: Inspection, width: int | None) -> Iterator[Section]:
    """Lay out the stages, one column each; in several tables if the terminal is narrow."""
    total = one.cost.total
    columns = [_stage_column(one, record) for record in one.stage_records()]
    columns.append(["head", *[""] * 8, *_cost_cells(one.head_total, total)])
    names = ["", "tokens", "width", "heads", "depth", "kernel", "stride", "keys", "projection"]
    names += ["parameters", "share", "MACs", "share"]
    if width is None:
        cell, at_once = None, len(columns)
    else:
        texts = (each for column in columns for each in column if isinstance(each, str))
        least = max(map(len, texts))
        room = width - LABEL_WIDTH  # each column has a gap of two before it
        at_once = max(1, min(len(columns), room // (least + 2)))
        cell = max(least, min(MAX_CELL_WIDTH, room // at_once - 2))
    rest = STAGES_NOTE + CLASS_TOKEN_NOTE * any(one.config.cls_token) + COST_NOTE
    for start in range(0, len(columns), at_once):
        part = columns[start : start + at_once]
        rows: list[list[Cell]] = [list(row) for row in zip(names, *part, strict=True)]
        header = [Column(str(name), width=cell) for name in rows.pop(0)[1:]]
        note = textwrap.fill(rest, min(width or PLAIN_WIDTH, PLAIN_WIDTH))
        yield Section(
            "Stages" if start == 0 else "",
            [Column(width=LABEL_WIDTH if width else None), *header],
            rows,
            note=note if start + at_once >= len(columns) else "",
        )


def _stage_column(one: Inspection, record: dict[str, Any]) -> list[Cell]:
    stage = one.cost.stages[record["stage"] - 1]
    kernel, class_token = record["kernel"], record["class_token"]
    tokens, keys = (
        f"{rows}×{columns}" + " + 1" * class_token
        for rows, columns in (stage.tokens, (record["key_rows"], record["key_columns"]))
    )
    return [
        f"stage {record['stage']}",
        tokens,
        str(record["width"]),
        str(record["heads"]),
        _plural(record["depth"], "block"),
        f"{kernel}×{kernel}",
        str(record["stride"]),
        keys,
        PROJECTIONS[record["projection"]].format(one.config.kernel_qkv[stage.index]),
        *_cost_cells(stage.total, one.cost.total),
    ]


def _cost_cells(part: Total, whole: Total) -> list[Cell]:
    return [
        si(part.parameters),
        Share(part.parameters / whole.parameters),
        si(part.macs),
        Share(part.macs / whole.macs),
    ]


def _kinds(one: Inspection, width: int | None) -> Section:
    total = one.cost.total
    bar = 12 if width is None or width >= LONG_BARS_FROM else 6
    columns = (
        Column(),
        Column("parameters", right=True),
        Column(width=bar),
        Column("MACs", right=True),
        Column(width=bar),
        Column("activations", right=True, from_width=88),
    )
    rows = [
        [kind, *_cost_cells(part, total), si_unit(part.activation_bytes, "B")]
        for kind, part in one.cost.by_kind().items()
    ]
    return Section("Where the parameters and the MACs are", columns, rows)


def _layers(one: Inspection, width: int | None) -> Iterator[Section]:
    """Lay out the layers: in blocks under headings on a terminal, with full names in plain text."""
    columns = (
        Column("layer"),
        Column("kind", from_width=115),
        Column("in", from_width=88),
        Column("out"),
        Column("parameters" if width is None or width >= FULL_NAMES_FROM else "params", right=True),
        Column("MACs", right=True),
        Column("memory", right=True, from_width=76),
    )
    rows: list[list[Cell]] = []
    if width is None:
        rows = [_layer_row(layer, layer.name) for layer in one.cost.layers()]
    else:
        for stage in one.cost.stages:
            rows.append([f"stage {stage.index + 1}"])
            prefix = f"stages.{stage.index}."
            rows += [_layer_row(layer, layer.name.removeprefix(prefix)) for layer in stage.embed]
            for block in range(stage.depth):
                rows.append([f"stage {stage.index + 1}, block {block + 1} of {stage.depth}"])
                rows += [_layer_row(layer, layer.name) for layer in stage.block]
        rows.append(["after the last stage"])
        rows += [_layer_row(layer, layer.name) for layer in one.cost.last]
    yield Section("Layers", columns, rows)


def _layer_row(layer: Layer, name: str) -> list[Cell]:
    return [
        name,
        layer.kind,
        "×".join(map(str, layer.shape_in)),
        "×".join(map(str, layer.shape_out)),
        si(layer.total.parameters),
        si(layer.total.macs),
        si_unit(layer.total.activation_bytes, "B"),
    ]


def _weights(facts: WeightsFacts) -> Iterator[Section]:
    dtypes = ", ".join(f"{count} of {dtype}" for dtype, count in facts.dtypes.items())
    names = [tensor.name for tensor in facts.not_finite]
    rows = [
        ("weights", f"{_plural(len(facts.tensors), 'tensor')}: {dtypes}"),
        ("NaN or infinite", ", ".join(names) or "none"),
        ("missing", ", ".join(facts.missing) or "none"),
        ("left over", ", ".join(facts.left_over) or "none"),
        ("other shape", "; ".join(facts.other_shape) or "none"),
    ]
    yield Section("Weights", (Column(), Column(wraps=True)), rows)
    columns = (
        Column("weight"),
        Column("dtype", from_width=100),
        Column("shape", from_width=100),
        *(Column(name, right=True) for name in ("mean", "std")),
        *(Column(name, right=True, from_width=80) for name in ("min", "max")),
        Column("NaN", right=True, from_width=100),
        Column("inf", right=True, from_width=100),
    )
    table = [
        [
            tensor.name,
            tensor.dtype,
            "×".join(map(str, tensor.shape)),
            *map(number, (tensor.mean, tensor.std, tensor.min, tensor.max)),
            str(tensor.nan),
            str(tensor.infinite),
        ]
        for tensor in facts.tensors
    ]
    yield Section("", columns, table)


def sentence(title: str, text: str) -> Section:
    """Make a section of one sentence."""
    return Section(f"{title}: {text}", (), ())


def value_in_words(value: object) -> str:
    """Format a value of a configuration."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(value_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float | None) -> str:
    """Format a number with four digits; empty if there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _images(batch_size: int) -> str:
    return "an image" if batch_size == 1 else f"{batch_size:,} images"
