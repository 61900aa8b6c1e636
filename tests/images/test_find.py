"""What was typed becomes a stream of sources."""

import errno
import io
import ntpath
import nturl2path
import os
import socket
import subprocess
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvt_cli.errors import ImageError, UsageError
from cvt_cli.images.find import check_inputs, count_sources, find
from cvt_cli.images.formats import FORMATS, RAW_SUFFIXES
from cvt_cli.images.remaining import remaining
from cvt_cli.images.source import IMAGE_SUFFIXES, Filter, Search, Source, one_line
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


def paths(*inputs: str, **search: Any) -> list[str]:
    return [source.path for source in find(inputs, Search(**search))]


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


def test_every_suffix_is_one_that_pillow_or_an_extra_reads() -> None:
    from PIL import Image

    Image.init()
    # Names that others give to what Pillow reads.
    others = {".pjpeg", ".pjp", ".jps", ".insp", ".fts"}
    extras = {*RAW_SUFFIXES, *(name for each in FORMATS if each.extra for name in each.suffixes)}
    assert set(IMAGE_SUFFIXES) <= {*Image.EXTENSION, *others, *extras}


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".jxl"])
def test_images_that_pillow_does_not_read_are_not_skipped(suffix: str, folder: Path) -> None:
    touch(folder, f"p/x{suffix}")
    assert paths("p") == [f"p/x{suffix}"]


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
        ("a\0b.jpg", "not a possible file name"),
        ("a\ud800b.jpg", "not a possible file name"),
        ("", "an empty name, as of an unset variable"),
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


def test_paths_come_once(folder: Path) -> None:
    touch(folder, "p/a.jpg", "p/b.jpg")
    with pytest.warns(UserWarning, match="^5 inputs are the same as an earlier one"):
        found = paths("p/b.jpg", "p", "./p//a.jpg", "p/*.jpg", "-", "-")
    assert found == ["p/b.jpg", "p/a.jpg", "-"]
    with pytest.warns(UserWarning, match="^1 input is the same"):
        assert paths("{1..2}.jpg", "1.jpg") == ["1.jpg", "2.jpg"]
    # Twice in one folder is not the same path twice.
    (folder / "p/c.jpg").symlink_to(folder / "p/a.jpg")
    assert paths("p") == ["p/a.jpg", "p/b.jpg", "p/c.jpg"]


