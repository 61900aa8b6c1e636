"""Transparent pictures on a colour, and JPEGs whose end is missing."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvt_cli.errors import ImageError, UsageError
from cvt_cli.images.background import Colour, parse_colour
from cvt_cli.images.decode import decode, to_rgb
from cvt_cli.images.source import in_words
from cvt_cli.images.truncated import is_incomplete
from tests.photos import picture

GREY = Colour((128, 130, 132))


def half_hidden() -> Image.Image:
    image = picture().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 48, 64))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa"])
def test_what_is_hidden_is_the_colour(mode: str) -> None:
    image = half_hidden()
    if mode == "P":
        image = picture().quantize(8)
        image.paste(0, (0, 0, 48, 64))
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    found = np.asarray(to_rgb(image, background=GREY))
    assert found.shape == (64, 96, 3)
    assert (found[:, :48] == GREY).all()
    if mode != "P":
        np.testing.assert_array_equal(found[:, 48:], np.asarray(image.convert("RGB"))[:, 48:])
    assert not (np.asarray(to_rgb(image))[:, :48] == GREY).all()  # as Transformers has it


def test_of_a_png_and_of_what_hides_nothing() -> None:
    file = io.BytesIO()
    half_hidden().save(file, "PNG")
    assert (np.asarray(decode(file, background=GREY))[:, :48] == GREY).all()
    np.testing.assert_array_equal(
        np.asarray(decode(file)), np.asarray(half_hidden().convert("RGB"))
    )
    image = picture()
    assert to_rgb(image, background=GREY) is image


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("white", (255,) * 3),
        ("#808284", GREY),
        ("#fff", (255,) * 3),
        ("rgb(1,2,3)", (1, 2, 3)),
    ],
)
def test_colours(text: str, colour: tuple[int, ...]) -> None:
    assert parse_colour(text) == colour


@pytest.mark.parametrize("text", ["", "whit", "#12", "#11223344", "5"])
def test_no_colours(text: str) -> None:
    with pytest.raises(UsageError, match="not an opaque colour"):
        parse_colour(text)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.4, 0.7, None])
def test_truncated_jpegs(options: dict[str, bool], share: float | None) -> None:
    file = io.BytesIO()
    picture(300, 200).save(file, "JPEG", quality=90, **options)
    whole = np.asarray(decode(file)).astype(int)
    data = file.getvalue()
    cut = io.BytesIO(data[: int(len(data) * share)] if share else data[:-2])
    with pytest.raises(ImageError) as caught:
        decode(cut)
    assert in_words(caught.value) == (
        "a truncated JPEG; --truncated accept takes what there is of it"
    )
    for reduce_to in (None, 50):
        found = decode(cut, accept_truncated=True, reduce_to=reduce_to)
        assert is_incomplete(found)
    found_ = np.asarray(decode(cut, accept_truncated=True)).astype(int)
    rows = int(200 * (share or 1) * 0.5)
    assert np.abs(found_[:rows] - whole[:rows]).mean() < (1 if not options else 40)
    assert not is_incomplete(decode(file, accept_truncated=True))


def test_the_command(run_cvt: Any, tiny_cvt: Callable[..., Path], tmp_path: Path) -> None:
    """Labels follow the background; a run that was cut is not resumed with another."""
    half_hidden().save(tmp_path / "a.png")
    half_hidden().convert("RGB").save(tmp_path / "b.png")
    laid = Image.new("RGB", (96, 64), "white")
    laid.paste(half_hidden(), mask=half_hidden().getchannel("A"))
    laid.save(tmp_path / "c.png")
    picture(300, 200).save(tmp_path / "d.jpg")
    data = (tmp_path / "d.jpg").read_bytes()
    (tmp_path / "d.jpg").write_bytes(data[: len(data) // 2])
    model = ("-m", tiny_cvt(), "-f", "jsonl", "--columns", "truncated")
    files = ("a.png", "b.png", "c.png", "d.jpg")
    plain = run_cvt("classify", *files, *model, expect=1).jsonl()
    white = run_cvt(
        *("classify", *files, *model, "--background", "white", "--truncated", "accept"),
        *("--run-record", "run.json"),
        expect=0,
    ).jsonl()
    labels = [each["predictions"] for each in plain]
    assert labels[0] == labels[1] != labels[2]
    assert [each["predictions"] for each in white[:3]] == [labels[2], labels[1], labels[2]]
    assert [each["truncated"] for each in white] == [0, 0, 0, 1]
    assert plain[3]["error"].startswith("a truncated JPEG")
    record = (tmp_path / "run.json").read_text()
    assert '"background": "#ffffff"' in record
    assert '"truncated": "accept"' in record
    refused = run_cvt("classify", *files, *model, "--background", "nothing", expect=2)
    assert "not an opaque colour" in refused.stderr


def test_other_commands_take_them(
    run_cvt: Any, tiny_cvt: Callable[..., Path], tmp_path: Path
) -> None:
    for name, seed in (("cat", 1), ("dog", 2)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            picture(300, 200, seed=seed).save(tmp_path / f"data/{name}/{index}.jpg")
        data = (tmp_path / f"data/{name}/2.jpg").read_bytes()
        (tmp_path / f"data/{name}/2.jpg").write_bytes(data[: len(data) // 2])
    how = ("--truncated", "accept", "--background", "white")
    train = ("train", "data", "-o", "m", "--arch", "cvt-tiny", "--image-size", "32")
    once = ("--epochs", "1", "-b", "4", "--val-fraction", "0", "--dtype", "float32")
    assert "truncated" in run_cvt(*train, *once, "-o", "n", expect=0).stderr
    assert "truncated" not in run_cvt(*train, *once, *how, expect=0).stderr
    refused = run_cvt("evaluate", "data", "-m", "m", "-f", "json", expect=1)
    assert "2 of 6" in refused.stderr
    assert run_cvt("evaluate", "data", "-m", "m", "-f", "json", *how, expect=0).json()
    cut = "data/cat/2.jpg"
    explain = ("explain", cut, "-m", "m", "-f", "json", "--method", "attention")
    assert "truncated" in run_cvt(*explain, expect=1).stderr
    assert run_cvt(*explain, *how, expect=0).json()["path"] == cut
