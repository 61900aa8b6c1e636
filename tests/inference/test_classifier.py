"""The Python API."""

import gc
import hashlib
import io
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_cli import Classifier
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.reading import ImageReader
from cvt_cli.images.source import Source
from cvt_cli.inference.batch_size import auto_batch_size, usual_size
from cvt_cli.inference.devices import pick_device, pick_devices, pick_dtype, use_exact_float32
from cvt_cli.model.cost import count_cost
from cvt_cli.model.form import Form
from cvt_cli.model.graphs import Graphed, recording
from cvt_cli.model.memory import is_out_of_memory
from cvt_cli.records import Record
from tests.photos import EXIF_ORIENTATION, Opened, picture
from tests.tiny import KEEPS_ASPECT, LABELS, tiny_model

TinyCvt = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tiny_cvt: TinyCvt) -> Path:
    return tiny_cvt()


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Ten files, the fourth and the last of which can't be read."""
    paths = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        if i in (3, 9):
            path.write_text("no image")
        else:
            picture(40 + 9 * i, 30 + 7 * i, seed=i).save(path)
        paths.append(str(path))
    return paths


def classifier(folder: Path, **options: Any) -> Classifier:
    return Classifier(str(folder), **{"device": "cpu", "dtype": "float32", **options})


def same(found: list[Record], expected: list[Record]) -> bool:
    """Equal but for the last bits of the scores, which depend on the batch."""
    for a, b in zip(found, expected, strict=True):
        assert (a.path, a.error) == (b.path, b.error)
        assert [p.index for p in a.predictions] == [p.index for p in b.predictions]
        for p, q in zip(a.predictions, b.predictions, strict=True):
            assert p.score == pytest.approx(q.score, abs=1e-5)
    return True


def test_one_image_and_several(folder: Path, pictures: list[str]) -> None:
    classify = classifier(folder)
    assert classify.labels == LABELS
    one = classify(pictures[0], top_k=3)
    assert one.path == pictures[0] and one.error is None
    assert len(one.predictions) == 3
    assert one.predictions[0].label == LABELS[one.predictions[0].index]
    many = classify(pictures, top_k=3)
    assert same(many[:1], [one])
    assert [record.path for record in many] == pictures
    assert [record.error is None for record in many] == [i not in (3, 9) for i in range(10)]
    # Pathlib's paths, and images already open.
    assert same([classify(Path(pictures[0]), top_k=3)], [one])
    opened = classify(Image.open(pictures[0]), top_k=3)
    assert opened.predictions == one.predictions


def test_scores_are_the_softmax(folder: Path, pictures: list[str]) -> None:
    from transformers import ConvNextImageProcessorPil

    record = classifier(folder)(pictures[0], top_k=99)
    processor = ConvNextImageProcessorPil.from_pretrained(folder)
    inputs = processor(Image.open(pictures[0]), return_tensors="pt")
    with torch.inference_mode():
        expected = tiny_model()(**inputs).logits.softmax(-1)[0]
    assert len(record.predictions) == 5
    assert sum(p.score for p in record.predictions) == pytest.approx(1)
    for prediction in record.predictions:
        assert prediction.score == pytest.approx(expected[prediction.index].item(), abs=1e-5)
    short = classifier(folder, dtype="bfloat16")(pictures[0], top_k=99)
    assert sum(p.score for p in short.predictions) == pytest.approx(1, abs=1e-6)


