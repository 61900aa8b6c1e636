"""The tables of a benchmark: what was measured, how, and the figures."""

import textwrap
from collections.abc import Sequence
from typing import Any

from cvt_cli.benchmark.machine import Machine
from cvt_cli.benchmark.model import RandomCheckpoint
from cvt_cli.benchmark.network import Measurement, Plan
from cvt_cli.benchmark.pipeline import MAX_IMAGES, PipelineMeasurement, PipelinePlan
from cvt_cli.benchmark.stage_times import STAGES
from cvt_cli.model.cost import count_cost
from cvt_cli.output.report_tables import (
    Cell,
    Column,
    Report,
    Section,
    decimals,
    si_unit,
    size_in_words,
)
from cvt_cli.system.cores import cores
from cvt_cli.system.text import counted

HEADER_WIDTH = 11
PLAIN_WIDTH = 100
# The least number written with two decimals, and the least share in whole percent.
LEAST_WITH_TWO = 0.0995
LEAST_WHOLE_PERCENT = 0.0995
RANDOM = "random weights, as none are on this machine"
COUNT = (
    "2 × the multiply-adds that the logits need; what the last block would compute for tokens that "
    "nothing reads is neither done nor counted"
)
LATENCY = (
    "Latency: from the call to the logits on the device, input already there. Images/s, TFLOP/s "
    "and the peak share follow from its p50. Spread: interquartile range / p50. Peak: the needed "
    "operations' share of the fastest matrix product of that dtype in this run."
)
TURNS = (
    "{0} took turns with cvt on the same weights and inputs, on a CPU in a process of its own. "
    "Ratio: its time / ours, the median of all rounds (least to greatest). Labels: images for "
    "which both have the same best label; difference: the largest of any logit."
)
ORIGINS = {
    "usual": "the usual one",
    "cache": "measured in an earlier run",
    "measured": "measured now",
}
ROUNDING = "On random weights the labels of a reduced precision differ by rounding alone."
STAGES_NOTE = (
    "Stages: milliseconds an image that each takes with the machine for itself, and its share of "
    "their sum; decode and preprocess by {} processes. Limit: what perfect overlap would give: {}. "
    "The model is loaded before; images/s are of the median pass over all files."
)
START_NOTE = "Start: the first batches, before the passes, in which kernels are compiled."


def benchmark_report(measurement: Measurement | PipelineMeasurement, machine: Machine) -> Report:
    """Build the report from the finished measurements."""
    if isinstance(measurement, Measurement):
        return _network_report(measurement, machine)
    return _pipeline_report(measurement, machine)


def _network_report(measurement: Measurement, machine: Machine) -> Report:
    plan = measurement.plan
    records = [measurement.record(case) for case in measurement.cases]
    document = {
        "machine": machine.as_json(),
        "model": _model_json(plan)
        | {
            "image_size": list(plan.image_size),
            "needed_flops_per_image": plan.flops_per_image,
            "macs_per_image": count_cost(plan.checkpoint.config, plan.image_size).total.macs,
            "compiled": plan.compiled,
        },
        "method": {"duration": plan.duration, "flops": COUNT},
        "peaks": {
            dtype: {
                "tflops": peak.tflops,
                "product": peak.product,
                "limit_images_per_second": measurement.limit(dtype),
            }
            for dtype, peak in measurement.peaks.items()
        },
        "complete": len(records) == measurement.planned,
        "results": records,
    }

    def sections(width: int | None) -> Sequence[Section]:
        flops = si_unit(plan.flops_per_image, "FLOPs")
        rows = [
            *_machine_rows(machine),
            ("input", f"synthetic, {size_in_words(plan.image_size)}"),
            ("cost", f"{flops} an image: {COUNT}"),
        ]
        rows += [
            ("peak", f"{dtype} {_rate(peak.tflops)}, {peak.product}: "
                     f"at most {_number(measurement.limit(dtype))} images/s")
            for dtype, peak in measurement.peaks.items()
        ]  # fmt: skip
        if plan.compiled:
            what = "the plain network" if plan.device.type == "cpu" else "the inference form"
            rows.append(("compiled", f"{what}, by torch.compile; start: the first call, no cache"))
        rows += _form_rows(records)
        found = [_header(plan, machine, rows), _latencies(records, plan, width)]
        if plan.peer is not None and any(record["ratio"] is not None for record in records):
            found.append(_turns(records, plan, width))
        return found

    return Report(document, _rows(records, plan, machine), sections)


