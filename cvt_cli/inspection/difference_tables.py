"""The tables of the differences between two checkpoints."""

from collections.abc import Iterable, Iterator, Sequence

from cvt_cli.inspection.difference import Difference, Setting
from cvt_cli.inspection.inspection_tables import number, sentence, value_in_words
from cvt_cli.inspection.weights import TensorDifference
from cvt_cli.output.report_tables import Column, Report, Section, si_unit, size_in_words

MAX_LABELS = 10  # differing labels shown, at most


def difference_report(difference: Difference) -> Report:
    """Build the report of the differences between two checkpoints."""
    weights = difference.weights
    empty = dict.fromkeys(("aspect", "name", "first", "second", "status", "largest"), "")
    records = [
        empty | {"aspect": s.aspect, "name": s.name, "first": s.first, "second": s.second}
        for s in (*difference.settings, *difference.labels)
    ]
    records += [
        empty | {"aspect": "weights", "name": w.name, "status": w.status, "largest": w.largest}
        for w in weights or ()
        if w.status != "equal"
    ]
    return Report(
        difference.as_json(),
        records,
        lambda width: list(_differences(difference)),
        header=tuple(empty),
    )


def _differences(difference: Difference) -> Iterator[Section]:
    first, second = difference.first, difference.second
    columns = (Column(), Column(first.name, wraps=True), Column(second.name, wraps=True))
    sides: list[list[str]] = [
        [
            str(one.config.num_labels),
            f"{one.cost.total.parameters:,}",
            si_unit(one.cost.total.macs, "MACs"),
            size_in_words(one.image_size),
            one.preprocessing.in_words(),
        ]
        for one in (first, second)
    ]
    names = ("labels", "parameters", "cost", "input", "preprocessing")
    yield Section("", columns, list(zip(names, *sides, strict=True)))
    for aspect in ("configuration", "preprocessing"):
        settings = [s for s in difference.settings if s.aspect == aspect]
        yield _setting_table(aspect.capitalize(), columns, settings)
    unknown = [one.name for one in (first, second) if one.labels is None]
    if unknown:
        yield sentence("Labels", f"not compared: those of {' and '.join(unknown)} are not here")
    else:
        yield _setting_table("Labels", columns, difference.labels)
    yield from _weights_difference(difference)


def _setting_table(title: str, columns: Sequence[Column], settings: list[Setting]) -> Section:
    if not settings:
        return sentence(title, "the same")
    rows = [
        (setting.name, value_in_words(setting.first), value_in_words(setting.second))
        for setting in settings[:MAX_LABELS]
    ]
    more = len(settings) - len(rows)
    note = f"and {more:,} more: --format csv has all" if more else ""
    return Section(f"{title}: {len(settings):,} differ", columns, rows, note=note)


def _weights_difference(difference: Difference) -> Iterator[Section]:
    weights = difference.weights
    if weights is None:
        names = difference.not_here
        hint = "".join(f"; `cvt models --download {name}` fetches them" for name in names[:1])
        yield sentence(
            "Weights", f"not compared: those of {' and '.join(names)} are not here{hint}"
        )
        return
    parts: dict[str, list[TensorDifference]] = {}
    for weight in weights:
        prefix, _, rest = weight.name.partition(".")
        stage = rest.partition(".")[0]
        is_stage = prefix == "stages" and stage.isdecimal()
        parts.setdefault(f"stage {int(stage) + 1}" if is_stage else prefix, []).append(weight)
    columns = (
        Column(),
        *(Column(name, right=True) for name in ("tensors", "equal", "largest difference")),
        Column("relative change, at most", right=True, from_width=80),
    )
    rows = [
        [
            part,
            str(len(members)),
            str(sum(each.status == "equal" for each in members)),
            _largest(each.largest for each in members),
            _largest(each.relative for each in members),
        ]
        for part, members in parts.items()
    ]
    odd = [w for w in weights if w.status not in ("equal", "different")]
    named = ", ".join(f"{weight.name} ({weight.status})" for weight in odd[:MAX_LABELS])
    note = f"Without a counterpart: {named}{', …' * (len(odd) > MAX_LABELS)}" if odd else ""
    yield Section("Weights", columns, rows, note=note)


def _largest(values: Iterable[float | None]) -> str:
    return number(max((each for each in values if each is not None), default=None))
