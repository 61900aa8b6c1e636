"""`cvt classify --engine ray` on clusters of this machine: the local engine's records."""

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs cvt-cli[ray]")

from ray.cluster_utils import Cluster

from cvt_cli import __version__
from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, CIFAR10_MODEL
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.cli.cluster import parse_workers
from cvt_cli.distributed import execution, reading_task
from cvt_cli.distributed.collection import CHANGED, DIED, FAULTS, Collector
from cvt_cli.distributed.layout import ClusterLayout, Workers, lay_out
from cvt_cli.distributed.model_worker import Loads, ModelWorker, _classifier
from cvt_cli.distributed.parts import Part
from cvt_cli.distributed.ray_job import RayJob, Shipped
from cvt_cli.distributed.reading_task import decode_batches, member_names
from cvt_cli.distributed.task_tables import RECORD_SCHEMA, inputs_per_task, tables
from cvt_cli.errors import CvtError, NoTemporaryFiles, UsageError
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.reading import ImageReader
from cvt_cli.images.source import Search
from cvt_cli.output import writer_class
from cvt_cli.records import Record
from cvt_cli.system.cores import FEW, SPIN_COUNT
from tests.cli.test_failures import check_line
from tests.conftest import Completed, RunCvt
from tests.distributed import forked_worker
from tests.endings import at_call
from tests.fork_server import ForkClient, ForkServer
from tests.hub_server import HubServer
from tests.images.test_network import s3  # noqa: F401 (fixture)
from tests.photos import picture

# Each of Ray's processes imports for seconds, and there are many of them.
TIMEOUT = 300
pytestmark = [pytest.mark.timeout(3 * TIMEOUT)]

MODEL = ("-m", CIFAR10_MODEL, "--dtype", "float32")
# One image at a time through the network: what is beside it changes the last digit of a score.
ALONE = ("-b", 1)

Run = Callable[..., Completed]


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions. A socket's path is short: not below pytest's folder."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# In Ray's workers alone: as long as the first file is there, loading a model kills who does it, and
# has a line in the second.
UNLOADABLE = """
import os
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cvt_cli.inference.classifier" and os.path.exists({0!r}):
            with open({1!r}, "a") as file:
                print(os.getpid(), file=file)
            os._exit(9)


if "default_worker.py" in sys.argv[0]:
    sys.meta_path.insert(0, Finder())
"""


NodeOptions = Callable[..., dict[str, Any]]
# A worker is a start of Python: none before there is work for it, and it waits for more.
FEW_WORKERS = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_num_workers_soft_limit": "4",
}


@pytest.fixture(scope="module")
def forked() -> Iterator[NodeOptions]:
    """Options of a node of one core in this environment, whose workers are few, and forks: see
    `forked_worker`."""
    server = ForkServer(forked_worker.IMPORTED, os.environ)

    def options(**env: str) -> dict[str, Any]:
        return {
            "num_cpus": 1,
            "setup_worker_path": forked_worker.__file__,
            "env_vars": {forked_worker.SERVER: server.address, **FEW_WORKERS, **env},
        }

    yield options
    server.close()


@pytest.fixture(scope="module")
def cluster(ray_folder: Path, forked: NodeOptions) -> Iterator[Cluster]:
    """Two nodes of one core each, with `UNLOADABLE`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside these
        before = signal.getsignal(signal.SIGTERM)
        # That a node is lost is known in seconds.
        known = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
        files = (str(ray_folder / name) for name in ("unloadable", "died"))
        node = forked(**site(ray_folder / "site", UNLOADABLE.format(*files)))
        # Processes that nobody here asks.
        spared = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head = {**node, **spared, "_system_config": known}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**node)
            yield cluster
        finally:
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)  # Ray puts its own


@pytest.fixture
def run_ray(run_cvt: RunCvt, ray_folder: Path) -> Run:
    """`cvt classify --engine ray`, which says nothing that is not cvt's own. With a Ray of its
    own where no address is given."""
    run_cvt.env["RAY_TMPDIR"] = str(ray_folder)

    def run(*arguments: object, address: str | None = None, **options: Any) -> Completed:
        command = on_ray(*arguments, address=address)
        done = run_cvt(*command, **{"timeout": TIMEOUT, **options})
        assert all(line.startswith("cvt: ") for line in done.stderr.splitlines()), done.stderr
        assert done.stdout == ""
        return done

    return run


def on_ray(*arguments: object, address: str | None = None) -> list[object]:
    where = ["--ray-address", address] if address else []
    return ["classify", *MODEL, *arguments, "--engine", "ray", *where]


# Code for the driver: each death is a start of Python.
FEWER_RETRIES = "from cvt_cli.distributed import execution; execution.RETRIES = 1"
WRITE = "cvt_cli.distributed.part_folder:PartFolder.write"
# With "begun", a file, and until there is "go on".
WAITS = """open("begun", "x")
while not os.path.exists("go on"):
    time.sleep(0.02)"""


def processes(folder: Path, title: str = "") -> list[int]:
    """Those of the Ray that is in that folder."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it ended
            if not Path(f"/proc/{process}/cmdline").read_bytes().startswith(title.encode()):
                continue
            files = (os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir())
            if any(file.startswith(f"{folder}/") for file in files):
                found.append(int(process))
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def parts(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The parts that are there: when each was written, and what is in it."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.glob("part-*"))
    }


