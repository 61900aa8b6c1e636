"""What every run of one record an input does around it, in this process."""

import importlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from cvt_cli.cli import app, run
from cvt_cli.cli.messages import say
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.progress import Shown, how_shown
from cvt_cli.cli.run_record import RunRecord, check_run_record
from cvt_cli.errors import Interrupted, Remark, UsageError
from cvt_cli.images.source import Bytes, Search, Source
from cvt_cli.output import writer_class
from cvt_cli.output.journal import Journal, part_of
from cvt_cli.output.several_outputs import SeveralOutputs
from cvt_cli.output.stream import StreamOutput
from cvt_cli.records import Record, RecordShape

SHAPE = RecordShape(top_k=1)
# Members of an archive: nobody looks for them on the disk.
NAMES = ("x.zip::a.jpg", "x.zip::bad.jpg", "x.zip::c.jpg", "x.zip::bad again.jpg")


def record(name: str) -> Record:
    return Record(name, error="no image" if "bad" in name else None)


def sources() -> Iterator[Source]:
    return (Source(name, Bytes(b"")) for name in NAMES)


class Bar:
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.failed: list[bool] = []
        self.pauses = 0

    def add(self, failed: bool) -> None:
        self.failed.append(failed)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pauses += 1
        yield

    def close(self) -> None:
        pass


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Bar:
    made = Bar()
    monkeypatch.setattr(run, "Progress", lambda *_: made)
    return made


def go(sink: Any, run_record: Path | None = None, **options: Any) -> None:
    process = options.pop("process", lambda found, _: ([record(each.path)] for each in found))
    run.write_records(
        GlobalOptions(quiet=True),
        run.Sources(find=sources),
        process,
        sink=sink,
        batch_size=1,
        progress=False,
        run_record=run_record,
        description={},
        **options,
    )


def journal(path: Path, done: Sequence[str] = ()) -> Journal:
    """A journal, taken up where an earlier run has done so much."""
    first = Journal(path, writer_class("csv"), SHAPE, run={}, resume=False)
    first.write(record(name) for name in done)
    first._stream.close()
    first._lock.close()
    return Journal(path, writer_class("csv"), SHAPE, run={}, resume=True)


@pytest.mark.parametrize("done", [0, 3, 4])
def test_a_resumed_run_counts_all_and_times_its_own(
    done: int, tmp_path: Path, bar: Bar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=iter((10.0, 12.0)).__next__))
    summaries = []
    finish = Journal.finish

    def finished(self: Journal, summary: dict[str, object]) -> None:
        summaries.append(summary)
        finish(self, summary)

    monkeypatch.setattr(Journal, "finish", finished)
    with pytest.raises(typer.Exit) as raised:
        go(journal(tmp_path / "x.csv", NAMES[:done]), tmp_path / "run.json")
    assert raised.value.exit_code == 1
    values = json.loads((tmp_path / "run.json").read_text())
    assert values["outcome"] == "finished"
    assert values["counts"] == {"inputs": 4, "errors": 2, "done_before": done}
    assert values["images_per_second"] == (4 - done) / 2
    assert summaries[0]["images_per_second"] == ((4 - done) / 2 or None)
    assert bar.failed == [False, True, False, True][done:]


def test_the_bar_makes_room_for_records_on_standard_output(bar: Bar) -> None:
    stream = io.StringIO()
    with pytest.raises(typer.Exit):
        go(StreamOutput(stream, writer_class("json"), SHAPE))
    assert bar.pauses == len(json.loads(stream.getvalue())) == 4


def test_a_batch_is_written_at_once(bar: Bar) -> None:
    def process(found: Iterator[Source], _: int) -> Iterator[list[Record]]:
        yield [record(next(found).path), record(next(found).path)]
        yield [record(each.path) for each in found]

    stream = io.StringIO()
    with pytest.raises(typer.Exit):
        go(StreamOutput(stream, writer_class("json"), SHAPE), process=process)
    assert bar.pauses == 2 and len(json.loads(stream.getvalue())) == 4


def test_an_interrupted_document_reads_as_a_whole_one(bar: Bar) -> None:
    def process(found: Iterator[Source], _: int) -> Iterator[list[Record]]:
        yield [record(next(found).path)]
        raise KeyboardInterrupt

    stream = io.StringIO()
    with pytest.raises(Interrupted, match=r"after 1 input$"):
        go(StreamOutput(stream, writer_class("json"), SHAPE), process=process)
    assert [each["path"] for each in json.loads(stream.getvalue())] == ["x.zip::a.jpg"]


class Reader(io.StringIO):
    """What who reads has got."""

    text = ""

    def flush(self) -> None:
        self.text = self.getvalue()


def test_records_reach_who_waits_for_each() -> None:
    for name in ("jsonl", "json", "plain"):
        stream = Reader()
        output = StreamOutput(stream, writer_class(name), SHAPE)
        output.write([record("bad.jpg")])
        assert "bad.jpg" in stream.text
        output.finish()
        assert name != "json" or json.loads(stream.text)[0]["path"] == "bad.jpg"


