"""The form of the network is chosen by measurement and kept; the labels are those of any."""

import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_cli.cli.compute_options import Compute, TuneChoice
from cvt_cli.errors import Remark
from cvt_cli.inference import tuning
from cvt_cli.inference.classifier import Classifier
from cvt_cli.inference.tuning import (
    LONG_RUN,
    Kind,
    Origin,
    Request,
    Tune,
    choose,
    fastest,
    pick_fastest,
)
from cvt_cli.model import fused
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.form import CHOICES, Form, StageForm
from cvt_cli.model.fused import FusedCvt
from tests.model.test_cvt import both, images, randomise, tiny

Clock = Callable[[float], Callable[[], None]]
KIND = Kind(tiny(), (64, 64), 2, torch.float32)
# No network's usual one.
ODD = Form((StageForm("sdpa", "apart", "plain", "channels_first"),) * 3, threads=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Makes calls that take so many seconds, of a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def make(*seconds: float) -> Callable[[], None]:
        taken = itertools.cycle(seconds)

        def call() -> None:
            now[0] += next(taken)

        return call

    return make  # type: ignore[return-value]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what was measured, empty."""
    folder = tmp_path / "forms"
    monkeypatch.setattr(tuning, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that are measured; nothing is. `ODD` is the fastest."""
    shapes: list[tuple[int, ...]] = []

    def measure(model: Cvt, batch: torch.Tensor) -> Form:
        shapes.append(tuple(batch.shape))
        return ODD

    monkeypatch.setattr(tuning, "fastest", measure)
    return shapes


def chosen(tune: Tune, images: int | None = 10**6, **others: Any) -> tuple[Form, Origin]:
    kind = replace(KIND, **others)
    model = Cvt(kind.config).to(kind.dtype)
    return choose(kind, lambda: model, Request(tune, lambda most: images and min(most, images)))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ((1.0, 0.5, 0.7), 1),
        ((1.0, 0.7, 0.5), 2),
        ((0.5, 1.0), 0),
        ((1.04, 1.0), 0),  # less than 5%
        ((1.06, 1.0), 1),
        ((1e-5, 0.5e-5), 1),
        ((1.0,), 0),
    ],
)
def test_the_fastest_wins_if_clearly(seconds: tuple[float, ...], best: int, clock: Clock) -> None:
    assert pick_fastest([clock(each) for each in seconds]) == best


def test_what_takes_no_time_is_no_division_by_zero(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "TURN", 1e-6)  # of as many calls as fit in
    assert pick_fastest([clock(0.0), clock(0.0)]) == 0


def test_one_slow_round_decides_nothing(clock: Clock) -> None:
    slow = clock(1, 1, 1, 1, 1, 50, 1)  # type: ignore[call-arg]
    assert pick_fastest([clock(1.2), slow]) == 1
    assert pick_fastest([slow, clock(1)]) == 0


@cache
def reference() -> tuple[Cvt, torch.Tensor, torch.Tensor]:
    """A network, images, and their logits by `transformers`."""
    ours, theirs = both(tiny())
    x = images(2, 3, 50, 71)
    with torch.inference_mode():
        return ours, x, theirs(x).logits


@pytest.mark.parametrize("values", list(itertools.product(*CHOICES.values())), ids="-".join)
def test_every_form_equals_transformers(
    values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, x, expected = reference()
    network = FusedCvt(ours, Form((StageForm(*values),) * 3))
    with torch.inference_mode():
        for min_queries in (1, fused.MIN_QUERIES):
            monkeypatch.setattr(fused, "MIN_QUERIES", min_queries)
            torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [{"hidden_act": "quick_gelu"}, {"depth": (1, 2, 0)}], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_the_measured_form_is_one_of_the_networks(
    changes: dict[str, Any], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever candidate wins each time."""
    timed: list[int] = []

    def stand_in(runs: list[Callable[[], object]]) -> int:
        for run in runs:
            run()
        timed.append(len(runs))
        return len(runs) - 1 if last else 0

    monkeypatch.setattr(tuning, "pick_fastest", stand_in)
    monkeypatch.setattr(tuning, "cores", lambda: 1)
    model = randomise(Cvt(tiny(**changes))).eval()
    assert isinstance(model, Cvt)
    x = images(2, 3, 64, 64)
    form = fastest(model, x)
    usual = Form.usual(3, x.device, x.dtype)
    assert len(timed) > 6 and max(timed) > 1
    assert (form.stages == usual.stages) is not last
    assert form.why_not(3, torch.float32, 1) is None
    assert Form.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    with torch.inference_mode():
        torch.testing.assert_close(FusedCvt(model, form)(x), model(x), rtol=0, atol=1e-4)


def test_no_more_is_tried_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "pick_fastest", lambda runs: pytest.fail("tried"))
    found = fastest(Cvt(tiny()).eval(), images(1, 3, 32, 32), budget=0)
    assert found == Form.usual(3, torch.device("cpu"), torch.float32)


def test_threads_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()

    def stand_in(runs: list[Callable[[], object]]) -> int:
        for run in runs:
            run()
            used.add(torch.get_num_threads())
        return len(runs) - 1

    monkeypatch.setattr(tuning, "pick_fastest", stand_in)
    monkeypatch.setattr(tuning, "cores", lambda: 3)
    torch.set_num_threads(2)
    assert fastest(Cvt(tiny()).eval(), images(1, 3, 32, 32)).threads == 3
    assert used == {1, 2, 3} and torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_measured_once_and_kept(forms: Path, measured: list[tuple[int, ...]]) -> None:
    assert chosen(Tune.AUTO) == (ODD, Origin.MEASURED)
    assert measured == [(2, 3, 64, 64)]
    assert chosen(Tune.AUTO) == (ODD, Origin.CACHE)
    assert chosen(Tune.AUTO, images=3) == (ODD, Origin.CACHE)
    assert chosen(Tune.AUTO, images=None) == (ODD, Origin.CACHE)
    assert len(measured) == 1
    assert chosen(Tune.NOW, images=1) == (ODD, Origin.MEASURED)
    assert len(measured) == 2
    # Of another kind of run nothing is known.
    for other in ({"batch_size": 3}, {"image_size": (64, 96)}, {"config": tiny(depth=(1, 2, 4))}):
        assert chosen(Tune.AUTO, **other)[1] is Origin.MEASURED
    assert chosen(Tune.AUTO, dtype=torch.bfloat16)[1] is Origin.MEASURED
    assert [path.suffix for path in forms.iterdir()] == [".json"] * 5


@pytest.mark.parametrize("changed", ["processor", "cores"])
def test_another_processor_measures_again(
    changed: str,
    forms: Path,
    measured: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen(Tune.AUTO)
    value: Any = "A Chip 9" if changed == "processor" else 64
    monkeypatch.setattr(tuning, changed, lambda: value)
    assert chosen(Tune.AUTO)[1] is Origin.MEASURED
    assert len(list(forms.iterdir())) == 2


def test_a_run_too_short_to_repay_it(forms: Path, measured: list[tuple[int, ...]]) -> None:
    usual = KIND.usual, Origin.USUAL
    for count in (0, 1, 2 * LONG_RUN - 1, None):
        assert chosen(Tune.AUTO, images=count) == usual
    chosen(Tune.NOW)
    assert chosen(Tune.NEVER) == usual
    assert len(measured) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 9999,
        lambda text: "7",
        lambda text: text.replace('"plain"', '"other"'),
        lambda text: text.replace('"threads": 1', '"threads": 4096'),
        lambda text: text.replace('"batch_size": 2', '"batch_size": 3'),
    ],
)
def test_a_corrupt_file_is_measured_again(
    damage: Callable[[str], str], forms: Path, measured: list[tuple[int, ...]]
) -> None:
    chosen(Tune.AUTO)
    (path,) = forms.iterdir()
    before = path.read_text()
    assert damage(before) != before
    path.write_text(damage(before))
    assert chosen(Tune.AUTO)[1] is Origin.MEASURED
    assert path.read_text() == before