def _pipeline_report(measurement: PipelineMeasurement, machine: Machine) -> Report:
    plan = measurement.plan
    records = [measurement.record(case) for case in measurement.cases]
    document = {
        "machine": machine.as_json(),
        "model": _model_json(plan)
        | {"image_size": list(plan.image_size) if plan.image_size else None},
        "method": {
            "duration": plan.duration,
            "folder": str(plan.folder),
            "decode": "exact" if plan.exact_decode else "fast",
            "readers": cores(),
            "unreadable": measurement.unreadable,
            "only_the_first": MAX_IMAGES if measurement.left_out else None,
        },
        "complete": len(records) == measurement.planned,
        "results": records,
    }

    def sections(width: int | None) -> Sequence[Section]:
        images = f"{plan.folder}, {records[0]['images'] if records else 0:,} images a pass"
        if measurement.left_out:
            images += f", the first {MAX_IMAGES:,} files"
        if measurement.unreadable:
            images += f", without {measurement.unreadable:,} that can't be read"
        rows = [
            *_machine_rows(machine),
            ("input", images),
            ("decode", "exact" if plan.exact_decode else "fast"),
        ]
        rows += _form_rows(records)
        found = [_header(plan, machine, rows), _rates(records, plan, width)]
        if plan.with_peer and any(record["ratio"] is not None for record in records):
            found.append(_pipeline_turns(records, width))
        return found

    return Report(document, _rows(records, plan, machine), sections)


def _rows(
    records: Sequence[dict[str, Any]], plan: Plan | PipelinePlan, machine: Machine
) -> list[dict[str, Any]]:
    """Return the rows of the CSV: the figures of each case, and what they were measured on, so that
    the files of several machines can be put into one."""
    size = plan.image_size or plan.checkpoint.preprocessing.image_size
    conditions = {
        "model": plan.checkpoint.name,
        "processor": machine.device_name if machine.driver else machine.cpu,
        "device": machine.device,
        "threads": machine.threads,
        "image_size": "x".join(map(str, size)) if size else "each its own",
    }
    return [conditions | record for record in records]


def _model_json(plan: Plan | PipelinePlan) -> dict[str, Any]:
    return {
        "name": plan.checkpoint.name,
        "commit": plan.checkpoint.files.commit,
        "random_weights": isinstance(plan.checkpoint, RandomCheckpoint),
    }


def _header(
    plan: Plan | PipelinePlan, machine: Machine, rows: Sequence[tuple[str, str]]
) -> Section:
    title = plan.checkpoint.name
    if isinstance(plan.checkpoint, RandomCheckpoint):
        title += f": {RANDOM}"
    note = ""
    if machine.is_busy:
        note = f"This machine was busy at the start (load {machine.load}): figures may be low."
    return Section(title, (Column(width=HEADER_WIDTH), Column(wraps=True)), rows, note=note)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    flags = f", {' '.join(machine.flags)}" if machine.flags else ""
    memory = f", {si_unit(machine.memory_bytes, 'B')}" if machine.memory_bytes else ""
    device = [machine.device]
    if machine.driver:
        device += [machine.device_name, machine.driver]
    else:
        device.append(counted(machine.threads, "thread"))
    if machine.float32_precision != "highest":
        device.append(f"float32 products in precision {machine.float32_precision}")
    return [
        ("machine", f"{machine.cpu}, {counted(machine.cores, 'core')}{memory}{flags}"),
        ("device", ", ".join(device)),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in machine.versions.items())
            + f", {machine.system}",
        ),
    ]