@pytest.mark.parametrize("typed", [["p"], ["p/**/**/*.jpg"], ["p/a.jpg", "p/q"]])
def test_nothing_is_said_where_nobody_named_it_twice(
    typed: list[str], folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    touch(folder, "p/a.jpg", "p/q/b.jpg")
    assert paths(*typed) == ["p/a.jpg", "p/q/b.jpg"]
    count_sources(["p", "p"])  # nor by whom counts
    assert not recwarn.list


def test_links_to_folders_are_followed_but_not_in_circles(folder: Path) -> None:
    touch(folder, "p/x.jpg", "q/y.jpg")
    (folder / "p/q").symlink_to(folder / "q", target_is_directory=True)
    (folder / "p/here").symlink_to(folder / "p", target_is_directory=True)
    (folder / "q/up").symlink_to(folder, target_is_directory=True)
    assert paths("p") == ["p/q/y.jpg", "p/x.jpg"]
    assert paths("**/*.jpg") == ["p/x.jpg", "p/q/y.jpg", "q/y.jpg"]


def test_folders_deeper_than_calls_can_be(folder: Path) -> None:
    deep = "d/" * 1200
    inside = os.open(".", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=inside)
        outside, inside = inside, os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(outside)
    os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
    os.close(inside)
    try:
        assert paths("d") == paths("**/*.jpg") == [f"{deep}x.jpg"]
    finally:
        # Deeper than pytest can clean up, too.
        subprocess.run(["rm", "-r", "d"], check=True)


def test_archives_in_a_folder_are_told_of(folder: Path) -> None:
    touch(folder, "p/x.jpg", "p/q/shard-0.TAR", "p/labels.parquet", "p/.hidden.zip")
    said = r"^p contains archives, .* name them, like p/q/shard-0.TAR$"
    with pytest.warns(UserWarning, match=said):
        assert paths("p") == ["p/x.jpg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paths("p", exclude=("*.tar", "*.TAR", "*.parquet")) == ["p/x.jpg"]
        assert count_sources(["p"]) == 1  # said once


def test_who_counts_looks_no_further_than_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(folder, *(f"p/{each}.jpg" for each in range(50)))
    asked: list[str] = []
    wants_file = Filter.wants_file
    monkeypatch.setattr(
        Filter, "wants_file", lambda *given: asked.append(given[1]) or wants_file(*given)
    )
    assert count_sources(["p"], most=3) == 3
    assert len(asked) <= 4
    assert count_sources(["p"]) == 50


def test_not_recursive(folder: Path) -> None:
    touch(folder, "p/x.jpg", "p/q/y.jpg")
    assert paths("p", "p/q", recursive=False) == ["p/x.jpg", "p/q/y.jpg"]


def test_include_and_exclude(folder: Path) -> None:
    touch(folder, "p/cat.jpg", "p/cat.txt", "p/dog.png", "p/raw/cat.dat", "p/raw/dog.dat")
    assert paths("p", include=("cat*",)) == ["p/cat.jpg"]
    assert paths("p", include=("*.dat",)) == ["p/raw/cat.dat", "p/raw/dog.dat"]
    assert paths("p", include=("raw/c*.dat", "dog.*")) == [
        *("p/dog.png", "p/raw/cat.dat", "p/raw/dog.dat"),
    ]
    assert paths("p", exclude=("c*", "raw")) == ["p/dog.png"]
    assert paths("p", include=("*.dat",), exclude=("raw/dog*",)) == ["p/raw/cat.dat"]
    assert why(next(find(["p"], Search(include=("*.webp",))))) == (
        "a folder without images that match --include"
    )
    # What is named outright is meant.
    assert paths("p/cat.txt", "p/raw", include=("*.jpg",), exclude=("*",)) == ["p/cat.txt", "p/raw"]


def test_names_as_windows_compares_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "normcase", ntpath.normcase)
    touch(folder, "p/Cat.JPG", "p/Raw/Dog.jpg", "p/x.png")
    assert paths("p/*.jpg") == ["p/Cat.JPG"]
    assert paths("P*/RAW*/*") == ["p/Raw/Dog.jpg"]
    assert paths("p", include=(r"raw\*.JPG", "c*")) == ["p/Cat.JPG", "p/Raw/Dog.jpg"]
    assert paths("p", exclude=("RAW", "*.Png")) == ["p/Cat.JPG"]
    with pytest.warns(UserWarning, match="1 input is the same as an earlier one"):
        assert paths("p/x.png", "P/X.PNG") == ["p/x.png"]


def test_what_windows_marks_as_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like its bin, in which are the photographs that were deleted."""
    touch(folder, "p/a.jpg", "p/b.jpg", "p/$RECYCLE.BIN/c.jpg", "p/q/d.jpg")
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_dir = entry.name, entry.path, entry.is_dir

        def stat(self, follow_symlinks: bool) -> SimpleNamespace:
            hidden = self.name in ("$RECYCLE.BIN", "b.jpg")
            return SimpleNamespace(st_file_attributes=2 if hidden else 32)

    @contextmanager
    def marked(path: str) -> Iterator[Iterator[Entry]]:
        with scandir(path) as entries:
            yield map(Entry, entries)

    monkeypatch.setattr(os, "scandir", marked)
    monkeypatch.setattr("cvt_cli.images.names.MARKS_HIDDEN", True)
    for typed in ("p", "p/**", "p/**/*.jpg"):
        assert paths(typed) == ["p/a.jpg", "p/q/d.jpg"]
    assert paths("p/*.jpg") == ["p/a.jpg"]
    assert paths("p/b.jpg", "p/$RECYCLE.BIN") == ["p/b.jpg", "p/$RECYCLE.BIN/c.jpg"]


def test_folders_without_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network drives: no folder is taken for the one that it lies in."""
    touch(folder, "p/a.jpg", "p/q/b.jpg", "p/q/r/c.jpg")
    stat = os.stat

    def unnumbered(*arguments: Any, **options: Any) -> os.stat_result:
        mode, _, *rest = stat(*arguments, **options)
        return os.stat_result((mode, 0, *rest))

    monkeypatch.setattr(os, "stat", unnumbered)
    for typed in ("p", "p/**"):
        assert paths(typed) == ["p/a.jpg", "p/q/b.jpg", "p/q/r/c.jpg"]


def test_patterns(folder: Path) -> None:
    touch(folder, "p/b.png", "p/a.png", "p/a.txt", "p/.h.png", "p/q/c.png", "p/.q/d.png", "p/q/e")
    assert paths("p/*.png") == ["p/a.png", "p/b.png"]
    assert paths("p/**/*.png") == ["p/a.png", "p/b.png", "p/q/c.png"]
    assert paths("**/*.png") == paths("p/**/*.png")
    assert paths("**/**/*.png") == paths("p/**/*.png")
    assert paths("p/[ab].*") == ["p/a.png", "p/a.txt", "p/b.png"]
    assert paths("p/.*.png") == ["p/.h.png"]
    assert paths("p/q/?") == ["p/q/e"]
    assert paths("*/q") == ["p/q/c.png"]
    assert paths(f"{folder}/p/*.txt") == [f"{folder}/p/a.txt"]
    assert paths("p/**") == ["p/a.png", "p/a.txt", "p/b.png", "p/q/c.png", "p/q/e"]


@pytest.mark.parametrize("pattern", ["*.webp", "p/*.webp", "none/**/*.png", "[", "{1..3}*.jpg"])
def test_a_pattern_without_a_match(pattern: str, folder: Path) -> None:
    touch(folder, "p/b.png")
    for source in find([pattern]):
        assert why(source) == "nothing matches this pattern"
    assert paths(pattern) == (
        [pattern] if "{" not in pattern else [f"{number}*.jpg" for number in (1, 2, 3)]
    )


def test_a_file_of_that_very_name_comes_first(folder: Path) -> None:
    names = ["a[1].jpg", "*.png", "{1..2}.jpg"]
    touch(folder, *names, "a1.jpg", "x.png", "1.jpg", "2.jpg")
    assert paths(*names) == names


def test_ranges(folder: Path) -> None:
    assert paths("{8..11}.jpg") == ["8.jpg", "9.jpg", "10.jpg", "11.jpg"]
    assert paths("{008..10}.jpg") == ["008.jpg", "009.jpg", "010.jpg"]
    assert paths("{2..0}{0..1}") == ["20", "21", "10", "11", "00", "01"]
    assert paths("{-1..1}.jpg") == ["-1.jpg", "0.jpg", "1.jpg"]
    assert paths("{-01..1}.jpg") == ["-01.jpg", "000.jpg", "001.jpg"]
    assert paths("{a..c}.jpg", "{1..}.jpg") == ["{a..c}.jpg", "{1..}.jpg"]
    assert next(find(["{0..999999999999999999}.jpg"])).path == "0.jpg"
    touch(folder, "s1/a.jpg", "s2/b.jpg")
    assert paths("s{1..2}") == paths("s{1..2}/*.jpg") == ["s1/a.jpg", "s2/b.jpg"]


@pytest.mark.parametrize(
    ("content", "null"),
    [
        (b"a.jpg\nb c.jpg\n\np\n", False),
        (b"a.jpg\r\nb c.jpg\r\np", False),
        (b"\xef\xbb\xbfa.jpg\nb c.jpg\np\n\n", False),
        (b"a.jpg\0b c.jpg\0p\0", True),
        (b"a.jpg\0b c.jpg\0\0p", True),
    ],
)
def test_a_list_of_names(content: bytes, null: bool, folder: Path) -> None:
    touch(folder, "p/d.jpg")
    (folder / "list").write_bytes(content)
    check_inputs([], Search(files_from="list", null=null))
    found = paths(files_from="list", null=null)
    assert found == ["a.jpg", "b c.jpg", "p/d.jpg"]
    assert count_sources([], Search(files_from="list", null=null)) == 3
    assert paths("z.jpg", files_from="list", null=null)[:3] == ["z.jpg", *found[:2]]


def test_names_in_a_list_that_no_file_can_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows: bytes that are no UTF-8, of an old program. The others are not lost."""
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("utf-8", "surrogatepass"))
    (folder / "list").write_bytes(b"a.jpg\ncaf\xe9.jpg\nb.jpg\n")
    check_inputs([], Search(files_from="list"))
    assert paths(files_from="list") == ["a.jpg", "caf\udce9.jpg", "b.jpg"]
    with pytest.raises(UsageError, match="has lines but no NUL byte"):
        check_inputs([], Search(files_from="list", null=True))


def test_names_in_a_list_are_meant_literally(folder: Path) -> None:
    names = ["*.jpg", "{1..3}.jpg", "a\nb.jpg", os.fsdecode(b"caf\xe9.jpg"), " x.jpg ", "x.jpg\r"]
    touch(folder, "there.jpg")
    (folder / "list").write_bytes(b"".join(os.fsencode(name) + b"\0" for name in names))
    assert paths(files_from="list", null=True) == names
    # Only the first of a list of lines may have a mark before it.
    (folder / "list").write_text("a.jpg\n\ufeffy.jpg\n", "utf-8")
    assert paths(files_from="list") == ["a.jpg", "\ufeffy.jpg"]


def test_one_input_that_repeats_is_there_once(folder: Path) -> None:
    touch(folder, "p/x.jpg", "p/0.jpg", "p/1.jpg")
    (folder / "list").write_text("p/x.jpg\np/1.jpg\n")
    with pytest.warns(UserWarning):
        assert paths("p", files_from="list") == ["p/0.jpg", "p/1.jpg", "p/x.jpg"]
    with pytest.warns(UserWarning):
        assert paths("p/[x{0..1}].jpg") == ["p/0.jpg", "p/x.jpg", "p/1.jpg"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can't be read")
def test_a_list_that_breaks_off(folder: Path) -> None:
    (source,) = find([], Search(files_from="/proc/self/mem"))
    assert why(source) == "the list of names: input/output error"


def test_a_file_that_becomes_a_pipe_is_not_waited_for(folder: Path) -> None:
    touch(folder, "x.jpg")
    (source,) = find(["x.jpg"])
    with source.open() as file:
        assert not os.get_blocking(file.fileno())


def test_errors_are_one_line_that_steers_no_terminal() -> None:
    assert one_line(ValueError("a\x1b[2J\n  b\t")) == r"a\x1b[2J b"
    assert one_line(ValueError()) == "ValueError"


def test_a_list_on_standard_input_is_read_as_it_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.pipe()
    with open(ours, "rb") as stdin, open(theirs, "wb", buffering=0) as writer:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        search = Search(files_from="-")
        assert count_sources([], search) is None
        writer.write(b"a.jpg\nb.j")
        stream = find([], search)
        assert next(stream).path == "a.jpg"
        writer.write(b"pg\n-\n")
        assert next(stream).path == "b.jpg"
        assert why(next(stream)) == "standard input is the list of names"
        writer.close()
        assert list(stream) == []


def test_lists_that_are_none(folder: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        check_inputs([], Search(files_from="none"))
    with pytest.raises(UsageError, match="folder"):
        check_inputs([], Search(files_from="."))
    with pytest.raises(UsageError, match="both"):
        check_inputs(["-"], Search(files_from="-"))
    with pytest.raises(UsageError, match="no image"):
        check_inputs([], Search())
    check_inputs([], Search(files_from="-"))
    with pytest.raises(UsageError, match="--null is for --files-from"):
        check_inputs(["a.jpg"], Search(null=True))
    (folder / "list").write_bytes(b"a.jpg\n" + b"x" * (3 * 2**20))
    first, second = find([], Search(files_from="list"))
    assert (first.path, second.path) == ("a.jpg", "list")
    assert "is this a list" in why(second)
    for nothing in (b"", b"\n\r\n"):
        (folder / "list").write_bytes(nothing)
        check_inputs([], Search(files_from="list"))
        with pytest.warns(UserWarning, match="list: the list names no file"):
            assert paths(files_from="list") == []


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize(
    ("content", "null", "reason"),
    [
        (b"a.jpg\0b.jpg\0", False, "--null is for names that end with NUL"),
        (b"a.jpg\0b\nc.jpg\0", False, "has NUL bytes"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 500, False, "without --files-from"),
        (b"a.jpg\nb.jpg\n", True, "has lines but no NUL byte"),
        (b"a.jpg\n", True, "has lines but no NUL byte"),
        (b"a.jpg\n" * 200_000, True, "has lines but no NUL byte"),
        ("a.jpg\r\nb.jpg\r\n".encode("utf-16"), False, "is UTF-16; save it as UTF-8"),
        ("a.jpg\nb.jpg\n".encode("utf-16"), True, "is UTF-16; save it as UTF-8"),
        ("a.jpg\nb.jpg\n".encode("utf-16-be"), False, "has NUL bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_lists_of_another_kind(
    content: bytes,
    null: bool,
    reason: str,
    piped: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "list").write_bytes(content)
    search = Search(files_from="list", null=null)
    if piped:

        class Stdin:
            buffer = io.BytesIO(content)

        monkeypatch.setattr("sys.stdin", Stdin)
        search = Search(files_from="-", null=null)
        check_inputs([], search)
    else:
        with pytest.raises(UsageError, match=reason):
            check_inputs([], search)
    (source,) = find([], search)
    assert reason in why(source)


def test_a_damaged_name_in_a_list_is_one_record(folder: Path) -> None:
    """Where the list is one: what comes after it is not lost."""
    names = [f"{number}.jpg" for number in range(20_000)]
    names[15_000] = "a\0b.jpg"
    (folder / "list").write_text("\n".join(names))
    check_inputs([], Search(files_from="list"))
    assert paths(files_from="list") == names


def test_one_name_with_a_line_break_in_it(folder: Path) -> None:
    touch(folder, "a\nb.jpg")
    (folder / "list").write_text("a\nb.jpg")
    check_inputs([], Search(files_from="list", null=True))
    assert paths(files_from="list", null=True) == ["a\nb.jpg"]


def test_names_of_any_length(folder: Path) -> None:
    names = ["x" * 100_000, "y/" * 50_000, "?" * 100_000]
    (folder / "list").write_text("\n".join(names))
    sources = list(find([], Search(files_from="list")))
    assert [source.path for source in sources] == names
    assert {why(source) for source in sources} == {"file name too long"}
    (folder / "list").unlink()
    assert [source.path for source in find(names)] == names


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    os.mkfifo("fifo.zip")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for source in find(["socket.jpg", "/dev/zero", "/dev/tty", "fifo.zip"]):
            assert why(source) == "not a regular file"


def test_open_files_of_the_shell(folder: Path) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"an image")
    os.close(theirs)
    (source,) = find([f"/dev/fd/{ours}"], Search(max_bytes=8))
    assert source.open().read() == b"an image"
    os.close(ours)
    assert "no such file" in why(source)


def test_standard_input_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b"x" * 101)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert why(next(find(["/dev/stdin"], Search(max_bytes=100)))).startswith("more than the limit")
    monkeypatch.setattr("sys.stdin", None)
    assert why(next(find(["-"]))) == "standard input is closed"


@pytest.mark.parametrize("typed", ["p", "p/**/*.jpg", "p/**/?.jpg", "p/**"])
def test_a_folder_that_can_not_be_listed(
    typed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(folder, "p/a.jpg", "p/q/b.jpg", "p/z.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path == "p/q":  # a mode would not keep root out
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {source.path: source for source in find([typed])}
    assert sorted(found) == ["p/a.jpg", "p/q", "p/z.jpg"]
    assert why(found["p/q"]) == "permission denied"
    # Only what the pattern would have searched.
    assert paths("p/*.jpg") == paths("p/[!q]*") == ["p/a.jpg", "p/z.jpg"]
    assert paths("p/q/*.jpg") == paths("*/*/*.jpg") == ["p/q"]


def test_local_addresses(folder: Path) -> None:
    touch(folder, "a b.jpg", "p/c.jpg")
    url = f"file://{folder}/a%20b.jpg"
    (source,) = find([url])
    assert (source.path, source.open().read()) == (url, b"a b.jpg")
    assert paths(f"file://localhost{folder}/p") == [f"{folder}/p/c.jpg"]


def test_local_addresses_of_windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.url2pathname", nturl2path.url2pathname)
    (folder / r"C:\photos\a b.jpg").write_bytes(b"a b")
    (source,) = find(["file:///C:/photos/a%20b.jpg"])
    assert source.open().read() == b"a b"


def test_counting(folder: Path) -> None:
    touch(folder, "p/a.jpg", "p/q/b.jpg", "c.jpg")
    assert count_sources(["p", "c.jpg", "p", "none.jpg", "-", "https://example.org/x.jpg"]) == 6
    assert count_sources(["p"], Search(recursive=False)) == 1


def test_a_folder_is_searched_without_a_memory(folder: Path) -> None:
    (folder / "p").mkdir()
    peaks = []
    for start, end in ((0, 10), (10, 3000)):
        for number in range(start, end):
            (folder / f"p/{number:050}").mkdir()
            (folder / f"p/{number:050}/x.jpg").touch()
        tracemalloc.start()
        assert sum(1 for _ in find(["p"])) == end
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The names in one folder are held, to sort them; nothing else is.
    assert peaks[1] - peaks[0] < 3000 * 300


def test_what_remains(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    typed = [f"{number}.jpg" for number in range(8)]
    stream, again = remaining(lambda: find(typed), typed[:5], 2)
    assert ([source.path for source in stream], again) == (typed[4:], 1)
    assert not recwarn.list
    # Standard input can be read but once, also where it is not what it was.
    searches = [find(typed)]
    with pytest.warns(UserWarning, match="changed"):
        stream, again = remaining(searches.pop, ["0.jpg", "gone.jpg", "3.jpg"], 2)
    assert ([source.path for source in stream], again) == (
        [path for path in typed if path not in ("0.jpg", "3.jpg")],
        0,
    )
