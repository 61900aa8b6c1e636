"""`cvt tag`: keywords that photo programs read, and nothing else changed."""

import csv
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import exiv2
import numpy as np
import pytest
import rawpy
from PIL import Image

from cvt_cli.records import Prediction, Record
from cvt_cli.tagging.embedding import tag_picture
from cvt_cli.tagging.keywords import Choice, Keyword, group_finder
from cvt_cli.tagging.process import PictureWriter, Unwritable
from cvt_cli.tagging.sidecar import tag_sidecar
from cvt_cli.tagging.tagger import Tagger, TagStatus
from cvt_cli.tagging.xmp import Packet, TagError
from tests.cli.test_failures import check_line
from tests.conftest import RunCvt
from tests.photos import picture
from tests.raws import dng

exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)

EMBEDDED = ("jpg", "tif", "png", "jp2", "webp", "psd", "dng")
BESIDE = ("avif", "gif", "bmp")
TABBY = (Keyword(("tabby",), "tabby, tabby cat", 0.9),)
EXIF_MAKE = 271

# As darktable writes it, shortened.
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="3"
   xmpMM:DerivedFrom="IMG_1.CR2"
   darktable:xmp_version="5"
   darktable:history_end="2">
   <dc:subject>
    <rdf:Seq>
     <rdf:li>holiday</rdf:li>
    </rdf:Seq>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Seq>
     <rdf:li>when|holiday</rdf:li>
    </rdf:Seq>
   </lr:hierarchicalSubject>
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:num="0" darktable:operation="exposure" darktable:params="gz02eJxj&#10;a="/>
     <rdf:li darktable:num="1" darktable:operation="flip" darktable:params="ffffffff"/>
    </rdf:Seq>
   </darktable:history>
   <!-- a comment -->
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


def make_psd(path: Path) -> None:
    pixels = np.asarray(picture(24, 16))
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 16, 24, 8, 3)
    planes = np.moveaxis(pixels, 2, 0).tobytes()
    path.write_bytes(header + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + planes)


def make(path: Path) -> Path:
    """A picture of the format that its suffix names, with a maker in its EXIF where that goes."""
    kind = path.suffix[1:]
    if kind == "psd":
        make_psd(path)
    elif kind == "dng":
        path.write_bytes(dng(picture(96, 64)))
    else:
        exif = Image.Exif()
        exif[EXIF_MAKE] = "Maker"
        has_exif = kind in ("jpg", "tif", "png", "webp")
        picture(24, 16).save(path, **({"exif": exif} if has_exif else {}))
    return path


def pixels(path: Path) -> bytes:
    """What the picture's data is, without its metadata."""
    if path.suffix == ".dng":
        with rawpy.imread(str(path)) as raw:
            return bytes(raw.raw_image.tobytes())
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def scans(path: Path) -> bytes:
    """A JPEG without its metadata: all from its tables on but the APPn segments."""
    data, at, kept = path.read_bytes(), 2, b""
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if 0xE0 <= data[at + 1] <= 0xEF else data[at:end]
        at = end
    return kept + data[at:]


def metadata(path: Path) -> dict[str, list[str]]:
    """What exiv2 reads: XMP's, IPTC's and EXIF's values by their keys."""
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    found: dict[str, list[str]] = {}
    for data in (image.xmpData(), image.iptcData(), image.exifData()):
        for datum in data:
            found.setdefault(datum.key(), []).append(datum.toString())
    return found


def put(path: Path, values: dict[str, str]) -> None:
    """Have exiv2 write XMP into a picture."""
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    for key, value in values.items():
        image.xmpData()[key] = value
    image.writeMetadata()


def listed(text: str) -> list[str]:
    return text.split(", ") if text else []


def keywords(path: Path, key: str = "Xmp.dc.subject") -> list[str]:
    return listed(", ".join(metadata(path).get(key, [])))


def labels(path: Path, rows: dict[str, list[tuple[str, float]]], error: str = "") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "score", "label_2", "score_2", "error"])
        for name, best in rows.items():
            cells = [cell for pair in best for cell in pair]
            writer.writerow([name, *(cells + [""] * 4)[:4], "" if best else "no image"])
    return path


