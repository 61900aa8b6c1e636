"""The report: one HTML file that opens from disk. Thumbnails are in it or, if there are too many to
mail, in a folder beside it.

`page.html` is a Jinja template; `page.css` and `page.js` go into the page as they are, and its
Content-Security-Policy lets nothing else run. The records go into it as JSON, which the script
shows as text.
"""

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.resources import files
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup

from cvt_cli import __version__
from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.jsons import PicturesJournal
from cvt_cli.output.thumbnails import (
    file_name,
    make_thumbnails,
    remove_thumbnails,
    thumbnails_of,
    unfinished_folder,
)
from cvt_cli.records import Record, RecordShape, ScoreKind, as_written
from cvt_cli.system.files import write_atomically
from cvt_cli.system.text import visible

# Images up to which the thumbnails are in the page itself.
MOST_INLINE = 400
LEAST_SCORE = 0.5


class ReportPageWriter(PicturesJournal):
    """Writes the report from a journal of JSON Lines, with thumbnails in base64."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the page, and the folder of thumbnails if they do not fit in the page.

        Raises:
            OSError: if it can't be written.
        """
        records = iter(records)
        first = list(islice(records, MOST_INLINE + 1))
        inline = len(first) <= MOST_INLINE
        folder = thumbnails_of(path)
        new_folder = unfinished_folder(folder)
        numbers = count()

        def thumbnail(record: Record) -> str | int | None:
            """Return the key of a thumbnail: the picture itself, or its number in the folder."""
            if record.thumbnail is None:
                return None
            if inline:
                return base64.b64encode(record.thumbnail).decode()
            number = next(numbers)
            (new_folder / file_name(number)).write_bytes(record.thumbnail)
            return number

        def rows() -> Iterator[list[object]]:
            base = path.parent.resolve()
            for record in chain(first, records):
                yield [
                    as_written(record.path),
                    [[each.label, each.score] for each in record.predictions],
                    record.error,
                    thumbnail(record),
                    link(record.path, base),
                    [record.columns.get(name) for name in shape.columns],
                ]

        def write(file: BinaryIO) -> None:
            remove_thumbnails(new_folder)
            if not inline:
                make_thumbnails(new_folder)
            for piece in _page(rows(), folder.name, path, shape=shape, run=run, summary=summary):
                file.write(piece.encode("utf-8", "backslashreplace"))
            remove_thumbnails(folder)
            if not inline:
                # Flushed before the page gets its name; many small files flush faster together.
                if hasattr(os, "sync"):
                    os.sync()
                new_folder.replace(folder)

        write_atomically(path, write)


def link(path: str, base: Path) -> str | None:
    """Return the relative address of the image for links from the page, if it is a file."""
    # os.path, because Path raises an error for a name that is too long.
    if not os.path.isfile(path):
        return None
    try:
        relative = os.path.relpath(os.path.realpath(path), base)
    except ValueError:  # on another drive
        return None
    # "./" keeps a name with a colon from reading as a scheme.
    return "./" + quote(os.fsencode(relative.replace(os.sep, "/")))


def _page(
    rows: Iterator[list[object]],
    folder: str,
    path: Path,
    *,
    shape: RecordShape,
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> Iterator[str]:
    here = files(__name__)
    style, script, template = (
        (here / f"page.{suffix}").read_text("utf-8") for suffix in ("css", "js", "html")
    )
    name = path.stem
    kind = ScoreKind(run.get("scores", ScoreKind.SOFTMAX))
    threshold = run.get("threshold")
    settings = {
        "folder": quote(folder),
        "name": name,
        "key": _storage_key(path, run),
        "topK": shape.top_k,
        "columns": shape.columns,
        "scores": kind,
        "scores_in_words": kind.in_words,
        # Score from which an image is said to have a label, if it can have several.
        "least": LEAST_SCORE if threshold is None else threshold,
    }
    # Buffered, as a piece of a template is only a few characters.
    stream = page_template(template, style=style, script=script).stream(
        name=name,
        subject="labels by",
        run=run,
        summary=summary,
        settings=settings,
        rows=rows,
    )
    stream.enable_buffering(64)
    return iter(stream)


def _storage_key(path: Path, run: Mapping[str, Any]) -> str:
    """Return the name that a browser keeps the corrections of this report under: all pages that are
    opened from files may share one storage. A report that is written anew by the same model has
    its corrections still."""
    what = f"{path.resolve()}\n{run.get('model')}\n{run.get('weights_sha256')}"
    return "cvt-corrections-" + sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def page_template(html: str, *, style: str, script: str) -> Template:
    """Return the template of a page that has this style and runs this script, by their hashes.

    Args:
        html: a template that includes `head.html`, which takes `name`, `run` and `subject`: what
            the page is of the model in `run`.
    """
    environment = Environment(
        loader=DictLoader({"head.html": (files(__name__) / "head.html").read_text("utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["visible"] = lambda value: visible(str(value))
    environment.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "version": __version__,
    }
    return environment.from_string(html)


def _hash(text: str) -> str:
    """Hash a script for the Content-Security-Policy."""
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()
