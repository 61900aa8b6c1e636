"""Which batches of a run go through CUDA graphs: stand-ins for these on the CPU."""

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvt_cli import Classifier
from cvt_cli.images.find import find
from cvt_cli.inference.network_runner import BATCHES_BEFORE
from cvt_cli.model import graphs
from tests.photos import picture
from tests.tiny import KEEPS_ASPECT

BATCH = 8


class Launches(list[tuple[str, int]]):
    """What was launched: "plain" or "graph", and the number of images that it is for; and how many
    images the device has room for."""

    room = BATCH


@pytest.fixture
def through_graphs(
    tiny_cvt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Classifier, Launches]]:
    """Makes a classifier whose network goes through stand-ins for graphs, and what notes that."""

    def make(**options: Any) -> tuple[Classifier, Launches]:
        classifier = Classifier(
            str(tiny_cvt(**options)), device="cpu", dtype="float32", batch_size=BATCH
        )
        runner, launched = classifier._runner, Launches()
        network = runner.network

        def plain(images: torch.Tensor) -> torch.Tensor:
            launched.append(("plain", len(images)))
            if len(images) > launched.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(images)

        def record(_: object, source: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
            launched.clear()  # what the comparison launches does not count

            def replay(images: torch.Tensor) -> torch.Tensor:
                launched.append(("graph", len(source)))
                return network(images)

            return replay

        monkeypatch.setattr(graphs, "_Recorder", lambda: record)
        runner.model = graphed = graphs.Graphed(plain)
        runner._graphs = (graphed,)
        return classifier, launched

    return make


def pixels(count: int) -> list[np.ndarray]:
    return [np.full((64, 64, 3), 20 * seed, np.uint8) for seed in range(count)]


def launch(classifier: Classifier, launched: Launches, count: int, number: int | None) -> Launches:
    """Tell what a batch of so many images launches last."""
    launched.clear()
    found = classifier.scores(pixels(count), number)
    assert found.shape == (count, 5)
    return launched[-1:]


@pytest.mark.parametrize(
    ("number", "count", "what"),
    [
        (0, 8, ("plain", 8)),
        (BATCHES_BEFORE - 1, 8, ("plain", 8)),
        (BATCHES_BEFORE, 8, ("graph", 8)),
        (BATCHES_BEFORE, 5, ("graph", 8)),  # some could not be read, or the last of a run
        (BATCHES_BEFORE, 4, ("plain", 4)),
        (1000, 1, ("plain", 1)),
    ],
)
@pytest.mark.parametrize("before", [(), (8, 8), (5, 5, 3, 3)])
def test_the_way_of_a_batch_follows_from_its_number_and_size(
    number: int,
    count: int,
    what: tuple[str, int],
    before: tuple[int, ...],
    through_graphs: Callable[..., tuple[Classifier, Launches]],
) -> None:
    classifier, launched = through_graphs()
    for each in before:
        classifier.scores(pixels(each))
    assert launch(classifier, launched, count, number) == [what]


def test_without_a_number_the_second_batch_is_recorded(
    through_graphs: Callable[..., tuple[Classifier, Launches]],
) -> None:
    classifier, launched = through_graphs()
    found = [launch(classifier, launched, 1, None) for _ in range(3)]
    assert found == [[("plain", 1)], [("graph", 1)], [("graph", 1)]]


def test_images_of_their_own_sizes_are_computed_as_they_are(
    through_graphs: Callable[..., tuple[Classifier, Launches]],
) -> None:
    """Each would have to be recorded at its first batch."""
    classifier, launched = through_graphs(processor=KEEPS_ASPECT)
    assert launch(classifier, launched, 8, 1000) == [("plain", 8)]


def test_a_short_run_records_nothing(
    tmp_path: Path, through_graphs: Callable[..., tuple[Classifier, Launches]]
) -> None:
    classifier, launched = through_graphs()
    for seed in range(2 * BATCH):
        picture(64, 64, seed=seed).save(tmp_path / f"{seed:02}.png")
    list(classifier.classify_batches(find([str(tmp_path)]), first_batch=0))
    assert launched == [("plain", 8)] * 2 and not classifier._runner._graphs[0]._graphs


def test_where_memory_is_short_the_graph_is_smaller_too(
    through_graphs: Callable[..., tuple[Classifier, Launches]],
) -> None:
    classifier, launched = through_graphs()
    launched.room = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert launch(classifier, launched, 8, 5) == [("graph", 4)]
    assert classifier.batch_size == 4
    assert launch(classifier, launched, 3, 6) == [("graph", 4)]
    assert launch(classifier, launched, 2, 6) == [("plain", 2)]


def test_who_waits_for_a_gpu_leaves_the_cores_to_readers(
    run_python: Callable[..., "subprocess.Popen[str]"],
) -> None:
    code = """
import threading
import torch
from cvt_cli.inference.network_runner import _thread_for


def run():  # in a thread that has computed nothing yet
    for device in ("cuda", "cpu"):
        torch.set_num_threads(3)
        waiting = _thread_for(torch.device(device))
        print(waiting.submit(torch.get_num_threads).result(), torch.get_num_threads())


thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    with run_python(code) as process:
        out, said = process.communicate(timeout=120)
    assert out.split() == ["1", "3", "3", "3"], said