def test_columns_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    """Of a photograph as phones take it: turned, and so large that less than all is decoded."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    photo, broken = tmp_path / "photo.jpg", tmp_path / "broken.jpg"
    picture(1000, 800).save(photo, exif=exif)
    broken.write_bytes(photo.read_bytes()[:5000])
    names = ("width", "height", "bytes", "sha256", "seconds", "index")
    found, failed = classifier(folder).classify(find([str(photo), str(broken)]), columns=names)
    assert failed.error is not None and failed.predictions == ()
    for record, path in ((found, photo), (failed, broken)):
        assert record.columns.pop("seconds") > 0  # type: ignore[operator]
        data = path.read_bytes()
        of_the_bytes = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert of_the_bytes.items() <= record.columns.items()
    assert failed.columns.keys() == {"bytes", "sha256"}
    best = found.predictions[0].index
    assert {"width": 800, "height": 1000, "index": best}.items() <= found.columns.items()


def test_thumbnails_change_no_score(folder: Path, tmp_path: Path) -> None:
    picture(1000, 800).save(tmp_path / "photo.jpg")
    classify = classifier(folder)
    plain, with_thumbnail = (
        next(classify.classify(find([str(tmp_path / "photo.jpg")]), thumbnails=thumbnails))
        for thumbnails in (False, True)
    )
    assert with_thumbnail.predictions == plain.predictions
    assert with_thumbnail.thumbnail is not None and plain.thumbnail is None
    assert Image.open(io.BytesIO(with_thumbnail.thumbnail)).size == (320, 256)


def test_a_score_of_the_threshold_reaches_it(folder: Path, pictures: list[str]) -> None:
    classify = classifier(folder)
    everything = classify(pictures[0]).predictions
    (record,) = classify.classify(find(pictures[:1]), threshold=everything[1].score)
    assert record.predictions == everything[:2]


def test_an_image_that_the_memory_does_not_hold_decoded(
    folder: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("cvt_cli.images.reading.decode", decode)
    assert classifier(folder)(pictures[0]).error == "out of memory"


def test_who_stops_waits_neither_for_a_device_nor_for_an_input(folder: Path) -> None:
    gate = threading.Event()

    def slowly(value: Any) -> Any:
        gate.wait(200)
        return value

    classify = classifier(folder, batch_size=1, device="cpu,cpu")
    network = classify.replicas[1]._runner.model
    classify.replicas[1]._runner.model = lambda x: network(slowly(x))
    hanging = Source("hanging", Opened(lambda: slowly(io.BytesIO())))
    for sources in [picture()] * 3, [picture(), hanging]:
        records = classify.classify(sources)
        next(records)
        start = time.monotonic()
        records.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 60
        classify = classifier(folder, batch_size=1)
    gate.set()


class Noting:
    """A network that notes that it ran."""

    def __init__(self, network: Any, seen: list[int], index: int) -> None:
        self.network, self.seen, self.index = network, seen, index

    def __call__(self, x: torch.Tensor) -> Any:
        self.seen.append(self.index)
        return self.network(x)


def test_several_devices_share_the_batches_and_keep_the_order(
    folder: Path, pictures: list[str]
) -> None:
    one = classifier(folder, batch_size=2)
    two = classifier(folder, batch_size=2, device="cpu,cpu,cpu")
    seen: list[int] = []
    for index, replica in enumerate(two.replicas):
        replica._runner.model = Noting(replica._runner.model, seen, index)
        replica._runner.features = Noting(replica._runner.features, seen, index)
    assert same(two(pictures), one(pictures))
    assert sorted(seen) == [0, 0, 1, 1, 2]
    sources = list(find(pictures))
    assert list(two.embed(sources)) == list(one.embed(sources))
    assert sorted(seen) == [0] * 4 + [1] * 4 + [2] * 2
    assert two.description()["device"] == "cpu,cpu,cpu"
    chosen = [
        classifier(folder, batch_size=2, device=d, only=LABELS[3:]) for d in ("cpu", "cpu,cpu")
    ]
    assert same(*(classify(pictures) for classify in chosen))


@pytest.mark.filterwarnings("ignore:.* holds archives")
def test_a_path_that_stands_for_several(folder: Path, pictures: list[str], tmp_path: Path) -> None:
    classify = classifier(folder)
    expected = classify(pictures)
    (tmp_path / "one").mkdir()
    picture().save(tmp_path / "one/x.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(pictures[0], "0.png")
    assert same(classify(tmp_path)[:10], expected)
    assert same(classify(f"{tmp_path}/?.png"), expected)
    # However many there are.
    assert [r.path for r in classify(tmp_path / "one")] == [str(tmp_path / "one/x.png")]
    assert [r.path for r in classify(tmp_path / "a.zip")] == [f"{tmp_path}/a.zip::0.png"]
    assert classify(f"{tmp_path}/none.png").error == "no such file"


def test_an_open_image_that_is_broken(folder: Path, pictures: list[str], tmp_path: Path) -> None:
    whole = Path(pictures[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = classifier(folder)([Image.open(tmp_path / "cut.png"), Image.open(pictures[0])])
    assert "a broken PNG" in (found[0].error or "") and found[1].error is None
    record = classifier(folder, max_pixels=100)(Image.open(pictures[0]))
    assert record.error is not None and "more than the limit of 100" in record.error


def test_greys_of_16_bits_are_those_of_8(folder: Path, tmp_path: Path) -> None:
    greys = np.asarray(picture().convert("L"))
    Image.fromarray(greys).save(tmp_path / "8.png")
    Image.fromarray(greys.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = tmp_path / "8.png", tmp_path / "16.png"

    def scores(exact: bool) -> list[dict[str, float]]:
        """By label; in torch 2.11 the last digits depend on the place in the batch."""
        made = classifier(folder, exact_decode=exact)([eight, sixteen, Image.open(sixteen)])
        return [{p.label: p.score for p in record.predictions} for record in made]

    of_8, of_16, opened = scores(exact=False)
    assert of_16 == pytest.approx(of_8, abs=1e-6) and opened == pytest.approx(of_8, abs=1e-6)
    exact_8, exact_16, exact_opened = scores(exact=True)
    assert exact_8 == pytest.approx(of_8, abs=1e-6)
    assert exact_16 == pytest.approx(exact_opened, abs=1e-6)
    assert exact_16 != pytest.approx(of_16, abs=1e-3)


def test_labels_to_choose_from_by_name_and_index(tiny_cvt: TinyCvt) -> None:
    names = ("crane", "cat", "Crane", "dog", "b\u00e9b\u00e9")
    folder = tiny_cvt(labels=names)
    only = ["dog, be\u0301be\u0301", 0, "#2"]
    for device in ("cpu", "cpu,cpu"):
        found = classifier(folder, only=only, device=device)(picture())
        assert {p.index for p in found.predictions} == {0, 2, 3, 4}
        assert sum(p.score for p in found.predictions) == pytest.approx(1)
    with pytest.raises(UsageError, match="2 classes of that name: #0 crane; #2 Crane"):
        classifier(folder, only=[" CRANE"])


@pytest.mark.parametrize("resized", [True, False])
def test_the_description_tells_how_it_decodes(resized: bool, tiny_cvt: TinyCvt) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "do_resize": resized}
    folder = tiny_cvt(processor=settings)
    for exact, name in ((True, "exact"), (False, "fast")):
        found = classifier(folder, exact_decode=exact).description(digest=False)
        assert found["decode"] == name


def test_the_description_has_all_that_predictions_depend_on(folder: Path) -> None:
    found = classifier(folder, batch_size=3, max_pixels=10**6, only=LABELS[:2]).description()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found == {
        "model": str(folder),
        "commit": None,
        "weights_sha256": digest,
        "activation": "gelu",
        "scores": "softmax",
        "preprocessing": load(resolve(str(folder))).preprocessing.to_dict(),
        "device": "cpu",
        "dtype": "float32",
        "decode": "fast",
        "background": None,
        "truncated": "refuse",
        "batch_size": 3,
        "form": Form.usual(3, torch.device("cpu"), torch.float32).to_dict(),
        "max_pixels": 10**6,
        "labels": list(LABELS[:2]),
        "groups": None,
    }


def test_nothing_to_do(folder: Path) -> None:
    classify = classifier(folder)
    assert classify([]) == []
    assert list(classify.classify([])) == []
    assert classify.scores([]).shape == (0, 5)


def test_an_open_image_is_turned_upright_too(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    picture().save(tmp_path / "turned.png", exif=exif)
    classify = classifier(folder)
    from_file = classify(tmp_path / "turned.png")
    assert classify(Image.open(tmp_path / "turned.png")).predictions == from_file.predictions
    assert classify(picture()).predictions != from_file.predictions


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10, 100])
def test_batches_do_not_change_the_answer(
    batch_size: int, folder: Path, pictures: list[str]
) -> None:
    one = classifier(folder, batch_size=1)
    expected = [one(path) for path in pictures]
    assert same(classifier(folder, batch_size=batch_size)(pictures), expected)


def test_batches_of_mixed_sizes(tiny_cvt: TinyCvt, pictures: list[str]) -> None:
    """A preprocessing that keeps the aspect gives every image a size of its own."""
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 40}}
    folder = tiny_cvt(processor=settings)
    repeated = [pictures[i] for i in (0, 1, 0, 3, 2, 1, 0)]
    one = classifier(folder)
    expected = [one(path) for path in repeated]
    assert same(classifier(folder, batch_size=4)(repeated), expected)


def test_an_image_too_small_for_the_network(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt(
        processor={"image_processor_type": "ViTImageProcessor", "do_resize": False},
        patch_padding=[0, 0, 0],
    )
    records = classifier(folder)([picture(10, 10), picture(64, 64)])
    assert records[0].error is not None and "smallest is" in records[0].error
    assert records[1].error is None


class SmallMemory(torch.nn.Module):
    """A device whose memory holds so many images and no more."""

    def __init__(self, model: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.model = model
        self.room = room
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        logits: torch.Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("room", [1, 2, 3])
def test_out_of_memory_halves_the_batch(room: int, folder: Path, pictures: list[str]) -> None:
    expected = classifier(folder)(pictures * 3)
    classify = classifier(folder, batch_size=8)
    classify._runner.model = memory = SmallMemory(classify._runner.model, room)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        found = classify(pictures * 3)
    assert same(found, expected)
    assert classify.batch_size == {1: 1, 2: 2, 3: 2}[room]
    assert ["out of memory" in str(each.message) for each in caught] == [True]
    # Found out once, never tried again.
    too_large = [size for size in memory.batches if size > room]
    assert memory.batches[: len(too_large)] == too_large


class SmallGraphs(Graphed):
    """CUDA graphs that leave no memory for a batch."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.graphs = True

    def stop(self) -> bool:
        there, self.graphs = self.graphs, False
        return there

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.graphs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._network(images)


