"""The table for people: blocks, or one line per image."""

import io

import pytest

from cvt_cli.inference.scores import record_shape
from cvt_cli.output.plain import PlainWriter
from cvt_cli.output.table import TableWriter
from cvt_cli.records import Prediction, Record, RecordShape, ScoreKind, short_label

PANDA = "lesser panda, red panda, panda, bear cat, cat bear, Ailurus fulgens"
LABELS = (PANDA, "tabby, tabby cat", "acorn", "goose", "bee")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return Screen()


def records(count: int, top_k: int = 5) -> list[Record]:
    best = [Prediction(label, 0.5 - 0.1 * rank, rank) for rank, label in enumerate(LABELS)]
    columns = {"width": 640, "camera": "Canon"}
    return [Record(f"p/{i}.jpg", tuple(best[:top_k]), columns=columns) for i in range(count)]


def shape(top_k: int | None, *columns: str) -> RecordShape:
    return record_shape(ScoreKind.SOFTMAX, 5, top_k, threshold=None, columns=columns)


def lines(stream: io.StringIO) -> list[str]:
    return [line.strip() for line in stream.getvalue().splitlines() if line.strip("\x1b[0m ")]


# Three blocks of eight lines fill 24 lines.
@pytest.mark.parametrize(
    ("top_k", "count", "number"),
    [(None, 3, 3 * 7), (None, 4, 1 + 4), (5, 4, 4 * 7), (1, 2, 1 + 2)],
)
def test_one_line_per_image(screen: Screen, top_k: int | None, count: int, number: int) -> None:
    writer = TableWriter(screen, shape(top_k))
    for record in records(count, top_k or 5):
        writer.write([record])
    writer.close()
    assert len(lines(screen)) == number
    assert "lesser panda " in screen.getvalue() and "red panda" not in screen.getvalue()
    assert "tabby, tabby cat" in screen.getvalue() or number < 6


def test_a_file_has_no_screen() -> None:
    stream = io.StringIO()
    writer = TableWriter(stream, shape(None))
    writer.write(records(9))
    assert len(lines(stream)) == 9 * 6
    writer.close()


@pytest.mark.parametrize(("columns", "left_out"), [("60", "camera"), ("120", "")])
def test_columns_that_have_no_room_are_named(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, columns: str, left_out: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    writer = TableWriter(screen, shape(1, "width", "camera"))
    writer.write([*records(1, 1), Record("dir/" + "x" * 90 + "end.jpg", error="is empty")])
    writer.close()
    text = screen.getvalue()
    assert "640" in text and ("Canon" in text) is not bool(left_out)
    assert (f"no room here for {left_out}:" in text) is bool(left_out)
    assert "end.jpg" in text and "dir/" not in text and "is empty" in text


def test_a_block_shows_its_columns(screen: Screen) -> None:
    writer = TableWriter(screen, shape(5, "camera", "width", "lens"))
    writer.write(records(1))
    assert "camera Canon, width 640\n" in screen.getvalue().replace("\x1b[0m", "")


def test_plain_lines_show_columns_too() -> None:
    stream = io.StringIO()
    failed = Record("bad.jpg", error="is empty", columns={"width": None})
    PlainWriter(stream, shape(1, "width", "lens", "camera")).write([*records(1, 1), failed])
    assert stream.getvalue().splitlines() == [
        f"p/0.jpg\t{PANDA}\t0.500000\t640\t\tCanon",
        "bad.jpg\t\t\t\t\t\tis empty",
    ]
    sigmoid = record_shape(ScoreKind.SIGMOID, 5, 1, threshold=None)
    assert sigmoid.columns == ("scores",) and not sigmoid.shown


@pytest.mark.parametrize(
    ("label", "short"),
    [
        (PANDA, "lesser panda"),
        ("tabby, tabby cat", "tabby, tabby cat"),
        ("a label that is long and has no comma", "a label that is long and has no comma"),
        (", that begins with a comma and is long", ", that begins with a comma and is long"),
    ],
)
def test_long_lists_of_synonyms_are_shortened(label: str, short: str) -> None:
    assert short_label(label) == short
