"""What is read back or taken in, with whole examples of it and what may be said of broken ones."""

import gzip
import io
import json
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cvt_cli.checkpoint.architecture import read_authors_yaml
from cvt_cli.checkpoint.checkpoint_files import with_shards
from cvt_cli.checkpoint.class_names import read_class_names
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.cli.run_record import RunRecord
from cvt_cli.errors import CvtError, ImageError
from cvt_cli.images.archives import members
from cvt_cli.images.http_images import open_http, stream_http
from cvt_cli.images.source import Filter, LocalFile, Search
from cvt_cli.output import writer_class
from cvt_cli.output.run_file import Kept, is_run_record, kept_of, read_stamps
from cvt_cli.records import Prediction, Record, RecordShape

MAX_BYTES = 2**20


@dataclass(frozen=True)
class Target:
    """Something that reads bytes of others.

    Attributes:
        examples: what it is made for.
        read: reads it, with a folder of its own.
        may_raise: how it says that something is wrong.
    """

    examples: list[bytes]
    read: Callable[[bytes, Path], object]
    may_raise: tuple[type[Exception], ...] = field(default=())


def records() -> list[Record]:
    """Some of every kind."""
    good = Prediction("tabby, tabby cat", 0.25, 281), Prediction('ü\n"x"', 0.125, 7)
    facts: dict[str, int | float | str | None] = {"width": 3, "seconds": 0.5, "sha256": None}
    return [
        Record("a.jpg", good, columns=facts),
        Record("b,\r\n.jpg", good[:1], columns=facts),
        Record("c.jpg", error="not an image", columns=facts),
    ]


def document(format_: str) -> bytes:
    """Those, written."""
    shape = RecordShape(2, ("width", "seconds", "sha256"))
    text = io.StringIO(newline="")
    writer = writer_class(format_)(text, shape)
    writer.write(records())
    writer.close()
    return text.getvalue().encode()


def parquet_document(folder: Path) -> bytes:
    """The same as Parquet."""
    path = folder / "x.parquet"
    writer_class("parquet").convert(records(), path, RecordShape(2, ("width",)), run={})  # type: ignore[attr-defined]
    return path.read_bytes()


def _document(format_: str, data: bytes) -> None:
    writer = writer_class(format_)
    list(writer.documents(io.BytesIO(data), ("width", "sha256")))  # type: ignore[attr-defined]
    writer.shape(io.BytesIO(data))  # type: ignore[attr-defined]


def _journal(format_: str, data: bytes) -> None:
    list(writer_class(format_).read(io.BytesIO(data)))


def zip_archive() -> bytes:
    """With members of every method."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            archive.writestr(f"{method}/ü.jpg", b"cat" * 50, method)
    return file.getvalue()


def tar_archive(format_: int) -> bytes:
    """With long names, and headers that hold records."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_, pax_headers={"a": "b"}) as archive:
        for name in ("a.jpg", "ü" * 120 + ".jpg"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 5, 1.5
            archive.addfile(member, io.BytesIO(b"12345"))
    return file.getvalue()


def _archive(kind: str, data: bytes, folder: Path) -> None:
    path = folder / "x"
    path.write_bytes(data)
    wanted, place = Filter(Search()), LocalFile(str(path))
    seekable = kind in ("zip", "tar", "parquet")
    for source in members("x", kind, place, seekable=seekable, wanted=wanted, max_bytes=MAX_BYTES):
        with suppress(ImageError), source.open() as file:
            assert len(file.read()) <= MAX_BYTES


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12345",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n12345\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n12345",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\n",
]