def records(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return list(writer_class(path.suffix[1:]).documents(file))


def check_same(ours: list[Record], theirs: list[Record]) -> None:
    """Other images beside one in its batch change the last digit of its scores."""
    assert [record.path for record in ours] == [record.path for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.error == other.error
        for mine, yours in zip(one.predictions, other.predictions, strict=True):
            assert mine.score == pytest.approx(yours.score, abs=1e-5)
        assert [each.label for each in one.predictions[:1]] == [
            each.label for each in other.predictions[:1]
        ]


def save_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    for seed in range(count):
        picture(24, 16, seed).save(folder / f"{seed:04}.png")


def save_tars(folder: Path, archives: int, count: int) -> list[Path]:
    """So many archives of so many images; each archive is a part of its own."""
    folder.mkdir()
    save_photos(folder / "in", count)
    paths = [folder / f"{number:02}.tar" for number in range(archives)]
    for path in paths:
        with tarfile.open(path, "w") as archive:
            archive.add(folder / "in", ".")
    shutil.rmtree(folder / "in")
    return paths


def site(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python runs this first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


# Code for the driver: it reads the images itself, for what never reaches the network.
WITHOUT_WORKERS = """
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

from cvt_cli.distributed import connection, execution
from cvt_cli.distributed.layout import ClusterLayout
from cvt_cli.distributed.task_tables import RECORD_SCHEMA, tables


def settle(job, *_):
    return replace(job, device="cpu", batch_size=1), ClusterLayout(1, 1, 0, 1, 1)


def stream(_, rows, job, *, per_task, **__):
    for table in tables(rows, per_task):
        for images in execution.decode_batches(
            table,
            reader=job.reader,
            search=job.search,
            batch_size=1,
            columns=job.columns,
            folder=str(Path.cwd()),
            version=job.version,
        ):
            yield pa.Table.from_pylist(images.drop_columns("pixels").to_pylist(), RECORD_SCHEMA)


connection.Cluster = lambda *_: nullcontext(SimpleNamespace(settle=settle))
execution._stream = stream
execution._list_members = lambda *_: None
"""

# --- The same records


@pytest.mark.slow
def test_the_local_engines_records_byte_for_byte(
    run_ray: Run, run_cvt: RunCvt, cluster: Cluster, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    save_photos(photos, 12)
    (photos / "0003.png").write_text("no image")
    picture(20, 20, 50).save(photos / "large.png")
    picture(20, 19, 50).save(photos / os.fsdecode(b"caf\xe9.png"))
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for member in ("0002.png", "0003.png", "0007.png"):
                archive.add(photos / member, f"in/{member}")
            archive.add(photos / "0003.png", "notes.txt")
    (photos / "more.txt").touch()
    # The weights of a folder's model are sent to the workers.
    model = shutil.copytree(BUNDLED_FOLDER / CIFAR10_MODEL, tmp_path / "model")
    # Several labels at once: the parts name the scores, and keep all that reach the threshold.
    config = json.loads((model / "config.json").read_text())
    several = config | {"problem_type": "multi_label_classification"}
    (model / "config.json").write_text(json.dumps(several))
    secret = "http://me:secret@127.0.0.1:9/x.jpg"  # nobody answers there
    inputs = ("photos", "a.tar", "none.png", "b.tar.gz", secret)
    options = (
        "--columns",
        "width,sha256,index",
        "--labels",
        "cat,dog,ship,truck,frog,deer",
        "--threshold",
        0.2,
        "--image-size",
        "40x48",
        "--activation",
        "quick_gelu",
        "--max-pixels",
        390,  # one has more
        "-m",
        model,
        "--dtype",
        "float32",
        *ALONE,
    )
    here = run_cvt(
        "classify", *inputs, *options, "-o", "local.csv", "--errors", "local.txt", expect=1
    )
    (skipped,) = [line for line in here.stderr.splitlines() if "skipped" in line]
    assert skipped.endswith("skipped 3 files that are not images: .txt 3")

    # More workers than cores: decoding must go on beside them.
    more = ("--workers", 3, "--engine", "ray", "--ray-address", cluster.address)
    more += ("--errors", "failed.txt", "--no-progress")
    done = run_cvt("classify", *inputs, *options, *more, "-o", "labels/", expect=1, timeout=TIMEOUT)
    warned, first, *named, second = done.stderr.splitlines()
    assert warned == skipped
    assert len(named) == 5  # and no other warning
    assert first.startswith("cvt: labels/: 22 inputs, ")
    assert second.startswith("cvt: 6 of 22 inputs could not be read")
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {
        "_SUCCESS",
        "_run.json",
        *(f"part-{number:06}.csv" for number in range(5)),
    }
    run = json.loads((tmp_path / "labels/_run.json").read_text())
    assert (run["outcome"], run["scores"], run["top_k"]) == ("finished", "sigmoid", 6)
    assert run["counts"] == {"inputs": 22, "errors": 6, "done_before": 0}
    assert (run["model"], run["dtype"], run["batch_size"]) == (str(model), "float32", 1)
    assert (run["engine"]["name"], run["engine"]["workers"]) == ("ray", 3)

    run_cvt("merge", "labels", "-o", "merged.csv", expect=0)
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert (tmp_path / "failed.txt").read_bytes() == (tmp_path / "local.txt").read_bytes()
    assert secret in (tmp_path / "failed.txt").read_text()
    assert "secret" not in (tmp_path / "merged.csv").read_text()

    # Where nothing can be read nothing is replaced.
    before = {path: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    bad = ("classify", "photos/0003.png", "-m", model, *more, "-o", "labels/", "--overwrite")
    with run_cvt.start(*bad, first=WITHOUT_WORKERS) as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "photos/0003.png: text, not an image; labels stays as it is" in said
    assert {path: path.read_bytes() for path in (tmp_path / "labels").iterdir()} == before
    assert (tmp_path / "failed.txt").read_text() == "photos/0003.png\n"


# --- What dies


FATAL = b"it kills who decodes it"
FATAL_COLOUR = (1, 2, 3)
# In Ray's workers and their readers: an image that kills who decodes it, one that kills who
# classifies it, and one of which Python makes an exception.
POISON = f"""
import os
import sys
import time

if "default_worker.py" in sys.argv[0] or sys.argv[0] == "-c":
    import numpy
    from PIL import Image

    stat, open_, frombuffer = os.stat, Image.open, numpy.frombuffer

    def raising(path, *args, **options):
        if str(path).endswith("raises.png"):
            raise ModuleNotFoundError("No module named 'codec'")
        return stat(path, *args, **options)

    def fatal(file, *args, **options):
        if file.read({len(FATAL)}) == {FATAL!r}:
            os._exit(9)
        file.seek(0)
        return open_(file, *args, **options)

    def fatal_pixels(*args, **options):
        pixels = frombuffer(*args, **options)
        if pixels[:3].tolist() == {list(FATAL_COLOUR)} and (pixels[3:] == pixels[:-3]).all():
            time.sleep(0.5)  # until something waits for it
            os._exit(9)
        return pixels

    os.stat, Image.open, numpy.frombuffer = raising, fatal, fatal_pixels
"""


@pytest.mark.slow
def test_images_that_kill_their_worker_each_time_from_a_store_to_a_store(
    run_cvt: RunCvt,
    ray_folder: Path,
    forked: NodeOptions,
    s3: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        run_cvt.env[name] = os.environ[name]
    run_cvt.env |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null"}
    run_cvt.env["RAY_TMPDIR"] = str(ray_folder)

    store = http.client.HTTPConnection(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"))

    def put(name: str, data: bytes) -> None:
        store.request("PUT", f"/bucket/{name}", data)
        assert store.getresponse().read() is not None

    photos = tmp_path / "photos"
    save_photos(photos, 24)
    (photos / "0011poison.png").write_bytes(FATAL)
    Image.new("RGB", (40, 40), FATAL_COLOUR).save(tmp_path / "colour.png")
    # More than are tried one by one at once.
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for seed in range(110):
            archive.add(photos / f"{seed % 24:04}.png", f"{seed:04}.png")
            if seed == 70:
                archive.add(photos / "0011poison.png", f"{seed:04}poison.png")
            if seed == 90:
                archive.add(tmp_path / "colour.png", f"{seed:04}colour.png")
    for seed in range(5):
        put(f"in/{seed}.png", (photos / f"{seed:04}.png").read_bytes())
    put("in/9.png", b"no image")
    put("shard.tar", save_tars(tmp_path / "tars", 1, 4)[0].read_bytes())
    picture(24, 16, 98).save(photos / "raises.png")
    inputs = ("photos", "t.tar", f"{s3}/in/", f"{s3}/shard.tar")
    output = f"{s3}/labels"
    before = processes(ray_folder)
    # Who imports it is a process that this one starts.
    path = site(tmp_path / "site", POISON)["PYTHONPATH"]
    poisoned = f"import os; os.environ['PYTHONPATH'] = {path!r}\n{FEWER_RETRIES}"
    forking = forked_worker.FORKING.format(**forked())
    command = on_ray(*inputs, "--format", "parquet", "-o", output)
    with run_cvt.start(*command, first=f"{poisoned}\n{forking}") as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, said
    assert f"cvt: {output}: 148 inputs, " in said
    assert "cvt: 5 of 148 inputs could not be read" in said
    # A Ray that cvt starts ends with it.
    wait_for(lambda: set(processes(ray_folder)) <= set(before))
    run_cvt("merge", output, "-o", "merged.parquet", expect=0)
    run_cvt("classify", *inputs, *MODEL, "-o", "local.parquet", expect=1)
    merged, local_file = tmp_path / "merged.parquet", tmp_path / "local.parquet"
    assert pq.read_schema(merged).equals(pq.read_schema(local_file))
    ours, local = records(merged), records(local_file)
    errors = {record.path: record.error for record in ours if record.error is not None}
    raised = errors.pop("photos/raises.png")
    assert raised == "ModuleNotFoundError: No module named 'codec'"
    poison = ["photos/0011poison.png", "t.tar::0070poison.png", "t.tar::0090colour.png"]
    assert list(errors) == [*poison, f"{s3}/in/9.png"]
    for path in poison:
        # A reader dies alone, and is the worker's own business.
        word = "its worker died each time it was tried: " if "colour" in path else "broken image: "
        assert errors[path].startswith(word)
    assert [record.path for record in ours] == [record.path for record in local]
    failed = {*poison, "photos/raises.png"}
    check_same(*([each for each in all_ if each.path not in failed] for all_ in (ours, local)))


def answer(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"part": 0, "path": b"", "error": "no image", **row} for row in rows], RECORD_SCHEMA
    )


@pytest.mark.parametrize(
    ("members", "then"),
    [(None, DIED), (["a.tar::x", "a.tar::y", "a.tar::z"], DIED), (["a.tar::x"], CHANGED)],
)
def test_an_archive_that_was_not_read_to_its_end(members: list[str] | None, then: str) -> None:
    part, done = Part(0, ["a.tar"], is_archive=True), []
    collector = Collector(
        [part], (), lambda record: None, on_part=lambda part: done.extend(part.in_order())
    )
    assert collector.rows() == [(0, None, "a.tar", True)]
    collector.take(
        answer({"position": 0, "path": b"a.tar::x"}, {"position": 1, "path": b"a.tar::y"})
    )
    if members is not None:
        part.list_members(members)
        assert collector.rows() == [(0, i, "a.tar", True) for i in range(2, len(members))]
    collector.give_up(collector.unfinished())
    last = members[2] if members and len(members) > 2 else "a.tar"
    assert [record.path for record in done] == ["a.tar::x", "a.tar::y", last]
    assert done[-1].error == then


def test_exceptions_on_workers_and_nothing_else() -> None:
    paths = list(map(str, range(2 * FAULTS)))

    def collector() -> Collector:
        return Collector([Part(0, paths)], ("cat",), lambda record: None, on_part=lambda part: None)

    def bad(position: int) -> pa.Table:
        return answer({"position": position, "error": None, "fault": "OSError: no"})

    one = collector()
    one.take(answer({"position": 0}))  # that is no image does not show that a worker can work
    for position in range(1, FAULTS):
        one.take(bad(position))
    with pytest.raises(CvtError, match="the workers could classify nothing: OSError: no"):
        one.take(bad(FAULTS))
    with pytest.raises(CvtError, match="the workers could classify nothing"):
        one.check()

    other = collector()
    other.take(answer({"position": 0, "error": None, "indexes": [0], "scores": [1.0]}))
    other.take(answer({"position": 1}))
    for position in range(2, 2 * FAULTS):
        other.take(bad(position))
    other.check()

    # What went wrong with a batch is one thing.
    batch = [{"position": position, "fault": "OSError: no"} for position in range(2 * FAULTS)]
    collector().take(answer(*batch))


def test_who_may_load_the_model_again() -> None:
    loads = Loads(2)
    for worker in "ab":
        assert loads.begin(worker)
        loads.end(worker)
    # What waits for one that had it goes to the other, which may die of its work as it likes.
    assert [loads.begin("a") for _ in range(5)] == [True] * 4 + [False]
    assert not loads.give_up("a")
    for _ in range(9):
        assert loads.begin("b")
        loads.end("b")
    # Nothing waits for one that never had it.
    assert all(loads.begin("c") for _ in range(4))
    assert [loads.begin("b") for _ in range(5)] == [True] * 4 + [False]
    assert loads.give_up("b")
    assert not loads.begin("c")

    other = Loads(2)
    assert all(other.begin("a") for _ in range(9))
    other.end("a")
    assert not other.give_up("b")


def test_what_a_worker_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(resolve(CIFAR10_MODEL))
    reader = ImageReader(checkpoint.config, checkpoint.preprocessing)
    only = ("cat", "dog")
    job = RayJob(
        checkpoint=checkpoint,
        device="cpu",
        dtype="bfloat16",
        batch_size=3,
        reader=reader,
        only=only,
        top_k=1,
        threshold=0.0,
        columns=(),
        search=Search(),
        offline=True,
    )
    threads: list[int] = []
    monkeypatch.setattr("ray.get", lambda model: model)
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    for name in ("OMP_WAIT_POLICY", SPIN_COUNT):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    classifier = _classifier(job, Shipped.of(checkpoint.files, True), 5)
    assert (threads, os.environ[SPIN_COUNT]) == ([5], FEW)
    assert (classifier.device.type, str(classifier.dtype)) == ("cpu", "torch.bfloat16")
    assert classifier.batch_size == 3
    assert [checkpoint.labels[index] for index in classifier.indexes] == ["cat", "dog"]


def test_relative_names_are_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    save_tars(tmp_path / "tars", 1, 2)
    names = member_names("00.tar", Search(), str(tmp_path / "tars"))
    assert names == ["00.tar::./0000.png", "00.tar::./0001.png"]


def test_a_worker_starts_its_readers_once(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ReaderPool] = []

    def start(*given: Any, **named: Any) -> ReaderPool:
        started.append(ReaderPool(*given, **named))
        return started[-1]

    reading_task._end_readers()
    monkeypatch.setattr(reading_task, "ReaderPool", start)
    monkeypatch.chdir(cat.parent)
    checkpoint = load(resolve(CIFAR10_MODEL))
    reader = ImageReader(checkpoint.config, checkpoint.preprocessing)
    (table,) = tables([(0, 0, cat.name, False)], 1)

    def fault() -> str | None:
        (images,) = decode_batches(
            table,
            reader=reader,
            search=Search(),
            batch_size=1,
            columns=(),
            folder=str(cat.parent),
            version=__version__,
        )
        found: str | None = images.to_pylist()[0].get("fault")
        return found

    assert fault() is fault() is None and len(started) == 1
    # Readers that can't go on are replaced. This ends them before the image is read.
    no_room = Mock(side_effect=NoTemporaryFiles("no room"))
    monkeypatch.setattr(started[0]._supervisor, "_take", no_room)
    assert fault() == "NoTemporaryFiles: no room"
    assert started[0]._supervisor._closing
    assert fault() is None and len(started) == 2
    reading_task._end_readers()


def test_a_node_that_joins_with_another_version(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (table,) = tables([(0, 0, cat.name, False), (0, 1, cat.name, False)], 2)
    checkpoint = load(resolve(CIFAR10_MODEL))
    reader = ImageReader(checkpoint.config, checkpoint.preprocessing)
    common: dict[str, Any] = {
        **{"reader": reader, "search": Search(), "batch_size": 2, "columns": ()},
        "folder": str(cat.parent),
    }
    (images,) = decode_batches(table, **common, version=__version__)
    assert images.column("pixels").null_count == 0
    job = RayJob(
        checkpoint=checkpoint,
        device="cpu",
        dtype="float32",
        batch_size=2,
        reader=reader,
        only=(),
        top_k=1,
        threshold=0.0,
        columns=(),
        search=Search(),
        offline=True,
    )
    worker: Any = object.__new__(ModelWorker)
    worker._job, worker._fault = replace(job, version="0.0.0"), None
    for answer in (next(decode_batches(table, **common, version="0.0.0")), worker(images)):
        assert [row["position"] for row in answer.to_pylist()] == [0, 1]
        for row in answer.to_pylist():
            assert f"has cvt {__version__}, the run is 0.0.0's" in row["fault"]


def test_a_record_that_comes_twice_is_taken_once() -> None:
    came: list[str] = []
    finished: list[list[str]] = []
    parts = [Part(0, ["a", "b"]), Part(1, ["c"]), Part(2, ["d"])]
    parts[2].records[0] = Record("d", error="no such file")
    collector = Collector(
        parts,
        (),
        lambda record: came.append(record.path),
        on_part=lambda part: finished.append([record.path for record in part.in_order()]),
    )
    rows = [{"part": 0, "position": i, "path": path} for i, path in enumerate((b"a", b"b"))]
    lost = {**rows[0], "fault": "OSError: no"}
    for row in (rows[1], rows[1], rows[0], rows[0], lost):
        collector.take(answer(row))
    assert (came, finished) == (["d", "b", "a"], [["d"], ["a", "b"]])
    assert collector.rows() == [(1, 0, "c", False)]
    assert not parts[0].records  # nobody keeps a billion of them


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`execution.run` of one part, with a stream of tables in place of Ray."""

    def run(
        stream: Callable[..., Iterator[pa.Table]], count: int, on_part: Callable[[Part], None]
    ) -> None:
        monkeypatch.setattr(execution, "_stream", stream)
        monkeypatch.setattr(execution, "_list_members", lambda *_: None)
        job: Any = SimpleNamespace(batch_size=16, names=("cat",), search=None)
        execution.fill_parts(
            cluster=None,  # type: ignore[arg-type]
            parts=[Part(0, list(map(str, range(count))))],
            job=job,
            layout=ClusterLayout(1, 1, 0, 1, 4),
            on_record=lambda record: None,
            on_part=on_part,
        )

    return run


@pytest.mark.parametrize(
    ("poison", "passes"),
    [
        ((), [(1000, 64, 3)]),
        ((500,), [(1000, 64, 3), (64, 1, 3)]),
        # Many are done in groups first, which are lost at once.
        ((500, 600), [(1000, 64, 3), (128, 11, 0), (22, 1, 3)]),
    ],
)
def test_what_dies_with_others_is_done_again(
    poison: Sequence[int], passes: list[tuple[int, int, int]], run_on: Callable[..., None]
) -> None:
    came = []

    def stream(
        _: object, rows: Sequence[Any], job: object, *, per_task: int, retries: int, **more: object
    ) -> Iterator[pa.Table]:
        came.append((len(rows), per_task, retries))
        for table in tables(rows, per_task):
            positions = table.column("position").to_pylist()
            if not set(positions) & set(poison):
                yield answer(*({"position": i, "error": None} for i in positions))

    errors = {}
    run_on(stream, 1000, lambda part: errors.update(enumerate(r.error for r in part.in_order())))
    assert came == passes
    assert {i: error for i, error in errors.items() if error} == dict.fromkeys(poison, DIED)
    assert len(errors) == 1000


def test_nothing_but_exceptions_to_the_end(run_on: Callable[..., None]) -> None:
    def stream(_: object, rows: Sequence[Any], *more: object, **__: object) -> Iterator[pa.Table]:
        yield answer(*({"position": row[1], "fault": "OSError: no"} for row in rows))

    parts: list[Part] = []
    with pytest.raises(CvtError, match="the workers could classify nothing: OSError: no"):
        run_on(stream, 3, parts.append)
    assert not parts


def test_what_went_wrong_before_is_not_why_it_is_given_up() -> None:
    done: list[str | None] = []
    collector = Collector(
        [Part(0, ["a", "b"])],
        (),
        lambda record: done.append(record.error),
        on_part=lambda part: None,
    )
    collector.take(answer({"position": 0, "fault": "OSError: no"}))
    collector.forget()
    collector.take(answer({"position": 1, "fault": "OSError: then"}))
    collector.give_up(collector.unfinished())
    assert done == [DIED, "OSError: then"]


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([(2, 0)], "auto", Workers(), ClusterLayout(1, 1, 0, 2, 2)),
        ([(16, 0), (8, 0)], "cpu", Workers(), ClusterLayout(6, 6, 0, 4, 24)),
        ([(4, 0), (4, 0)], "auto", Workers(1, 1), ClusterLayout(1, 1, 0, 4, 8)),
        ([(4, 0), (2, 0)], "auto", Workers(2, 3), ClusterLayout(2, 3, 0, 2, 6)),
        ([(2, 0)], "auto", Workers(4, 4), ClusterLayout(4, 4, 0, 1, 2)),
        ([(8, 2), (8, 1), (4, 0)], "auto", Workers(), ClusterLayout(3, 3, 1, 6, 20)),
        ([(8, 2)], "cuda", Workers(gpus=0.5), ClusterLayout(4, 4, 0.5, 2, 8)),
        ([(8, 2)], "cpu", Workers(), ClusterLayout(2, 2, 0, 4, 8)),
        ([(8, 2)], "auto", Workers(gpus=0), ClusterLayout(2, 2, 0, 4, 8)),
        ([(8, 1), (8, 1)], "auto", Workers(gpus=2), "no node of this cluster has 2 GPUs"),
        ([(0, 0)], "auto", Workers(), "this cluster has no CPU to work with"),
    ],
)
def test_the_layout_of_a_cluster(
    nodes: list[tuple[int, int]], device: str, workers: Workers, expected: ClusterLayout | str
) -> None:
    # A node that has none of something does not name it.
    resources = [
        {key: float(n) for key, n in zip(("CPU", "GPU"), node, strict=True) if n} for node in nodes
    ]
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            lay_out(resources, device, workers)
    else:
        assert lay_out(resources, device, workers) == expected


def test_a_cluster_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="this cluster has no GPU") as refused:
        lay_out([{"CPU": 8.0}], "cuda", Workers())
    assert refused.value.hint == "--device cpu needs none"


def test_inputs_of_a_task() -> None:
    # Whole batches, no more than some hundreds, and every core has four tasks at least.
    assert inputs_per_task(10**6, 64, 8) == 512
    assert inputs_per_task(1000, 16, 4) == 64
    assert inputs_per_task(10, 16, 4) == 16
    assert inputs_per_task(3, 1, 4) == 1


def test_tasks_of_one_archive_or_of_files() -> None:
    rows = [
        (0, 0, "a", False),
        (0, 1, "b", False),
        (0, 2, "c", False),
        (1, None, "x.tar", True),
        (2, 4, "y.tar", True),
        (2, 7, "y.tar", True),
        (3, 0, "d", False),
    ]
    found = [table.to_pylist() for table in tables(rows, 2)]
    assert [[(row["part"], row["position"]) for row in table] for table in found] == [
        [(0, 0), (0, 1)],
        [(0, 2)],
        [(1, None)],
        [(2, 4), (2, 7)],
        [(3, 0)],
    ]


@pytest.mark.slow
def test_killed_then_interrupted_then_finished_with_losses(
    run_ray: Run,
    run_cvt: RunCvt,
    cluster: Cluster,
    forked: NodeOptions,
    ray_folder: Path,
    tmp_path: Path,
) -> None:
    inputs = [*save_tars(tmp_path / "tars", 12, 40), tmp_path / "photos"]
    save_photos(tmp_path / "photos", 30)
    labels = tmp_path / "labels"
    command = (*inputs, "-b", 16, "-o", labels, "--no-progress")

    # A Ray of its own, whose workers start as a user's do.
    with run_cvt.start(*on_ray(*command), first=at_call(WRITE, 2)) as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL, said
    kept = parts(labels)
    assert len(kept) == 2
    assert not (labels / "_SUCCESS").exists()
    # Nobody goes on working for it.
    wait_for(lambda: not processes(ray_folder, "ray::Map"))

    address = cluster.address
    refused = run_ray(*command, "--resume", "-k", 2, address=address)
    check_line(refused, 2, "labels is from a run with another top-k: 5 then, 2 now")
    assert parts(labels) == kept

    # Ctrl-C in a terminal goes to all of the process group.
    interrupted = "import os; os.setsid()\n" + at_call(WRITE, 1, "os.killpg(0, signal.SIGINT)")
    resumed = on_ray(*command, "--resume", address=address)
    with run_cvt.start(*resumed, first=interrupted) as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, said
    more = parts(labels)
    assert said.startswith("cvt: error: interrupted after ")
    run = json.loads((labels / "_run.json").read_text())
    count = sum(30 if "000012" in name else 40 for name in more)
    assert (run["outcome"], run["counts"]["inputs"]) == ("interrupted", count)
    keeps = f"keeps the {count} in finished parts: --resume continues"
    assert said.endswith(f" inputs; {labels} {keeps}\n")
    assert said.count("\n") == 1
    assert kept.items() < more.items() and len(more) < len(inputs)

    node = cluster.add_node(**forked())
    last = on_ray(*command, "--resume", "--workers", 3, address=address)
    with run_cvt.start(*last, first=at_call(WRITE, 1, WAITS)) as process:
        wait_for((tmp_path / "begun").exists, process)
        # The network's process, of which there are three, and one that decodes, if one does now.
        decoding = processes(ray_folder, "ray::MapBatches(decode_batches)")
        for victim in (processes(ray_folder, "ray::MapWorker")[0], *decoding[:1]):
            os.kill(victim, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / "go on").touch()
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, said
    assert said.startswith(f"cvt: {labels}: 510 inputs, ") and said.count("\n") == 1
    assert more.items() < parts(labels).items()
    assert len(parts(labels)) == len(inputs)
    run = json.loads((labels / "_run.json").read_text())
    assert run["outcome"] == "finished"
    assert run["counts"] == {"inputs": 510, "errors": 0, "done_before": count}
    run_cvt("merge", labels, "-o", "merged.csv", expect=0)
    run_cvt("classify", *inputs, *MODEL, "-o", "local.csv", expect=0)
    check_same(*(records(tmp_path / f"{name}.csv") for name in ("merged", "local")))


@pytest.mark.slow
def test_workers_that_can_not_load_the_model_again(
    run_cvt: RunCvt, cluster: Cluster, ray_folder: Path, tmp_path: Path
) -> None:
    inputs = save_tars(tmp_path / "tars", 12, 40)
    labels = tmp_path / "labels"
    wait_for(lambda: not processes(ray_folder, "ray::Map"))  # those of other tests
    command = on_ray(*inputs, "-b", 16, "-o", labels, "--workers", 2, address=cluster.address)
    with run_cvt.start(*command, first=FEWER_RETRIES) as process:
        works = "ray::MapWorker(MapBatches(ModelWorker)).submit"
        working: list[int] = []
        wait_for(lambda: working.extend(processes(ray_folder, works)) or working, process)
        victim = working[0]
        os.kill(victim, signal.SIGSTOP)  # something waits for it
        wait_for(lambda: len(parts(labels)) >= 4, process)
        (ray_folder / "unloadable").touch()
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=TIMEOUT)
    (ray_folder / "unloadable").unlink()
    assert process.returncode == 3
    # A run of minutes says how far it is, each minute.
    said = "".join(line for line in said.splitlines(keepends=True) if "images/s" not in line)
    assert said == (
        "cvt: error: no worker can load the model any more: each dies of it, out of memory or by a "
        "fault in a library; finished parts are kept: fix that, then run the same command with "
        "--resume\n"
    )
    # The other one did all but what waited for it, at most two tables; then neither can begin.
    assert len(inputs) - 2 <= len(parts(labels)) < len(inputs)
    assert 2 + 2 * 2 <= len((ray_folder / "died").read_text().split()) < 10
    assert not (labels / "_SUCCESS").exists()


# --- GPUs, as Ray counts them


GPU_JOB = """if True:
    import signal
    import sys
    from dataclasses import replace

    from cvt_cli.checkpoint.load import load
    from cvt_cli.checkpoint.resolve import resolve
    from cvt_cli.distributed.parts import Part
    from cvt_cli.distributed import connection, execution
    from cvt_cli.distributed.layout import Workers
    from cvt_cli.distributed.ray_job import RayJob
    from cvt_cli.errors import UsageError
    from cvt_cli.images.reading import ImageReader
    from cvt_cli.images.source import Search

    connection.PATIENCE_SECONDS = 0
    connection.RETRIES = execution.RETRIES = 0  # the first death counts
    address, *paths = sys.argv[1:]
    checkpoint = load(resolve("cvt-tiny-cifar10"))
    reader = ImageReader(checkpoint.config, checkpoint.preprocessing)
    job = RayJob(
        checkpoint=checkpoint,
        device="cpu",
        dtype="float32",
        batch_size=1,
        reader=reader,
        only=(),
        top_k=1,
        threshold=0.0,
        columns=(),
        search=Search(),
        offline=False,
    )
    signal.signal(signal.SIGTERM, interrupted := lambda *_: None)
    with connection.Cluster(address, False) as cluster:
        assert signal.getsignal(signal.SIGTERM) is interrupted  # not Ray's
        try:
            cluster.settle(replace(job, device="mps"), Workers(gpus=0))
        except UsageError as error:
            print(error)
        job, layout = cluster.settle(job, Workers())
        layout = replace(layout, gpus=0.5)
        execution.fill_parts(
            cluster,
            [Part(0, paths)],
            job,
            layout=layout,
            on_record=lambda record: print(record.path, record.error),
            on_part=lambda part: None,
        )
"""


@pytest.mark.slow
def test_workers_with_a_gpu(
    run_cvt: RunCvt,
    fork_server: ForkClient,
    cluster: Cluster,
    forked: NodeOptions,
    tmp_path: Path,
) -> None:
    save_photos(tmp_path / "photos", 5)
    paths = sorted(map(str, (tmp_path / "photos").iterdir()))
    Image.new("RGB", (40, 40), FATAL_COLOUR).save(paths[0])
    node = cluster.add_node(**forked(**site(tmp_path / "site", POISON)), num_gpus=1)  # it says so
    try:
        # Pools of actors with GPUs are another matter to Ray; the network does not notice.
        command = ["-c", cluster.address, *paths]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with fork_server.start(
            command, run_cvt.env, tmp_path, GPU_JOB, encoding="utf-8", **pipes
        ) as process:
            out, said = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, said
        # The worker's own error is ours; what waits for a worker that dies is not taken for what
        # it dies of.
        first, *found = out.splitlines()
        assert first.startswith("mps: this machine has no such device")
        assert sorted(found) == [f"{paths[0]} {DIED}", *(f"{path} None" for path in paths[1:])]
        assert "still waiting for a worker: `ray status` shows" in said
    finally:
        cluster.remove_node(node, allow_graceful=False)


# --- Nothing is started


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("cat.jpg", ["one --output"]),
        ("cat.jpg -o a -o b", ["one --output"]),
        ("cat.jpg -o labels.csv", ["a folder of parts", "cvt merge labels/ -o labels.csv"]),
        ("cat.jpg -o cat.jpg", ["cat.jpg", "a folder of parts"]),
        ("- -o labels", ["standard input"]),
        ("-o labels", ["no image is named"]),
        ("cat.jpg -o labels --format json", ["json", "csv, tsv, jsonl, parquet"]),
        ("cat.jpg -o labels --workers many", ["--workers many", "2:16"]),
        ("cat.jpg -o labels --gpus-per-worker=-1", ["--gpus-per-worker"]),
        (
            "cat.jpg -o labels --device cpu --gpus-per-worker 1",
            ["--device cpu and --gpus-per-worker 1 exclude each other"],
        ),
        (
            "cat.jpg -o labels --device cuda --gpus-per-worker 0",
            ["--device cuda and --gpus-per-worker 0 exclude each other"],
        ),
        ("cat.jpg -o labels --device cuda:1", ["--device cuda:1: Ray picks", "--device cuda"]),
        ("cat.jpg -o labels --device cuda:0,cuda:1", ["Ray picks", "--device cuda"]),
        ("cat.jpg -o labels --shard 1/2", ["--shard", "--engine local"]),
        ("cat.jpg -o labels --run-record run.json", ["--run-record", "--engine local"]),
        ("cat.jpg -o full", ["full is not empty"]),
        ("cat.jpg -o done", ["done holds the labels of a run", "--overwrite"]),
        ("cat.jpg -o shards", ["shards is not empty", "a folder of its own"]),
        ("cat.jpg -o parts", ["parts holds parts but no _run.json", "--overwrite"]),
        ("cat.jpg -o parts --resume", ["parts holds parts but no _run.json", "--overwrite"]),
        ("cat.jpg -o half", ["half holds a run that was interrupted", "--resume", "--overwrite"]),
        ("cat.jpg -o labels --ray-address ray://127.0.0.1:10001", ["Ray Client", "auto"]),
        ("cat.jpg -o labels --ray-address nonsense", ["nonsense: not the address", "host:port"]),
        (f"cat.jpg -o labels --ray-address {'x' * 70}:1", ["no Ray cluster at xxx"]),
        ("cat.jpg -o labels --ray-address 127.0.0.1:1", ["connection refused", "ray start"]),
    ],
)
def test_wrong_usage(
    arguments: str, words: Sequence[str], run_cvt: RunCvt, cat: Path, tmp_path: Path
) -> None:
    for name in (
        "full/mine.txt",
        "done/_SUCCESS",
        "done/_run.json",
        "half/_run.json",
        "parts/part-000000.csv",
        "shards/part-1.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    done = run_cvt("classify", *arguments.split(), "--engine", "ray", "-m", CIFAR10_MODEL)
    check_line(done, 2, *words)
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "2:", ":2", "8:2", "0:2", "1:2:3", "", "\u0662"]
)
def test_wrong_numbers_of_workers(text: str) -> None:
    with pytest.raises(UsageError, match=f"--workers {re.escape(text)}: "):
        parse_workers(text)


def test_numbers_of_workers() -> None:
    assert list(map(parse_workers, (None, "8", "2:16", "3:3"))) == [
        (None, None),
        (8, 8),
        (2, 16),
        (3, 3),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--workers 2", ["--workers needs --engine ray"]),
        ("--gpus-per-worker 1", ["--gpus-per-worker needs --engine ray"]),
        ("-o s3://bucket/labels", ["s3://bucket/labels", "--engine ray"]),
        ("--engine spark", ["spark"]),
    ],
)
def test_wrong_usage_without_it(
    arguments: str, words: Sequence[str], run_cvt: RunCvt, cat: Path
) -> None:
    check_line(run_cvt("classify", cat, *arguments.split(), "-o", "x.csv"), 2, *words)
    assert not list(cat.parent.glob("x.csv*"))


def test_the_address_of_something_else(run_ray: Run, cat: Path) -> None:
    """Ray's dashboard, say."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # How long it tries, once.
        env = {"RAY_py_gcs_connect_timeout_s": "1", "RAY_gcs_rpc_server_connect_timeout_s": "1"}
        address = f"127.0.0.1:{server.server_port}"
        done = run_ray("cat.jpg", "-o", "labels", address=address, env=env, timeout=60)
        server.shutdown()
    check_line(done, 2, f"no Ray cluster at {address}")


def test_without_ray(run_ray: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "site/ray").mkdir(parents=True)
    (tmp_path / "site/ray/__init__.py").write_text("raise ImportError")
    done = run_ray("cat.jpg", "-o", "labels", env={"PYTHONPATH": str(tmp_path / "site")})
    check_line(
        done, 2, "Ray, which is not installed", 'pip install "ray[data]>=2.60" "pyarrow>=17"'
    )
    assert not (tmp_path / "labels").exists()


# In Ray's workers alone.
OTHER_VERSION = """
import sys

if "default_worker.py" in sys.argv[0]:
    import cvt_cli

    cvt_cli.__version__ = "0.0.0"
"""
# A node on which whatever runs is killed for its memory.
NO_MEMORY = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}


def test_what_a_cluster_can_not_do(
    run_ray: Run,
    run_cvt: RunCvt,
    cluster: Cluster,
    forked: NodeOptions,
    hub: HubServer,
    tiny_cvt: Callable[..., Path],
    cat: Path,
    tmp_path: Path,
) -> None:
    command = ("cat.jpg", "-o", "labels")
    # The nodes' cache is another one, and their Hub too.
    hub.add("someone/small-cvt", tiny_cvt())
    run_cvt("models", "--download", "someone/small-cvt", expect=0)
    offline = ("-m", "someone/small-cvt", "--offline")
    done = run_ray(*command, *offline, address=cluster.address)
    # The worker's own error is said as if it were ours.
    said = "cvt: error: someone/small-cvt"
    check_line(done, 3, said, "config.json is not in the cache, and offline")
    node = cluster.add_node(**forked(**site(tmp_path / "site", OTHER_VERSION)))
    try:
        done = run_ray(*command, address=cluster.address)
    finally:
        cluster.remove_node(node, allow_graceful=False)
    check_line(done, 2, "the cluster's node ", f" has cvt 0.0.0, this is {__version__}", "same")
    assert not (tmp_path / "labels").exists()


def test_a_model_that_kills_who_loads_it(
    run_ray: Run, cluster: Cluster, cat: Path, tmp_path: Path
) -> None:
    # Workers that start as a user's do, which takes long enough.
    node = cluster.add_node(num_cpus=1, num_gpus=1, env_vars=NO_MEMORY)
    try:
        command = ("cat.jpg", "-o", "labels", "--device", "cuda")
        at_once = {"RAY_task_oom_retry_delay_base_ms": "0"}
        done = run_ray(*command, address=cluster.address, env=at_once)
    finally:
        cluster.remove_node(node, allow_graceful=False)
    check_line(done, 3, "a worker dies each time it loads the model (OutOfMemoryError)", "memory")
    assert not (tmp_path / "labels").exists()
