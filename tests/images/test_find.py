"""What was typed becomes a stream of sources."""

import io
import os
from pathlib import Path

import pytest

from cvt_cli.errors import ImageError
from cvt_cli.images.find import IMAGE_SUFFIXES, Source, find
from tests.photos import picture


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which names can be typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def paths(*inputs: str) -> list[str]:
    return [source.path for source in find(inputs)]


def why(source: Source) -> str:
    with pytest.raises(ImageError) as caught:
        source.open()
    return str(caught.value)


def test_files_come_as_they_were_typed(folder: Path) -> None:
    touch(folder, "b.jpg", "a.txt", "sub/c.png")
    typed = ["./b.jpg", "a.txt", "sub/../sub/c.png", str(folder / "b.jpg")]
    assert paths(*typed) == typed
    assert [source.open().read() for source in find(typed)][:2] == [b"b.jpg", b"a.txt"]


def test_folders_are_walked_in_order(folder: Path) -> None:
    touch(
        folder, "p/10.jpg", "p/2.jpg", "p/B.jpg", "p/a.jpg", "p/a/z.jpg", "p/a/b/y.png", "p/b.jpg"
    )
    assert paths("p") == [
        *("p/10.jpg", "p/2.jpg", "p/B.jpg", "p/a/b/y.png", "p/a/z.jpg", "p/a.jpg", "p/b.jpg")
    ]
    assert paths("p/") == paths("p")
    assert paths("p/b.jpg", "p/a") == ["p/b.jpg", "p/a/b/y.png", "p/a/z.jpg"]
    assert paths("./p/a/b") == ["./p/a/b/y.png"]


def test_hidden_files_and_other_suffixes_are_left_out_of_folders_only(folder: Path) -> None:
    touch(folder, "p/.hidden.jpg", "p/.git/x.jpg", "p/notes.txt", "p/noend", "p/x.JPG", "p/y.Tiff")
    assert paths("p") == ["p/x.JPG", "p/y.Tiff"]
    typed = ["p/.hidden.jpg", "p/notes.txt"]
    assert paths(*typed) == typed
    assert paths("p/.git") == ["p/.git/x.jpg"]


def test_a_folder_with_the_suffix_of_an_image_is_a_folder(folder: Path) -> None:
    touch(folder, "p/holiday.jpg/x.png")
    assert paths("p") == ["p/holiday.jpg/x.png"]


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_one_that_pillow_reads(suffix: str) -> None:
    from PIL import Image

    Image.init()
    assert suffix in Image.EXTENSION


def test_links(folder: Path) -> None:
    touch(folder, "p/x.jpg", "q/y.jpg")
    (folder / "p/link.jpg").symlink_to(folder / "q/y.jpg")
    (folder / "p/dangling.jpg").symlink_to(folder / "nowhere")
    (folder / "p/loop").symlink_to(folder / "p", target_is_directory=True)
    (folder / "p/loop.jpg").symlink_to(folder / "p", target_is_directory=True)
    assert paths("p") == ["p/dangling.jpg", "p/link.jpg", "p/x.jpg"]
    sources = {source.path: source for source in find(["p"])}
    assert why(sources["p/dangling.jpg"]) == "a dangling link"
    assert sources["p/link.jpg"].open().read() == b"q/y.jpg"
    # A link to a folder that is typed is meant.
    assert paths("p/loop") == ["p/loop/dangling.jpg", "p/loop/link.jpg", "p/loop/x.jpg"]


def test_a_link_that_leads_to_itself(folder: Path) -> None:
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (source,) = find(["self.jpg"])
    assert "link" in why(source)


@pytest.mark.parametrize("inside", [[], ["notes.txt"], [".hidden.jpg"], ["sub/notes.txt"]])
def test_a_folder_without_images(inside: list[str], folder: Path) -> None:
    (folder / "p").mkdir()
    touch(folder / "p", *inside)
    (source,) = find(["p"])
    assert source.path == "p"
    assert why(source) == "a folder without images"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "no such file"),
        ("missing/a.jpg", "no such file"),
        ("file/a.jpg", "not a directory"),
        ("fifo.jpg", "not a regular file"),
        ("x" * 300, "file name too long"),
        ("a\0b.jpg", "embedded null byte"),
        ("", "no such file"),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_what_can_not_be_opened(name: str, reason: str, folder: Path) -> None:
    touch(folder, "file")
    os.mkfifo(folder / "fifo.jpg")
    (source,) = find([name])
    assert source.path == name
    assert why(source) == reason


def test_a_fifo_in_a_folder_does_not_hang(folder: Path) -> None:
    (folder / "p").mkdir()
    os.mkfifo(folder / "p/x.jpg")
    (source,) = find(["p"])
    assert why(source) == "not a regular file"


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = os.fsdecode(b"p/caf\xe9\n.jpg")
    touch(folder, "p/z.jpg")
    Path(name).write_bytes(b"here")
    assert paths("p") == [name, "p/z.jpg"]
    assert next(find([name])).open().read() == b"here"


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(picture().tobytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    (source,) = find(["-"])
    assert source.path == "-"
    assert source.open().read() == picture().tobytes()


def test_the_search_is_lazy(folder: Path) -> None:
    touch(folder, *(f"p/{i}.jpg" for i in range(5)))
    stream = find(["missing.jpg", "p", "q"])
    assert next(stream).path == "missing.jpg"
    touch(folder, "q/late.jpg")
    assert [source.path for source in stream][-1] == "q/late.jpg"
