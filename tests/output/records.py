"""Records with everything in them that has ever broken a file format."""

from cvt_cli.records import Prediction, Record, RecordShape

SHAPE = RecordShape(top_k=2, columns=("width", "seconds", "sha256"))

HOSTILE = (
    "plain.jpg",
    "comma, and semicolon;.jpg",
    'double "quotes".jpg',
    '"',
    '""',
    "'single'.jpg",
    "tab\tin it.jpg",
    "line\nbreak.jpg",
    "carriage\rreturn.jpg",
    "both\r\nof them.jpg",
    " spaces ",
    "=1+1",
    "{}",
    "[",
    "]},\n",
    "back\\slash\\n.jpg",
    "brown\u0308 \u4e2d\u6587 \U0001f408.jpg",
    "next\x85line\u2028separator\u2029.jpg",
    "\x01\x1b[31mred\x7f",
    "\ufeffbom.jpg",
    "NaN",
    "null",
    "long" * 50_000,
)


def hostile_records() -> list[Record]:
    """Each hostile text as path, label and error."""
    nothing = {"width": 0, "seconds": 0.0, "sha256": "0"}
    records = [Record("0", (Prediction("0", 0.0, 0),), columns=nothing)]
    for text in HOSTILE:
        facts = {"width": 640, "seconds": 0.25, "sha256": "ab" * 32}
        best = (Prediction(text, 0.75, 3), Prediction("next", 0.000001, 0))
        records += [
            Record(text, best, columns=facts),
            Record(f"{text}.1", best[:1], columns=facts),
            Record(f"{text}.2", columns=facts),
            Record(f"{text}.3", error=text),
        ]
    return records


def some_records() -> list[Record]:
    """A handful, for tests that look at every byte."""
    return [
        Record("a, b.jpg", (Prediction('the "first"', 0.5, 0), Prediction("x\ny", 0.25, 1))),
        Record("line\nbreak\r.jpg", (Prediction("only", 1.0, 2),)),
        Record("bad.jpg", error="it's\tno image"),
        Record("none"),
        Record("\u4e2d\\.jpg", (Prediction("}", 0.5, 0), Prediction("]", 0.25, 1))),
    ]
