"""Drawing of an explanation: the photograph, the map over it, and the labels beside."""

from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cvt_cli.explanation.maps import Explanation
from cvt_cli.system.text import MAX_QUOTED, visible

# Perceptually uniform: equal steps look equal, in print and to the colour-blind too.
COLORS = matplotlib.colormaps["inferno"]
OPACITY = 0.6
# Share of the points whose values are shown in full; the highest are cut off, or only a few pixels
# would be visible.
SHARE_SHOWN = 0.995

MOST_PIXELS = 560
PIXELATED_FROM = 4  # times a picture is enlarged
MARGIN = 16
PANEL_WIDTH = 330
ROW_HEIGHT = 30
BAR_WIDTH = 14
INK, MUTED, GROUND, TRACK, BAR = "#17191c", "#555c66", "#ffffff", "#eceef1", "#b9d2f5"


def draw(picture: Image.Image, method: str, model: str, *, explanation: Explanation) -> Image.Image:
    """Draw the photograph, the map over it with its colour bar, and the best labels.

    Args:
        picture: upright, RGB.
        method, model: their names, to say beside.
        explanation: of that picture.
    """
    scale = MOST_PIXELS / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Small pictures are shown with visible pixels.
    resample = Image.Resampling.NEAREST if scale > PIXELATED_FROM else Image.Resampling.LANCZOS
    photograph = picture.resize((width, height), resample)
    overlay = _overlay(photograph, explanation.over_picture(width, height))

    side_by_side = width <= 1.5 * height
    across, down = (2, 1) if side_by_side else (1, 2)
    rows = len(explanation.predictions)
    panel_height = 86 + ROW_HEIGHT * rows + 70
    content = max(height * down + MARGIN * (down - 1), panel_height)
    canvas = Image.new(
        "RGB",
        (
            MARGIN * (across + 2) + width * across + PANEL_WIDTH,
            content + 2 * MARGIN,
        ),
        GROUND,
    )
    canvas.paste(photograph, (MARGIN, MARGIN))
    second = (MARGIN * 2 + width, MARGIN) if side_by_side else (MARGIN, MARGIN * 2 + height)
    canvas.paste(overlay, second)
    _draw_panel(
        canvas, MARGIN * (across + 1) + width * across, method, model=model, explanation=explanation
    )
    return canvas


def save(image: Image.Image, file: BinaryIO, suffix: str) -> None:
    """Encode the picture in the format of its file's suffix.

    Raises:
        OSError: if it can't be written.
    """
    image.save(file, Image.registered_extensions()[suffix.lower()], quality=90)


def _overlay(photograph: Image.Image, values: np.ndarray) -> Image.Image:
    seen = np.isfinite(values)
    most = np.quantile(values[seen], SHARE_SHOWN) if seen.any() else 0.0
    shares = np.clip(np.nan_to_num(values) / most, 0, 1) if most > 0 else np.zeros_like(values)
    heat = COLORS(shares)[..., :3] * 255
    # The photograph is grey, so that all colour comes from the map.
    grey = np.asarray(photograph.convert("L"), np.float32)[..., None]
    mixed = grey * (1 - OPACITY) + heat * OPACITY
    unseen = np.broadcast_to(grey * 0.5 + 120, mixed.shape)
    return Image.fromarray(np.where(seen[..., None], mixed, unseen).astype(np.uint8))


def _draw_panel(
    canvas: Image.Image, left: int, method: str, *, model: str, explanation: Explanation
) -> None:
    drawing = ImageDraw.Draw(canvas)
    top = MARGIN
    title = _fitted(drawing, explanation.label.label, _font(22), width=PANEL_WIDTH)
    drawing.text((left, top), title, fill=INK, font=_font(22))
    has_bars = explanation.score_kind.is_share

    def shown(score: float) -> str:
        return f"{score:.1%}" if has_bars else f"{score:.5g}"

    drawing.text(
        (left, top + 32), f"{method}, {shown(explanation.label.score)}", fill=MUTED, font=_font(15)
    )
    drawing.text(
        (left, top + 52),
        _fitted(drawing, model, _font(15), width=PANEL_WIDTH),
        fill=MUTED,
        font=_font(15),
    )
    top += 86
    for prediction in explanation.predictions:
        box = (left, top, left + PANEL_WIDTH, top + ROW_HEIGHT - 4)
        if has_bars:
            drawing.rectangle(box, TRACK)
            end = left + round(PANEL_WIDTH * prediction.score)
            drawing.rectangle((left, top, end, top + ROW_HEIGHT - 4), BAR)
        name = _fitted(drawing, prediction.label, _font(15), width=PANEL_WIDTH - 86)
        drawing.text((left + 8, top + 4), name, fill=INK, font=_font(15))
        drawing.text(
            (left + PANEL_WIDTH - 8, top + 4),
            shown(prediction.score),
            fill=INK,
            font=_font(15),
            anchor="ra",
        )
        top += ROW_HEIGHT
    top += 16
    ramp = np.tile(np.linspace(0, 1, PANEL_WIDTH), (BAR_WIDTH, 1))
    # As the map looks over a medium grey.
    colors = COLORS(ramp)[..., :3] * 255 * OPACITY + 127 * (1 - OPACITY)
    canvas.paste(Image.fromarray(colors.astype(np.uint8)), (left, top))
    drawing.text((left, top + BAR_WIDTH + 4), "nothing", fill=MUTED, font=_font(14))
    drawing.text(
        (left + PANEL_WIDTH, top + BAR_WIDTH + 4), "most", fill=MUTED, font=_font(14), anchor="ra"
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Comes with matplotlib, and has many scripts.
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def _fitted(
    drawing: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, *, width: int
) -> str:
    """Shorten a text to fit in one line."""
    text = visible(text[:MAX_QUOTED])
    if drawing.textlength(text, font) <= width:
        return text
    while text and drawing.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