def test_a_cache_that_can_not_be_written(forms: Path, measured: list[tuple[int, ...]]) -> None:
    forms.write_text("a file")
    with pytest.warns(Remark) as said:
        assert chosen(Tune.AUTO) == (ODD, Origin.MEASURED)
    (line,) = said
    assert "can't be kept for later runs in" in str(line.message)


def test_two_that_measure_the_same_wait_for_each_other(
    forms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    count = []

    def measure(model: Cvt, batch: torch.Tensor) -> Form:
        count.append(1)
        time.sleep(0.3)
        return ODD

    monkeypatch.setattr(tuning, "fastest", measure)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: chosen(Tune.AUTO), range(3)))
    assert {form for form, _ in found} == {ODD}
    assert sorted(origin for _, origin in found) == ["cache", "cache", "measured"]
    assert len(count) == 1


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (ODD.to_dict() | {"threads": 4096}, "4096 threads"),
        (Form(ODD.stages[:2]).to_dict(), "2 stages"),
        (ODD.to_dict() | {"linear": ["other"] * 3}, "no form of a network"),
        ({"linear": 3}, "no form of a network"),
        (ODD.to_dict() | {"linear": ["plain"]}, "no form of a network"),
    ],
)
def test_a_recorded_form_that_can_not_be(recorded: dict[str, Any], reason: str) -> None:
    with pytest.warns(UserWarning) as said:
        found = choose(KIND, lambda: Cvt(KIND.config), Request(Tune.NOW, recorded=recorded))
    assert found == (KIND.usual, Origin.USUAL)
    (line,) = said
    assert reason in str(line.message) and "last digits" in str(line.message)