def test_ten_formats(run_cvt: RunCvt, tmp_path: Path) -> None:
    names = [f"a.{kind}" for kind in (*EMBEDDED, *BESIDE)]
    before, kept = {}, {}
    for name in names:
        path = make(tmp_path / name)
        if name[2:] in EMBEDDED:
            put(path, {"Xmp.dc.subject": "mine", "Xmp.xmp.Rating": "4"})
        before[name] = pixels(path)
        kept[name] = metadata(path)
        path.chmod(0o640)
        os.utime(path, ns=(10**18, 10**18))
    jpeg = scans(tmp_path / "a.jpg")
    labels(tmp_path / "l.csv", {name: [("cät, tomcat", 0.9), ("dog", 0.1)] for name in names})
    command = ("tag", "l.csv", "--embed")
    done = run_cvt(*command, "--keep-dates", expect=0)
    assert done.stderr.splitlines() == [
        *(
            f"cvt: .{kind} files get a sidecar: exiv2 does not write into such files"
            for kind in BESIDE
        ),
        "cvt: l.csv: tagged 10 pictures",
    ]
    for name in names:
        path = tmp_path / name
        target = path if name[2:] in EMBEDDED else tmp_path / f"{name}.xmp"
        own = ["mine"] if target is path else []
        assert pixels(path) == before[name]
        assert path.stat().st_mode & 0o777 == 0o640
        assert path.stat().st_mtime_ns == 10**18
        assert keywords(target) == [*own, "cät"]
        assert keywords(target, "Xmp.lr.hierarchicalSubject") == ["cät"]
        assert keywords(target, "Xmp.digiKam.TagsList") == ["cät"]
        for key, value in kept[name].items():
            if (
                key not in ("Xmp.dc.subject", "Exif.Image.XMLPacket", "Exif.Image.SubIFDs")
                and "Offset" not in key
            ):
                assert metadata(path)[key] == value
    assert keywords(tmp_path / "a.jpg", "Iptc.Application2.Keywords") == ["cät"]
    assert metadata(tmp_path / "a.jpg")["Exif.Image.Make"] == ["Maker"]
    assert scans(tmp_path / "a.jpg") == jpeg
    if shutil.which("exiftool"):
        found = subprocess.run(
            ["exiftool", "-j", "-Subject", "-HierarchicalSubject", "-Keywords", "a.jpg"],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
        assert json.loads(found.stdout)[0]["Subject"] == ["mine", "cät"]


def test_another_run_and_none(run_cvt: RunCvt, tmp_path: Path) -> None:
    names = [f"a.{kind}" for kind in (*EMBEDDED, *BESIDE)]
    before = {}
    for name in names:
        path = make(tmp_path / name)
        if name[2:] in EMBEDDED:
            put(path, {"Xmp.dc.subject": "mine", "Xmp.xmp.Rating": "4"})
        before[name] = pixels(path)
    labels(tmp_path / "l.csv", {name: [("cät, tomcat", 0.9), ("dog", 0.1)] for name in names})
    command = ("tag", "l.csv", "--embed")
    run_cvt(*command, "--keep-dates", expect=0)
    content = {name: (tmp_path / name).read_bytes() for name in names}
    again = run_cvt(*command, expect=0)
    assert "tagged 0 pictures; 10 already up to date" in again.stderr
    assert {name: (tmp_path / name).read_bytes() for name in names} == content
    labels(tmp_path / "l.csv", {name: [("mine", 0.9), ("dog", 0.6)] for name in names})
    run_cvt(*command, "-k", 2, expect=0)
    assert keywords(tmp_path / "a.png") == ["mine", "dog"]
    labels(
        tmp_path / "l.csv", {name: [("dog", 0.4 + 0.4 * (name[2:] in BESIDE))] for name in names}
    )
    few = run_cvt(*command, "--min-score", 0.5, expect=0)
    assert f"l.csv: tagged {len(BESIDE)} pictures and untagged {len(EMBEDDED)}\n" in few.stderr
    again = run_cvt(*command, "--min-score", 0.5, expect=0)
    assert f"; {len(EMBEDDED)} have no label that is wanted; {len(BESIDE)} already" in again.stderr
    removed = run_cvt(*command, "--remove", expect=0)
    without = f"{len(EMBEDDED)} had no keywords of cvt tag"
    assert f"l.csv: untagged {len(BESIDE)} pictures; {without}\n" in removed.stderr
    for name in names:
        path = tmp_path / name
        assert pixels(path) == before[name]
        assert not (tmp_path / f"{name}.xmp").exists()
        if name[2:] in EMBEDDED:
            assert keywords(path) == ["mine"]
            assert metadata(path)["Xmp.xmp.Rating"] == ["4"]
            assert not [key for key in metadata(path) if ".cvt." in key or key[:4] == "Iptc"]


def test_a_sidecar_of_darktable(tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.CR2.xmp"
    path.write_text(DARKTABLE)
    path.chmod(0o600)
    before = metadata(path)
    found = (Keyword(("auto", "animal", "tabby"), "tabby, tabby cat", 0.9),)
    assert tag_sidecar(path, found, "org/cvt")
    after = metadata(path)
    assert keywords(path) == ["holiday", "tabby"]
    assert keywords(path, "Xmp.lr.hierarchicalSubject") == ["when|holiday", "auto|animal|tabby"]
    assert keywords(path, "Xmp.digiKam.TagsList") == ["auto/animal/tabby"]
    assert after["Xmp.cvt.model"] == ["org/cvt"]
    assert after["Xmp.cvt.labels[1]/cvt:score"] == ["0.9"]
    assert {key: after[key] for key in before if "ubject" not in key and "Iptc" not in key} == {
        key: value for key, value in before.items() if "ubject" not in key and "Iptc" not in key
    }
    assert "a comment" in path.read_text() and "&#10;" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert not tag_sidecar(path, found, "org/cvt")
    # A program has written it anew since.
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    image.writeMetadata()
    assert not tag_sidecar(path, found, "org/cvt")
    assert tag_sidecar(path, (), "")
    assert metadata(path) == before


def test_what_is_a_keyword() -> None:
    record = Record("a", (Prediction("tabby, tabby cat", 0.6, 1), Prediction("dog|x", 0.3, 2)))
    assert [each.levels for each in Choice().keywords(record)] == [("tabby",)]
    assert [each.levels for each in Choice(top_k=5).keywords(record)] == [("tabby",), ("dog-x",)]
    assert [each.flat for each in Choice(top_k=5, min_score=0.5).keywords(record)] == ["tabby"]
    assert Choice(min_score=0.7).keywords(record) == ()
    group_of: Callable[[str], str | None] = {"tabby, tabby cat": "cat"}.get
    choice = Choice(top_k=2, prefix=" auto / kinds|", group_of=group_of)
    assert [each.levels for each in choice.keywords(record)] == [
        ("auto", "kinds", "cat", "tabby"),
        ("auto", "kinds", "dog-x"),
    ]
    odd = Record("a", (Prediction("a\x00\ud800 <b>&\n c", 0.6, 1),))
    assert [each.flat for each in Choice().keywords(odd)] == ["a <b>& c"]
    assert group_finder([])("cat") is None


MANY = "<x>" * 100_000 + "</x>" * 100_000
HOSTILE = {
    "cut": DARKTABLE[:900].encode(),
    "text": b"no XML",
    "no UTF-8": DARKTABLE.replace("holiday", "caf\xe9").encode("latin-1"),
    "entities": DARKTABLE.replace("<x:xmp", '<!DOCTYPE x [<!ENTITY a "aa">]><x:xmp', 1).encode(),
    "no RDF": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
    "deep": DARKTABLE.replace("<!-- a comment -->", MANY).encode(),
    "large": DARKTABLE.replace("a comment", " " * 2**25).encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_sidecars_stay_as_they_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(TagError) as raised:
        tag_sidecar(path, TABBY, "")
    assert "\n" not in str(raised.value) and "a.jpg.xmp" in str(raised.value)
    assert path.read_bytes() == HOSTILE[kind]
    assert [each.name for each in tmp_path.iterdir()] == ["a.jpg.xmp"]


def test_ten_megabytes_of_xmp_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_text(DARKTABLE.replace("ffffffff", "f" * 10_000_000))
    before = metadata(path)
    assert tag_sidecar(path, TABBY, "")
    assert path.read_text().count("f") > 10_000_000
    assert tag_sidecar(path, (), "")
    assert metadata(path) == before


def test_links_and_files_that_are_not_to_be_written(tmp_path: Path) -> None:
    sidecar, jpeg = tmp_path / "a.jpg.xmp", make(tmp_path / "a.jpg")
    sidecar.write_text(DARKTABLE)
    for path in (sidecar, jpeg):
        path.chmod(0o444)
    link, photo = tmp_path / "b.jpg.xmp", tmp_path / "b.jpg"
    link.symlink_to(sidecar)
    photo.symlink_to(jpeg)
    before = {path: path.read_bytes() for path in (sidecar, jpeg)}
    for path, words in ((sidecar, "is read-only"), (link, "is a link")):
        with pytest.raises(TagError, match=words):
            tag_sidecar(path, TABBY, "")
    for path, words in ((jpeg, "is read-only"), (photo, "is a link")):
        with pytest.raises(TagError, match=words):
            tag_picture(path, TABBY, "")
    assert {path: path.read_bytes() for path in before} == before
    assert link.is_symlink() and photo.is_symlink() and len(list(tmp_path.iterdir())) == 4


def test_hostile_metadata_in_pictures(tmp_path: Path) -> None:
    """It costs one picture: each is as it was, and the next is tagged."""
    jpeg = make(tmp_path / "a.jpg").read_bytes()

    def app1(content: bytes) -> bytes:
        size = struct.pack(">H", len(content) + 31)
        return b"\xff\xe1" + size + b"http://ns.adobe.com/xap/1.0/\0" + content

    hostile = {
        "broken.jpg": jpeg[:2] + app1(HOSTILE["cut"]) + jpeg[2:],
        "entities.jpg": jpeg[:2] + app1(HOSTILE["entities"]) + jpeg[2:],
        "full.jpg": jpeg[:2]
        + app1(DARKTABLE.replace("ffffffff", "f" * 63_000).encode())
        + jpeg[2:],
        "cut.jpg": jpeg[:20],
        "text.jpg": b"no image",
        "empty.jpg": b"",
    }
    with PictureWriter() as writer:
        for name, content in hostile.items():
            path = tmp_path / name
            path.write_bytes(content)
            with pytest.raises(TagError) as raised:
                writer.tag(path, TABBY, "")
            assert "\n" not in str(raised.value)
            assert path.read_bytes() == content
        assert writer.tag(tmp_path / "a.jpg", TABBY, "")
        assert keywords(tmp_path / "a.jpg") == ["tabby"]
        # A process that dies, or never answers, costs no more.
        assert writer._process is not None
        writer._process.kill()
        with pytest.raises(TagError, match="crashed, or took too long"):
            writer.tag(tmp_path / "a.jpg", TABBY, "")
        assert not writer.tag(tmp_path / "a.jpg", TABBY, "")
        with pytest.raises(Unwritable):
            writer.tag(make(tmp_path / "a.gif"), TABBY, "")
    assert not list(tmp_path.glob(".cvt*"))


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    left = tmp_path / f".cvt-{'0' * 8}-{'0' * 16}.tmp"
    left.write_text("half a file")
    os.utime(left, (0, 0))
    records = [Record("gone.png", error="x"), Record(str(tmp_path / "a.png"), ())]
    assert [each.status for each in Tagger(choice=None).tag(records)] == [
        TagStatus.LEFT,
        TagStatus.NONE,
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_iptc_of_another_encoding_is_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "a.jpg")
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    latin = b"caf\xe9"
    image.iptcData().add(exiv2.IptcKey("Iptc.Application2.Caption"), exiv2.DataValue(latin))
    image.writeMetadata()
    assert tag_picture(path, TABBY, "")
    assert keywords(path) == ["tabby"] and latin in path.read_bytes()
    assert "Iptc.Envelope.CharacterSet" not in metadata(path)


def test_a_packet_of_other_prefixes() -> None:
    """Those that it has stay, also where one is ours elsewhere."""
    text = DARKTABLE.replace("xmlns:dc=", "xmlns:cvt=").replace("dc:subject", "cvt:subject")
    packet = Packet(text.encode("utf-16"))
    packet.tag(TABBY, "m")
    again = Packet(packet.write())
    assert b"darktable:history" in packet.write() and b"xmlns:cvt=" in packet.write()
    again.tag(TABBY, "m")
    assert not again.is_changed
    assert packet.write().count(b">tabby</rdf:li>") == 6


def test_sidecars_from_every_row_format(run_cvt: RunCvt, tmp_path: Path) -> None:
    """By default, without exiv2."""
    (tmp_path / "exiv2.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(tmp_path)}
    strange = ["a b.png", "-n.png", "line\nbreak.png", os.fsdecode(b"caf\xe9.png")]
    for name in strange:
        picture(16, 16).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("no image")
    outputs = [f"l.{kind}" for kind in ("csv", "tsv", "json", "jsonl", "parquet", "xlsx")]
    named = [each for output in outputs for each in ("-o", output)]
    run_cvt("classify", "-m", "cvt-tiny-cifar10", *named, ".", expect=1)
    for output in outputs:
        done = run_cvt("tag", output, env=env, expect=0)
        assert done.stderr == (
            f"cvt: {output}: tagged 4 pictures; 1 without a result stay as they are\n"
        )
        sidecars = sorted(tmp_path.glob("*.xmp"))
        assert len(sidecars) == 4
        for path in sidecars:
            assert b"<cvt:model>cvt-tiny-cifar10<" in path.read_bytes()
            path.unlink()
    dry = run_cvt("tag", "l.csv", "-n", "--prefix", "auto", expect=0)
    assert not list(tmp_path.glob("*.xmp"))
    assert len(dry.stdout.splitlines()) == 4 and "a b.png.xmp: auto/" in dry.stdout
    assert "would have tagged 4 pictures" in dry.stderr
    run_cvt("tag", "l.csv", "--prefix", "auto", expect=0)
    assert keywords(tmp_path / "a b.png.xmp", "Xmp.lr.hierarchicalSubject")[0][:5] == "auto|"
    run_cvt("tag", "l.csv", "--min-score", 1, expect=0)
    assert not list(tmp_path.glob("*.xmp"))


def test_what_can_not_be_tagged(run_cvt: RunCvt, tmp_path: Path) -> None:
    cat = [("cat", 0.9)]
    make(tmp_path / "a.jpg")
    shutil.copy(make(tmp_path / "a.dng"), tmp_path / "b.CR2")
    labels(tmp_path / "l.csv", dict.fromkeys(("a.jpg", "b.CR2", "x.zip::a.jpg", "no.jpg"), cat))
    done = run_cvt("tag", "l.csv", "--sidecar", "lightroom", expect=1)
    assert done.stderr.splitlines() == [
        "cvt: a.jpg: Lightroom reads sidecars of raw files only: --embed writes into the file",
        "cvt: x.zip::a.jpg: in an archive: unpack it to tag it",
        "cvt: no.jpg: no such file",
        "cvt: l.csv: tagged 1 picture; 3 failed",
    ]
    assert keywords(tmp_path / "b.xmp") == ["cat"]
    labels(tmp_path / "elsewhere.csv", {f"photos/{n}.jpg": cat for n in range(30)})
    check_line(run_cvt("tag", "elsewhere.csv"), 1, "none of the 30 files exists here", "cd there")
    for arguments, words in (
        (("l.csv", "--remove", "--prefix", "a"), "--remove and --prefix exclude each other"),
        (("l.csv", "--sidecar", "x"), "--sidecar x: darktable or lightroom"),
        (("gone.csv",), "gone.csv can't be read"),
        (("-",), "labels on standard input need --format"),
    ):
        check_line(run_cvt("tag", *arguments), 2, words)


def test_a_disk_that_is_full(run_cvt: RunCvt, small_disk: Path) -> None:
    """The sidecar of before stays."""
    make(small_disk / "a.png")
    (small_disk / "a.png.xmp").write_text(DARKTABLE)
    free = os.statvfs(small_disk)
    (small_disk / "rest").write_bytes(b"x" * free.f_bfree * free.f_bsize)
    labels(small_disk.parent / "l.csv", {"disk/a.png": [("cat", 0.9)]})
    full = run_cvt("tag", "l.csv")
    check_line(full, 4, "disk/a.png can't be tagged: no space left on device")
    assert (small_disk / "a.png.xmp").read_text() == DARKTABLE