def test_how_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))  # noqa: B023
        assert {how_shown(True, each) for each in (None, False, True)} == {Shown.NOTHING}
        shown = [how_shown(False, each) for each in (None, False, True)]
        assert shown == [Shown.BAR if terminal else Shown.LINES, Shown.NOTHING, Shown.BAR]


def test_remarks_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        stderr = io.StringIO()
        monkeypatch.setattr(stderr, "isatty", lambda: terminal)  # noqa: B023
        monkeypatch.setattr("sys.stderr", stderr)
        for category in (UserWarning, Remark):
            app._show_warning(category("so it is"), category, "a.py", 1)
        assert stderr.getvalue() == "cvt: warning: so it is\n" + "cvt: so it is\n" * terminal


def test_messages_are_wrapped_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """In logs each is a line. A path is never cut, so that it can be copied."""
    monkeypatch.setenv("COLUMNS", "40")
    path = "photos/" + 50 * "x"
    for terminal in (False, True):
        stderr = io.StringIO()
        monkeypatch.setattr(stderr, "isatty", lambda: terminal)  # noqa: B023
        monkeypatch.setattr("sys.stderr", stderr)
        say(f"{path}: copied 9 files into 9 folders; 1 without a result stays")
        lines = stderr.getvalue().splitlines()
        assert lines[0].startswith("cvt: ") and len(lines) == (3 if terminal else 1)
        assert path in lines[0]
        assert all(len(line) <= 40 for line in lines if path not in line) or not terminal


def test_several_outputs_end_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a.csv", "b.html", "c.jsonl", "d.parquet")

    def made() -> SeveralOutputs:
        classes = {name: writer_class(name.partition(".")[2]) for name in names}
        return SeveralOutputs(
            [
                Journal(tmp_path / name, each, SHAPE, run={}, resume=False)
                for name, each in classes.items()
            ]
        )

    made().abandon()
    assert list(tmp_path.iterdir()) == []
    order = []
    monkeypatch.setattr(Journal, "finish", lambda self, _: order.append(self.path.name))
    made().finish({})
    # What may fail comes before what is a rename only.
    assert order == ["b.html", "d.parquet", "a.csv", "c.jsonl"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"command": "cvt classify", "outcome": "running"}', True),
        ('{"name": "a package"}', False),
        ('{"command": "build"}', False),
        ("[1]", False),
        ('["command", "outcome"]', False),
        ("[" * 100_000, False),
        ("text", False),
        ("", False),
    ],
)
def test_only_a_run_record_is_replaced_unasked(text: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert RunRecord.is_at(path) == expected
    check_run_record(path, [], [], overwrite=True)
    if expected:
        check_run_record(path, [], [], overwrite=False)
    else:
        with pytest.raises(UsageError, match="is no run record"):
            check_run_record(path, [], [], overwrite=False)


def test_a_run_replaces_its_own_record(tmp_path: Path, bar: Bar) -> None:
    path = tmp_path / "run.json"
    for _ in range(2):
        check_run_record(path, [], [], overwrite=False)
        with pytest.raises(typer.Exit):
            go(StreamOutput(io.StringIO(), writer_class("plain"), SHAPE), path)
    assert json.loads(path.read_text())["outcome"] == "finished"
    assert not part_of(path).exists()


@pytest.mark.parametrize("name", ["classify", "embed", "evaluate"])
def test_options_reach_the_search_and_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"cvt_cli.cli.{name}")
    seen: list[Any] = []

    def classifier(model: str, **options: Any) -> None:
        seen.append({"model": model, **options})
        raise KeyboardInterrupt

    monkeypatch.setattr("cvt_cli.inference.classifier.Classifier", classifier)
    monkeypatch.setattr("cvt_cli.cli.compute_options.share_cores", lambda: None)
    of_the_model = {
        "model": "someone/cvt",
        "revision": "v2",
        "refresh": True,
        "offline": True,
        "device": "cpu",
        "dtype": "float16",
        "batch_size": 7,
    }
    options: dict[str, Any] = {**of_the_model, "activation": "quick_gelu"}
    if name == "evaluate":
        (tmp_path / "data/a").mkdir(parents=True)
        (tmp_path / "data/a/x.jpg").touch()
        options["data"] = tmp_path / "data"
    else:
        monkeypatch.setattr(
            module, "check_inputs", lambda inputs, search: seen.append((inputs, search))
        )
        searched = {"recursive": False, "timeout": 3.0, "max_bytes": 99}
        options |= {"inputs": ["a", "b"], "include": ["i"], "exclude": ["e"], **searched}
    if name == "embed":
        options["output"] = tmp_path / "x.npy"
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        context = SimpleNamespace(obj=GlobalOptions(), with_resource=stack.enter_context)
        getattr(module, name)(context, **options)
    *searches, model = seen
    assert (of_the_model | {"hidden_act": "quick_gelu"}).items() <= model.items()
    if name != "evaluate":
        wanted = Search(include=("i",), exclude=("e",), **searched)  # type: ignore[arg-type]
        assert searches == [(["a", "b"], wanted)]