def test_packed_weights_can_not_be_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Form((StageForm(linear="packed"),) * 3)
    monkeypatch.setattr("cvt_cli.model.form.has_packed_linear", lambda dtype: False)
    with pytest.warns(UserWarning, match="oneDNN packs no weights here"):
        choose(KIND, lambda: Cvt(KIND.config), Request(Tune.NEVER, recorded=packed.to_dict()))
    assert {stage.linear for stage in KIND.usual.stages} == {"plain"}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("AVX512", "products-fused-packed"),
        ("AVX2", "sdpa-apart-packed"),
        ("SVE256", "products-fused-packed"),
    ],
)
def test_the_usual_form_of_a_processor(
    capability: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvt_cli.model.form.has_packed_linear", lambda dtype: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    (form,) = set(KIND.usual.stages)
    assert f"{form.attention}-{form.activation}-{form.linear}" == expected
    assert Form.usual(3, torch.device("cuda"), torch.float32) == Form((StageForm(),) * 3)


def test_a_classifier_changes_its_form(tiny_cvt: Callable[..., Path]) -> None:
    from tests.photos import picture

    classifier = Classifier(str(tiny_cvt()), device="cpu,cpu", dtype="float32")
    usual = classifier.form
    before = classifier(picture(64, 64)).predictions
    classifier.use_form(ODD)
    assert classifier.form == ODD != usual
    assert {each.form for each in classifier.replicas} == {ODD}
    recorded = classifier.description(digest=False)["form"]
    assert isinstance(recorded, dict) and Form.from_dict(recorded) == ODD
    after = classifier(picture(64, 64)).predictions
    assert [each.label for each in after] == [each.label for each in before]
    assert [each.score for each in after] == pytest.approx([e.score for e in before], abs=1e-5)
    assert Classifier(str(tiny_cvt()), device="cpu", form=ODD).form == ODD


class Few:
    """Stands in for a classifier, of which only the batch may be asked."""

    batch_size = 4


@pytest.mark.parametrize(("tune", "images"), [("auto", 1), ("auto", 4), ("never", 10**6)], ids=str)
def test_one_batch_pays_nothing(tune: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "settle", lambda *_: pytest.fail("settled"))
    asked: list[int] = []

    def count(most: int) -> int:
        asked.append(most)
        return min(most, images)

    Compute(tune=TuneChoice(tune)).settle(Few(), count)  # type: ignore[arg-type]
    assert asked == ([5] if tune == "auto" else [])


def test_what_was_measured_is_said(
    tiny_cvt: Callable[..., Path],
    forms: Path,
    measured: list[tuple[int, ...]],
) -> None:
    for expected in (1, 0):
        classifier = Classifier(str(tiny_cvt()), device="cpu", dtype="float32", batch_size=2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            Compute(batch_size=2).settle(classifier, lambda most: most)
        assert classifier.form == ODD
        assert [each.category for each in said] == [Remark] * expected
        assert all("fastest form of the network here, measured in" in str(w.message) for w in said)
    assert "attention sdpa, activation apart, linear plain, convolution channels_first, 1" in str(
        ODD
    )


def test_a_gpu_has_nothing_to_tune() -> None:
    class OnGpu:
        device = torch.device("cuda")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.settle(OnGpu(), Request(Tune.AUTO)) is Origin.USUAL  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="nothing to tune on cuda"):
        tuning.settle(OnGpu(), Request(Tune.NOW))  # type: ignore[arg-type]
