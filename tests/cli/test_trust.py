"""Files and servers of somebody hostile, and what is told of them."""

import http.server
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvt_cli.images.find import find
from cvt_cli.images.remaining import remaining
from cvt_cli.records import as_written
from tests.conftest import RunCvt
from tests.photos import picture

COMMAND = ("classify", "-m", "cvt-tiny-cifar10", "-k", 1)
STEERING = "a\x1b]52;c;eA==\x07\r\u202e\x9b2J\u2028.png"


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "json", "plain", "table"])
def test_names_steer_no_terminal(format_: str, run_cvt: RunCvt, tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / STEERING)
    seen = run_cvt(*COMMAND, STEERING, "--format", format_, tty=True, no_color=True, expect=0)
    assert not set(seen.stdout) & set("\a\r\u202e\x9b\u2028")
    assert "\x1b]" not in seen.stdout


def test_bytes_are_exact_in_pipes(run_cvt: RunCvt, tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / STEERING)
    piped = run_cvt(*COMMAND, STEERING, "--format", "csv", expect=0)
    assert f'"{STEERING}",' in piped.stdout


def test_a_traceback_steers_no_terminal(run_cvt: RunCvt) -> None:
    shown = run_cvt("classify", "x", "-m", "./\x1b]52;c;eA==\x07?token=x", "--debug").stderr
    assert "Traceback" in shown
    assert "\x1b" not in shown


class Private(http.server.BaseHTTPRequestHandler):
    """Answers with a picture where a path has one, and with its secrets where it has none."""

    def do_GET(self) -> None:
        if "gone" in self.path:
            self.send_error(404, "https://me:s3cr3t@host/?token=s3cr3t")
            return
        self.send_response(200)
        self.end_headers()
        picture(16, 16).save(self.wfile, "PNG")

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def private() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Private) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://me:s3cr3t@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nobody_is_told_a_password(private: str, run_cvt: RunCvt, tmp_path: Path) -> None:
    there, gone = f"{private}/a.png?X-Amz-Signature=s3cr3t", f"{private}/gone.png?sig=s3cr3t"
    outputs = ("-o", "a.csv", "-o", "a.jsonl", "-o", "a.html", "--run-record", "run.json")
    command = (*COMMAND, there, gone, *outputs, "--errors", "failed.txt")
    done = run_cvt(*command, expect=1)
    made = [path for path in tmp_path.iterdir() if path.is_file() and path.name != "failed.txt"]
    assert len(made) >= 5
    for text in (done.stderr, done.stdout, *(path.read_text() for path in made)):
        assert "s3cr3t" not in text
    masked = as_written(there)
    assert masked.startswith("http://***@127.0.0.1")
    assert masked in (tmp_path / "a.csv").read_text()
    assert masked in json.loads((tmp_path / "run.json").read_text())["command"]
    failed = tmp_path / "failed.txt"
    assert failed.read_text() == f"{gone}\n"
    assert stat.S_IMODE(failed.stat().st_mode) == 0o600


def test_a_fresh_signature_is_the_same_address() -> None:
    old, new = (
        [f"https://host/{name}?id={name}&sig={sig}&se={sig}" for name in "abc"] for sig in "12"
    )
    left, again = remaining(lambda: find(new), [as_written(url) for url in old[:2]], 1)
    assert ([source.path for source in left], again) == (new[2:], 0)
    with pytest.warns(UserWarning, match="3 inputs are the same"):
        assert [source.path for source in find([*old, *new])] == old
