"""The page of an evaluation: figures, a confusion matrix to click, and the images, wrong ones
first. One HTML file that opens from disk.

`page.html` is a Jinja template; the style of the report of `cvt classify` and `page.css` here, and
`page.js`, go into the page as they are. Its Content-Security-Policy lets nothing else run. The
images go into it as JSON, which the script shows as text.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from cvt_cli.evaluation.judgements import Judgement, worst_first
from cvt_cli.evaluation.metrics import Evaluation
from cvt_cli.output import report_page
from cvt_cli.output.report_tables import write_whole
from cvt_cli.records import as_written, short_label
from cvt_cli.system.text import visible as visible

# Images up to which all thumbnails are in the page; beyond, only those of the worst.
MOST_THUMBNAILS = 400
# Labels up to which the matrix has them all; beyond, those most often confused.
MOST_LABELS = 40


def write_page(
    path: Path,
    evaluation: Evaluation,
    judgements: Sequence[Judgement],
    *,
    names: Sequence[str],
    run: Mapping[str, Any],
) -> None:
    """Write the page, whole or not at all.

    Args:
        judgements: one for each image.
        names: the label of each class index.
        run: what the figures were measured with.

    Raises:
        CvtError: if it can't be written.
    """
    base = path.parent.resolve()
    ordered = worst_first(judgements)
    shown = {index for each in ordered for index in (each.truth, *_indexes(each))}
    images = [
        [
            as_written(each.path),
            each.truth,
            [[one.index, round(one.score, 6)] for one in each.predictions],
            each.error,
            base64.b64encode(each.thumbnail).decode()
            if each.thumbnail is not None and number < MOST_THUMBNAILS
            else None,
            report_page.link(each.path, base),
        ]
        for number, each in enumerate(ordered)
    ]
    data = {
        "labels": {index: short_label(names[index]) for index in sorted(shown)},
        "matrix": _matrix_labels(judgements),
        "images": images,
    }
    here, there = files(__name__), files(report_page)
    style = (there / "page.css").read_text("utf-8") + (here / "page.css").read_text("utf-8")
    script = (here / "page.js").read_text("utf-8")
    html = (here / "page.html").read_text("utf-8")
    page = report_page.page_template(html, style=style, script=script).render(
        name=path.stem,
        subject="evaluation of",
        run=run,
        evaluation=evaluation,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data=data,
    )
    write_whole(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))


def keeps_thumbnail(judgement: Judgement, right_before: int) -> bool:
    """Tell whether the page may show an image's thumbnail, as it does for all mistakes and the
    first right ones. Others need not be kept until the end.

    Args:
        right_before: right ones whose thumbnail is kept already.
    """
    return not judgement.is_correct or right_before < MOST_THUMBNAILS


def _indexes(judgement: Judgement) -> list[int]:
    return [each.index for each in judgement.predictions]


def _matrix_labels(judgements: Sequence[Judgement]) -> list[int]:
    """Pick the class indexes of the matrix, in order: those confused most often, if there are too
    many."""
    seen: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    for each in judgements:
        if each.predictions:
            pair = {each.truth, each.predictions[0].index}
            seen.update(pair)
            wrong.update(pair if len(pair) > 1 else ())
    if len(seen) <= MOST_LABELS:
        return sorted(seen)
    return sorted(index for index, _ in wrong.most_common(MOST_LABELS))