def test_graphs_go_before_the_batch_is_halved(folder: Path, pictures: list[str]) -> None:
    expected = classifier(folder)(pictures)
    classify = classifier(folder, batch_size=8)
    graphs = SmallGraphs(classify._runner.model)
    classify._runner.model, classify._runner._graphs = graphs, (graphs,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(classify(pictures), expected)
    assert classify.batch_size == 8 and not graphs.graphs


class OtherRecords(Graphed):
    """A network that gets no memory while another thread records, and needs more than there is for
    more than `room` images."""

    room = 8

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        free = recording.acquire(blocking=False)
        if free:
            recording.release()
        if not free or len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._network(images)


def test_no_memory_while_another_records_halves_nothing(folder: Path) -> None:
    pictures = [picture(seed=seed) for seed in range(12)]
    expected = classifier(folder)(pictures)
    classify = classifier(folder, batch_size=8)
    graphs = OtherRecords(classify._runner.model)
    classify._runner.model, classify._runner._graphs = graphs, (graphs,)
    began, end = threading.Event(), threading.Event()

    def record() -> None:
        with recording:
            began.set()
            end.wait(10)

    other = threading.Thread(target=record)
    other.start()
    began.wait(10)
    threading.Timer(0.3, end.set).start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(classify(pictures), expected)
    other.join()
    assert classify.batch_size == 8
    graphs.room = 2
    with pytest.warns(UserWarning, match="out of memory: continuing with smaller batches"):
        assert same(classify(pictures), expected)
    assert classify.batch_size == 2


def test_a_network_has_one_thread_for_all_runs(folder: Path) -> None:
    """What libraries prepare for a shape, they prepare for a thread."""
    pictures = [picture(seed=seed) for seed in range(4)]
    classify = classifier(folder, batch_size=1, device="cpu,cpu")
    threads: dict[int, list[threading.Thread]] = {0: [], 1: []}
    for index, replica in enumerate(classify.replicas):
        network = replica._runner.model
        replica._runner.model = lambda x, of=threads[index], through=network: (
            of.append(threading.current_thread()),
            through(x),
        )[1]
    for _ in range(3):
        classify(pictures)
    assert [len(set(used)) for used in threads.values()] == [1, 1]
    assert threads[0][0] is not threads[1][0] and len(threads[0]) == 6
    # It ends with the classifier.
    del classify, replica, network
    gc.collect()
    for used in threads.values():
        used[0].join(10)
        assert not used[0].is_alive()


class OnePlace(Graphed):
    """Reads its input from one place, a while after it was put there, as a CUDA graph does."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.place = images
        time.sleep(0.02)
        return self._network(self.place)


def test_two_threads_may_use_one_classifier(folder: Path) -> None:
    pictures = [picture(seed=seed) for seed in range(8)]
    classify = classifier(folder, batch_size=2)
    expected = classify(pictures)
    graphs = OnePlace(classify._runner.model)
    classify._runner.model, classify._runner._graphs = graphs, (graphs,)
    with ThreadPoolExecutor(2) as pool:
        there, back = pool.map(classify, (pictures, pictures[::-1]))
    assert same(there, expected)
    assert same(back, expected[::-1])


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory", True),
        ("MPS backend out of memory (MPS allocated: 17 GB)", True),
        ("Invalid buffer size: 20.00 GiB", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_the_many_words_for_a_full_memory(text: str, full: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == full


def pretend_cuda(
    monkeypatch: pytest.MonkeyPatch,
    archs: list[str],
    capability: tuple[int, int] = (8, 6),
    available: bool = True,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Old")


@pytest.mark.parametrize(
    ("capability", "archs", "usable"),
    [
        ((8, 6), ["sm_75", "sm_80", "sm_90", "compute_90"], True),  # kernels of its generation
        ((8, 6), ["sm_75", "sm_86"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((12, 0), ["sm_80", "sm_90a", "compute_90"], True),  # made by the driver
        ((12, 0), ["sm_80", "sm_100"], False),
        ((7, 0), ["sm_75", "sm_80", "compute_80"], False),
        ((7, 0), [], True),  # unknown
    ],
)
def test_a_gpu_that_this_torch_has_no_kernels_for(
    capability: tuple[int, int],
    archs: list[str],
    usable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_cuda(monkeypatch, archs, capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert pick_device("auto").type == ("cuda" if usable else "cpu")
    assert ["has no kernels for an NVIDIA Old" in str(each.message) for each in caught] == (
        [] if usable else [True]
    )
    if not usable:
        with pytest.raises(UsageError, match=r"^cuda:0: torch .* has no kernels for an NVIDIA Old"):
            pick_device("cuda:0")


def test_the_dtype_that_a_device_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    for bf16, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)  # noqa: B023
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)  # noqa: B023
        assert pick_dtype("auto", cpu) == (torch.bfloat16 if bf16 or amx else torch.float32)
        assert pick_dtype("auto", cuda) == torch.float16
        assert pick_dtype("auto", mps) == torch.float32
        assert pick_dtype("bfloat16", mps) == torch.bfloat16


def test_the_device_where_nobody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for here in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: here)  # noqa: B023
        assert pick_device("auto").type == "cpu"
    assert pick_devices("cpu, mps") == (torch.device("cpu"), torch.device("mps"))


@pytest.mark.parametrize(
    ("count", "said"), [(0, "no CUDA devices"), (1, "1 CUDA device"), (2, "2 CUDA devices")]
)
def test_a_gpu_that_is_not_there(count: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError, match=f"^cuda:7: this machine has {said}$"):
        pick_device("cuda:7")


def test_convolutions_in_float32_are_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, dtype, allowed in (
        ("cpu", torch.float32, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float32, False),
    ):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        use_exact_float32(torch.device(device), dtype)
        assert torch.backends.cudnn.allow_tf32 == allowed


def test_a_batch_has_its_share_of_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(resolve(str(folder)))
    each = count_cost(checkpoint.config, usual_size(checkpoint)).peak_activation_bytes
    memory = SimpleNamespace(total_memory=64 * 8 * each)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    cuda = torch.device("cuda")
    assert auto_batch_size(checkpoint, cuda) == 64
    assert auto_batch_size(checkpoint, cuda, 0.3) == 16
    for images, size in ((0.5, 1), (3.5, 2), (10**6, 256)):
        monkeypatch.setattr("cvt_cli.inference.batch_size.CPU_BATCH_BYTES", images * each)
        assert auto_batch_size(checkpoint, torch.device("cpu")) == size


def test_cuda_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, ["sm_80"])
    assert pick_device("cuda:0") == torch.device("cuda:0")
    for name in ("cuda:1", "cuda:128", "cuda:255", "cuda:256"):  # torch takes some for others
        with pytest.raises(UsageError, match=f"{name}: "):
            pick_device(name)
    pretend_cuda(monkeypatch, ["sm_80"], available=False)
    with pytest.raises(UsageError, match="cuda: torch can't use it"):
        pick_device("cuda")


def test_scores_that_are_no_numbers_are_an_error(folder: Path, pictures: list[str]) -> None:
    classify = classifier(folder)
    network = classify._runner.model
    expected = ["not numbers" if r.error is None else r.error for r in classify(pictures)]
    classify._runner.model = lambda x: network(x) * float("nan")
    features = classify._runner.features
    classify._runner.features = lambda x: features(x).index_fill(1, torch.tensor([3]), float("inf"))
    for found in classify(pictures), list(classify.embed(find(pictures))):
        assert not any(record.predictions or record.embedding for record in found)
        assert all(e in (r.error or "") for e, r in zip(expected, found, strict=True))


def test_out_of_memory_for_one_image(folder: Path, pictures: list[str]) -> None:
    """Of a size that all have: it is not this image that is too large."""
    classify = classifier(folder, batch_size=2)
    classify._runner.model = SmallMemory(classify._runner.model, 0)
    with pytest.warns(UserWarning), pytest.raises(Exception, match="memory"):
        classify(pictures)


class FewPixels(torch.nn.Module):
    """A device whose memory holds so many pixels and no more."""

    def __init__(self, model: Any, room: int) -> None:
        super().__init__()
        self.model = model
        self.room = room

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > 3 * self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        result: torch.Tensor = self.model(x)
        return result


def test_an_image_too_large_for_the_memory_is_its_own_error(tiny_cvt: TinyCvt) -> None:
    images = [picture(40, 30, seed=1), picture(32, 20_000), picture(50, 40, seed=2)]
    folder = tiny_cvt(processor=KEEPS_ASPECT)
    expected = classifier(folder)([images[0], images[2]])
    classify = classifier(folder, batch_size=4)
    classify._runner.model = FewPixels(classify._runner.model, 32 * 100)
    classify._runner.features = FewPixels(classify._runner.features, 32 * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the others' batches stay as they are
        found = classify(images)
        vectors = list(classify.embed(images))
    assert same([found[0], found[2]], expected)
    assert [record.embedding is None for record in vectors] == [False, True, False]
    for record in found[1], vectors[1]:
        assert record.error is not None and record.error.startswith("out of memory")


def test_large_images_go_through_the_network_a_few_at_a_time(tiny_cvt: TinyCvt) -> None:
    classify = classifier(tiny_cvt(processor=KEEPS_ASPECT), batch_size=4)
    classify._runner.model = memory = SmallMemory(classify._runner.model, 4)
    classify([picture(32, 32)] * 5 + [picture(32, 5000)] * 3)
    assert memory.batches == [4, 1, 1, 1, 1]


def test_images_of_any_size_are_bounded(tiny_cvt: TinyCvt) -> None:
    """What the preprocessing does not bound: attention would take hours."""
    folder = tiny_cvt(processor=KEEPS_ASPECT)
    images = [picture(1, 20_000), picture(40, 30)]
    start = time.process_time()
    bad, good = classifier(folder)(images)
    assert time.process_time() - start < 20
    assert bad.error is not None and good.error is None
    assert "640000x32 pixels" in bad.error and "--image-size" in bad.error
    assert all(record.error is None for record in classifier(folder, image_size=(32, 32))(images))
    # A size that was asked for is not.
    chosen = load(resolve(str(folder))).with_image_size((4096, 4096))
    ImageReader(chosen.config, chosen.preprocessing).check_size(images[0])


def test_other_errors_of_the_device_are_not_taken_for_it(folder: Path, pictures: list[str]) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the device fell off the bus")

    classify = classifier(folder)
    classify._runner.model = Broken()
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="bus"):
        warnings.simplefilter("error")
        classify(pictures)


@pytest.mark.parametrize("method", ["classify", "embed"])
@pytest.mark.parametrize(("device", "batches"), [("cpu", 4), ("cpu,cpu", 7)])
def test_a_stream_is_read_as_it_is_needed(
    device: str, batches: int, method: str, folder: Path, pictures: list[str]
) -> None:
    """However many sources there are, only a few batches of them are open at a time: what each
    device is at, one that waits for it, and one that is decoded meanwhile."""
    read = 0

    def sources() -> Iterator[Any]:
        nonlocal read
        for source in [*find(pictures)] * 100:
            read += 1
            yield source

    records = getattr(classifier(folder, batch_size=2, device=device), method)(sources())
    for _ in range(6):
        next(records)
    assert read == 2 * batches
    records.close()


def test_a_checkpoint_already_loaded(folder: Path, pictures: list[str]) -> None:
    checkpoint = load(resolve(str(folder)))
    assert same(
        Classifier(checkpoint, device="cpu", dtype="float32")(pictures),
        classifier(folder)(pictures),
    )


def test_wrong_arguments(folder: Path) -> None:
    for options in ({"device": "tpu"}, {"device": "cuda:99"}, {"dtype": "int8"}):
        with pytest.raises(UsageError):
            Classifier(str(folder), **{"device": "cpu", **options})
    with pytest.raises(ModelError):
        Classifier("./nothing", device="cpu")
    with pytest.raises(TypeError, match="bytes are neither a path nor an image"):
        classifier(folder)(b"\xff\xd8\xff")  # type: ignore[call-overload]


def test_pixel_limit(folder: Path, pictures: list[str]) -> None:
    record = classifier(folder, max_pixels=100)(pictures[0])
    assert record.error is not None and "more than the limit of 100" in record.error


def test_scores_of_arrays(folder: Path) -> None:
    classify = classifier(folder)
    images = [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]
    found = classify.scores(images)
    assert found.shape == (2, 5) and found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@pytest.mark.cuda
def test_the_same_on_cuda(folder: Path, pictures: list[str]) -> None:
    expected = classifier(folder, batch_size=4)(pictures * 5)
    on_gpu = classifier(folder, batch_size=4, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # graphs included
        found = on_gpu(pictures * 5)
    for a, b in zip(found, expected, strict=True):
        assert (a.path, a.error) == (b.path, b.error)
        scores = {p.index: p.score for p in b.predictions}
        for p in a.predictions:
            assert p.score == pytest.approx(scores.get(p.index, p.score), abs=1e-3)
    vectors = [list(side.embed(list(find(pictures)))) for side in (on_gpu, classifier(folder))]
    for a, b in zip(*vectors, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-2)