@contextmanager
def answering(answers: list[bytes]) -> Iterator[str]:
    """A server that sends the last of these, whatever is asked; its address."""

    def serve(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answers[-1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=[server], daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.jpg"
        server.shutdown(socket.SHUT_RDWR)


def _answer(url: str, answers: list[bytes], data: bytes) -> None:
    answers.append(data)
    del answers[:-1]
    for get in (lambda: open_http(url, 1, MAX_BYTES), lambda: stream_http(url, 1)):
        with suppress(ImageError), get() as file:
            file.read()


def _checkpoint(model: Path, name: str, data: bytes) -> None:
    before = (model / name).read_bytes()
    (model / name).write_bytes(data)
    try:
        load(resolve(str(model))).model()
    finally:
        (model / name).write_bytes(before)


def _shards(data: bytes, folder: Path) -> None:
    (folder / "x.json").write_bytes(data)
    with_shards("x", folder / "x.json", lambda name: folder / name)


def _run_files(data: bytes, folder: Path) -> None:
    output = folder / "x.csv"
    for path in (kept_of(output), folder / "x"):
        path.write_bytes(data)
    Kept.read(output)
    list(read_stamps(folder / "x"))
    is_run_record(io.BytesIO(data))
    RunRecord.is_at(folder / "x")


def _names(data: bytes, folder: Path) -> None:
    (folder / "x").write_bytes(data)
    read_class_names(folder / "x")


def _yaml(data: bytes, folder: Path) -> None:
    (folder / "x").write_bytes(data)
    read_authors_yaml("x", folder / "x", 10, hidden_act="gelu")


AUTHORS_YAML = """
MODEL:
  SPEC:
    NUM_STAGES: 3
    PATCH_SIZE: [7, 3, 3]
    PATCH_STRIDE: [4, 2, 2]
    PATCH_PADDING: [2, 1, 1]
    DIM_EMBED: [64, 192, 384]
    NUM_HEADS: [1, 3, 6]
    DEPTH: [1, 2, 10]
    MLP_RATIO: [4.0, 4.0, 4.0]
    ATTN_DROP_RATE: [0.0, 0.0, 0.0]
    DROP_RATE: [0.0, 0.0, 0.0]
    DROP_PATH_RATE: [0.0, 0.0, 0.1]
    QKV_BIAS: [true, true, true]
    CLS_TOKEN: [false, false, true]
    QKV_PROJ_METHOD: [dw_bn, dw_bn, dw_bn]
    KERNEL_QKV: [3, 3, 3]
    PADDING_KV: [1, 1, 1]
    STRIDE_KV: [2, 2, 2]
    PADDING_Q: [1, 1, 1]
    STRIDE_Q: [1, 1, 1]
TEST: {IMAGE_SIZE: [224, 224], INTERPOLATION: 3}
INPUT: {MEAN: [0.5, 0.5, 0.5], STD: &s [0.5, 0.5, 0.5]}
X: *s
"""


def targets(model: Path, folder: Path, url: str, answers: list[bytes]) -> dict[str, Target]:
    """All of them.

    Args:
        model: folder of a small checkpoint.
        folder: for files.
        url, answers: of `answering`.
    """
    shards = {"metadata": {}, "weight_map": {"a.weight": "x-1.safetensors", "b": "x-2.safetensors"}}
    stamps = {"run": {"model": "x"}, "files": {"a.jpg": [1, 2]}}
    labels = {"id2label": {"0": "cat", "1": "dog"}}
    yaml = AUTHORS_YAML.encode()
    found = {
        file: Target(
            [(model / file).read_bytes()],
            lambda data, _, file=file: _checkpoint(model, file, data),  # type: ignore[misc]
            (CvtError,),
        )
        for file in ("config.json", "preprocessor_config.json", "model.safetensors")
    }
    found |= {
        "index": Target([json.dumps(shards).encode()], _shards, (CvtError,)),
        "run files": Target(
            [json.dumps(stamps, indent=1).encode(), b'["a.jpg", 1, 2]\n["b", 3, 4]\n'], _run_files
        ),
        "class names": Target([json.dumps(labels).encode(), b"cat\ndog\n"], _names, (CvtError,)),
        "yaml": Target([yaml], _yaml, (CvtError,)),
        "http": Target(ANSWERS, lambda data, _: _answer(url, answers, data)),
        "zip": Target([zip_archive()], lambda data, at: _archive("zip", data, at)),
        "tar": Target(
            [tar_archive(tarfile.PAX_FORMAT), tar_archive(tarfile.GNU_FORMAT)],
            lambda data, at: _archive("tar", data, at),
        ),
        "tar.gz": Target(
            [gzip.compress(tar_archive(tarfile.PAX_FORMAT), mtime=0)],
            lambda data, at: _archive("gz", data, at),
        ),
        "parquet images": Target(
            [parquet_images()], lambda data, at: _archive("parquet", data, at)
        ),
        "parquet": Target(
            [parquet_document(folder)], lambda data, _: _document("parquet", data), (ValueError,)
        ),
    }
    for format_ in ("csv", "tsv", "json", "jsonl"):
        for name, read in (("document", _document), ("journal", _journal)):
            found[f"{format_} {name}"] = Target(
                [document(format_)],
                lambda data, _, read=read, format_=format_: read(format_, data),  # type: ignore[misc]
                (ValueError,),
            )
    return found


def parquet_images() -> bytes:
    """A column of bytes, one of them in a dictionary."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"cat" * 20, None, b"cat" * 20, b"dog"]}), file)
    return file.getvalue()
