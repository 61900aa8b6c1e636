"""The tables of models: the catalogue, and the results of a search on the Hub."""

from collections.abc import Sequence
from typing import Any

from cvt_cli.inspection.facts import Inspection
from cvt_cli.output.report_tables import Column, Report, Section, si, si_unit, size_in_words

GIGA = 10**9
NOTE = (
    "top-1: % of the ImageNet-1k validation set, as published. size: of the weights; of those that "
    "are not here, in float32. `cvt models --download NAME` fetches one. A model knows its labels "
    "and nothing else: whatever a picture shows, one of them is the answer."
)


def catalogue_report(inspections: Sequence[Inspection]) -> Report:
    """Build the report of the known models with their figures and the state of the local cache."""
    records = [_record(one) for one in inspections]
    flat = [record | {"image_size": "x".join(map(str, record["image_size"]))} for record in records]
    columns = (
        Column("model"),
        Column("labels", right=True, from_width=68),
        Column("params", right=True),
        Column("GMACs", right=True),
        Column("input", right=True),
        Column("top-1", right=True, from_width=56),
        Column("size", right=True, from_width=72),
        Column("cached"),
        Column("pre-trained on", from_width=90),
    )
    rows = [
        (
            record["model"],
            f"{record['labels']:,}",
            si(record["parameters"]),
            f"{record['macs'] / GIGA:.{1 if record['macs'] >= GIGA else 3}f}",
            size_in_words(sorted(set(record["image_size"]))),
            f"{record['top1'] or ''}",
            si_unit(record["size"], "B"),
            _state(one),
            record["pretrained_on"] or "",
        )
        for record, one in zip(records, inspections, strict=True)
    ]
    return Report(records, flat, lambda width: [Section("", columns, rows, note=NOTE)])


def found_report(records: Sequence[dict[str, Any]]) -> Report:
    """Build the report of the Hub's results, in its order: most downloaded first."""
    columns = (
        Column("model", wraps=True),
        Column("downloads", right=True),
        Column("likes", right=True, from_width=70),
        Column("task", from_width=90),
        Column("trained on", wraps=True, from_width=60),
    )
    rows = [
        (
            record["model"],
            f"{record['downloads'] or 0:,}",
            f"{record['likes'] or 0:,}",
            record["task"] or "",
            ", ".join(record["datasets"]),
        )
        for record in records
    ]
    flat = [record | {"datasets": " ".join(record["datasets"])} for record in records]
    title = "" if rows else "no CvT on the Hub has that in its name"
    header = ("model", "downloads", "likes", "task", "datasets")
    return Report(list(records), flat, lambda width: [Section(title, columns, rows)], header=header)


def _record(one: Inspection) -> dict[str, Any]:
    total, published = one.cost.total, one.published
    weights = one.files.weights if one.files else ()
    return {
        "model": one.name,
        "source": one.source,
        "labels": one.config.num_labels,
        "parameters": total.parameters,
        "macs": total.macs,
        "image_size": list(one.image_size),
        "pretrained_on": published.pretrained_on if published else _datasets(one),
        "top1": published.top1 if published else None,
        "published_gmacs": published.gmacs if published else None,
        "size": sum(path.stat().st_size for path in weights) or one.cost.weight_bytes,
        "cached": one.has_local_weights,
        "path": str(weights[0].parent) if weights else None,
    }


def _state(one: Inspection) -> str:
    if one.source == "bundled":
        return "ships"
    if one.has_local_weights:
        return "yes"
    return "partly" if one.files else "no"


def _datasets(one: Inspection) -> str | None:
    datasets = one.card.get("datasets")
    return ", ".join(map(str, datasets)) if isinstance(datasets, list) else datasets
