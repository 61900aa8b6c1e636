"""The plot of a benchmark: throughput and latency over batch size."""

from typing import TYPE_CHECKING, BinaryIO

from cvt_cli.benchmark.network import Case, Comparison, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(measurement: Measurement, file: BinaryIO, format_: str) -> None:
    """Draw throughput with the limit set by the matrix products on the left, and latency (p50, with
    the range to p99) on the right. A line per dtype, dashed for the peer.

    Args:
        format_: a suffix that matplotlib knows.

    Raises:
        OSError: if the file can't be written.
    """
    from matplotlib.figure import Figure

    plan = measurement.plan
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for index, dtype in enumerate(measurement.peaks):
        color = f"C{index}"
        cases = [case for case in measurement.cases if case.dtype == dtype and case.latency]
        cases.sort(key=lambda case: case.batch_size)
        _plot_dtype(throughput, latency, cases, dtype=dtype, color=color)
        _plot_peer(throughput, latency, cases, label=f"{plan.peer} {dtype}", color=color)
        throughput.axhline(
            measurement.limit(dtype), color=color, linestyle=":", label=f"limit, {dtype}"
        )
    throughput.set_ylabel("images/s")
    throughput.set_ylim(bottom=0)
    latency.set_ylabel("latency (ms; p50, shaded to p99)")
    latency.set_yscale("log")
    for set_formatter in (latency.yaxis.set_major_formatter, latency.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")  # not in powers of ten
    for axes in (throughput, latency):
        axes.set_xlabel("batch size")
        axes.set_xscale("log", base=2)
        axes.set_xticks(plan.batch_sizes, [str(size) for size in plan.batch_sizes])
        axes.grid(alpha=0.25)
    throughput.legend()
    figure.suptitle(f"{plan.checkpoint.name} on {plan.device}")
    figure.savefig(file, dpi=150, format=format_.lower().removeprefix("."))


def _plot_dtype(
    throughput: "Axes", latency: "Axes", cases: list[Case], *, dtype: str, color: str
) -> None:
    sizes = [case.batch_size for case in cases]
    throughput.plot(
        sizes, [case.images_per_second or 0.0 for case in cases], "o-", color=color, label=dtype
    )
    figures = [case.latency for case in cases if case.latency]
    latency.plot(sizes, [each.p50 * 1e3 for each in figures], "o-", color=color)
    latency.fill_between(
        sizes,
        [each.p50 * 1e3 for each in figures],
        [each.p99 * 1e3 for each in figures],
        color=color,
        alpha=0.2,
        linewidth=0,
    )


def _plot_peer(
    throughput: "Axes", latency: "Axes", cases: list[Case], *, label: str, color: str
) -> None:
    compared: list[tuple[int, Comparison]] = [
        (case.batch_size, case.comparison) for case in cases if case.comparison
    ]
    if not compared:
        return
    sizes = [size for size, _ in compared]
    seconds = [comparison.latency.p50 for _, comparison in compared]
    rates = [size / each for size, each in zip(sizes, seconds, strict=True)]
    throughput.plot(sizes, rates, "s--", color=color, label=label)
    latency.plot(sizes, [each * 1e3 for each in seconds], "s--", color=color)