def _form_rows(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Say in which form the network computed, and how that was chosen, a row for each."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record["form"] is not None:
            case = f"{record['dtype']} {record['batch_size']}"
            cases.setdefault((record["form"], record["form_by"]), []).append(case)
    return [
        ("form", f"{', '.join(each)}: {form}; {ORIGINS[by]}") for (form, by), each in cases.items()
    ]


def _latencies(records: Sequence[dict[str, Any]], plan: Plan, width: int | None) -> Section:
    columns = [
        Column("dtype"),
        Column("batch", right=True),
        *(Column(name, right=True) for name in ("p50 ms", "p90 ms", "p99 ms")),
        Column("spread", right=True, from_width=76),
        Column("images/s", right=True),
        Column("TFLOP/s", right=True, from_width=68),
        Column("peak", right=True),
        Column("memory", right=True, from_width=96 if plan.compiled else 86),
        *([Column("start", right=True)] if plan.compiled else []),
        Column(wraps=True),
    ]
    rows: list[list[Cell]] = [
        [
            record["dtype"],
            str(record["batch_size"]),
            *(_number(record[f"latency_ms_{p}"]) for p in ("p50", "p90", "p99")),
            _percent(record["latency_spread"]),
            _number(record["images_per_second"]),
            _number(record["tflops"]),
            _percent(record["peak_fraction"]),
            _bytes(record["memory_bytes"]),
            *([_seconds(record["compile_seconds"])] if plan.compiled else []),
            record["error"] or "",
        ]
        for record in records
    ]
    memory = (
        "torch's tensors"
        if plan.device.type == "cuda"
        else "the whole process's, libraries included"
    )
    note = f"{LATENCY} Memory: {memory}, at most. About {plan.duration:g} s a case."
    return Section("Network alone", columns, rows, note=_folded(note, width))


def _turns(records: Sequence[dict[str, Any]], plan: Plan, width: int | None) -> Section:
    peer = str(plan.peer)
    columns = [
        Column("dtype"),
        Column("batch", right=True),
        Column("p50 ms", right=True),
        Column("images/s", right=True),
        Column("ratio", right=True),
        Column("(range)", right=True),
        Column("rounds", right=True, from_width=96),
        Column("labels", right=True),
        Column("difference", right=True, from_width=86),
    ]
    rows: list[list[Cell]] = [
        [
            record["dtype"],
            str(record["batch_size"]),
            _number(record["baseline_latency_ms_p50"]),
            _number(record["baseline_images_per_second"]),
            *_ratio(record),
            _percent(record["labels_agree"]),
            f"{record['logit_difference']:.1e}",
        ]
        for record in records
        if record["ratio"] is not None
    ]
    note = TURNS.format(peer)
    if isinstance(plan.checkpoint, RandomCheckpoint) and set(plan.dtypes) - {"float32"}:
        note += f" {ROUNDING}"
    return Section(f"Beside {peer}", columns, rows, note=_folded(note, width))


def _rates(records: Sequence[dict[str, Any]], plan: PipelinePlan, width: int | None) -> Section:
    on_cuda = plan.device.type == "cuda"
    columns = [
        Column("dtype"),
        Column("batch", right=True),
        Column("images/s", right=True),
        *(Column(name, right=True) for name in STAGES),
        Column("limit", right=True),
        Column("reached", right=True, from_width=84),
        *([Column("start", right=True)] if on_cuda else []),
        Column("bound by"),
    ]
    rows: list[list[Cell]] = []
    for record in records:
        error = record["error"]
        begin = [record["dtype"], str(record["batch_size"]), _number(record["images_per_second"])]
        end = [
            _number(record["limit_images_per_second"]),
            _percent(record["limit_fraction"]),
            *([_seconds(record["warm_up_seconds"])] if on_cuda else []),
            error or record["bound_by"] or "",
        ]
        rows.append([*begin, *(_number(record[f"{name}_ms"]) for name in STAGES), *end])
        shares = (_percent(record[f"{name}_share"]) for name in STAGES)
        rows.append(["", "", "", *shares, *[""] * len(end)])
    limit = (
        "as many as the cores that the stages share can do"
        if plan.device.type == "cpu"
        else "readers, device and output beside each other, the slowest counts"
    )
    note = STAGES_NOTE.format(cores(), limit) + (f" {START_NOTE}" if on_cuda else "")
    return Section("From files", columns, rows, note=_folded(note, width))


def _pipeline_turns(records: Sequence[dict[str, Any]], width: int | None) -> Section:
    columns = [
        Column("dtype"),
        *(Column(name, right=True) for name in ("batch", "images/s", "ratio")),
        Column("(range)", right=True),
        Column("rounds", right=True, from_width=96),
        Column("labels", right=True),
    ]
    rows: list[list[Cell]] = [
        [
            record["dtype"],
            str(record["batch_size"]),
            _number(record["baseline_images_per_second"]),
            *_ratio(record),
            _percent(record["labels_agree"]),
        ]
        for record in records
        if record["ratio"] is not None
    ]
    note = (
        "Its image-classification pipeline took turns with cvt on the same files, decoded with "
        "Pillow. Ratio: its time / ours, the median of all rounds (least to greatest). Labels: "
        "images for which both have the same best label."
    )
    return Section("Beside transformers", columns, rows, note=_folded(note, width))


def _ratio(record: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{record['ratio']:.2f}",
        f"({record['ratio_min']:.2f} to {record['ratio_max']:.2f})",
        str(record["rounds"]),
    )


def _folded(text: str, width: int | None) -> str:
    return textwrap.fill(text, min(width or PLAIN_WIDTH, PLAIN_WIDTH))


def _number(value: float | None) -> str:
    """Format a number with three digits, without an exponent."""
    if value is None:
        return ""
    digits = decimals(value) if value >= LEAST_WITH_TWO else 4
    return f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if value >= LEAST_WHOLE_PERCENT else f"{value:.1%}"


def _bytes(value: int | None) -> str:
    return "" if value is None else si_unit(value, "B")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _rate(tflops: float) -> str:
    return si_unit(tflops * 1e12, "FLOP/s")
