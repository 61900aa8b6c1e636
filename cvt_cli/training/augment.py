"""Augmentation: random changes of training images, in batches on the device.

Every image draws its own: what is drawn is drawn on the CPU, so that it is a function of the seed
and no step waits for the device. All that moves pixels (crop, flip, RandAugment's shears, shifts
and rotations) becomes one map for each image, applied by one interpolation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this input size in pixels an object fills its picture, so crops keep most of it.
PADDED_CROP_UP_TO = 64
# Ratios of height to width, of a resized crop and of an erased rectangle.
CROP_ASPECT = 4 / 3
ERASED_ASPECT = 10 / 3
# Least and largest share of the area that is erased.
ERASED_AREA = (0.02, 1 / 3)
# Crops drawn for an image until one fits, at most.
ATTEMPTS = 10
FLIPPED = 0.5  # share of the images
# Operations that RandAugment draws for an image, one after the other.
ROUNDS = 2

GREY = (0.299, 0.587, 0.114)
LEVELS = 256


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
        crop: "padded" (an eighth on each side, then a window of the same size), "resized" (a
            window of another size and aspect, resized) or "none".
        min_scale: the smallest share of the area that a resized crop keeps, above 0, to 1.
        flip: mirror every other image, left to right.
        rand_augment: magnitude of RandAugment, 1 (hardly any change) to 29; 0 leaves it out.
        random_erasing: share of the images, 0 to 1, of which a rectangle becomes noise.
        mixup, cutmix: share of the images, 0 to 1, that are blended with another, or have a
            rectangle of another pasted in; their sum is at most 1. Ratios are uniform.
    """

    crop: str = "padded"
    min_scale: float = 0.35
    flip: bool = True
    rand_augment: int = 0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


class Augmenter:
    """Applies an `Augmentation` to one input size. Draws from torch's global generator of the CPU;
    the noise of random erasing from that of the device.

    Args:
        size: height and width in pixels of the result.
        num_labels: width of the soft targets.
        label_smoothing: share of each target that is spread over all classes, 0 to below 1.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        size: tuple[int, int],
        num_labels: int,
        *,
        label_smoothing: float,
    ) -> None:
        self._augmentation = augmentation
        self._size = size
        self._num_labels = num_labels
        self._label_smoothing = label_smoothing

    def __call__(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Augment pixels (B, H, W, 3) uint8 with class indexes (B,) int64 to pixels (B, h, w, 3)
        float32, 0 to 255, and soft targets (B, num_labels) float32, each row with a sum of 1."""
        augmentation, count = self._augmentation, len(pixels)
        strength = augmentation.rand_augment / 30
        x = pixels.permute(0, 3, 1, 2).float() / 255
        drawn = draw_operations(count) if strength else None
        moves = self._moves(count, (pixels.shape[1], pixels.shape[2]))
        if drawn is not None:
            moves = moves @ geometry(*drawn, strength, size=self._size)
        x = self._resample(x, moves)
        if drawn is not None:
            x = recolor(x, *drawn, strength=strength)
        if augmentation.random_erasing:
            erased, _ = boxes(*erased_sides(count, augmentation.random_erasing), self._size)
            x = torch.where(_inside(erased, x), torch.rand_like(x), x)
        x, soft = self._mix(x, targets)
        soft = soft * (1 - self._label_smoothing) + self._label_smoothing / self._num_labels
        return (x * 255).permute(0, 2, 3, 1), soft

    def _moves(self, count: int, size: tuple[int, int]) -> Tensor:
        """Draw crops and flips as maps (B, 3, 3) float32: from a point (x, y, 1) of the result to
        the point of the image that it is taken from, both in pixels from the centre."""
        augmentation, (height, width) = self._augmentation, self._size
        moves = torch.eye(3).repeat(count, 1, 1)
        if augmentation.crop == "padded":
            for axis, length in enumerate((width, height)):
                padding = max(1, length // 8)
                moves[:, axis, 2] = torch.randint(-padding, padding + 1, (count,)).float()
        elif augmentation.crop == "resized":
            rows, columns = resized_windows(count, augmentation.min_scale, size)
            for axis, (window, whole, length) in enumerate(
                ((columns, size[1], width), (rows, size[0], height))
            ):
                moves[:, axis, axis] = window / length
                moves[:, axis, 2] = (torch.rand(count) - 0.5) * (whole - window)
        else:
            moves[:, 0, 0], moves[:, 1, 1] = size[1] / width, size[0] / height
        if augmentation.flip:
            moves[:, :, 0] *= 1 - 2 * (torch.rand(count, 1) < FLIPPED).float()
        return moves

    def _resample(self, x: Tensor, moves: Tensor) -> Tensor:
        """Resample (B, 3, H, W) to (B, 3, h, w); black where the map leaves the image."""
        augmentation, (height, width) = self._augmentation, self._size
        stays = augmentation.crop == "none" and not augmentation.flip
        if stays and not augmentation.rand_augment and x.shape[2:] == self._size:
            return x
        # From pixels to the units of `grid_sample`: an image extends from -1 to 1.
        theta = moves[:, :2] * torch.tensor([width / 2, height / 2, 1.0])
        theta = theta / torch.tensor([[x.shape[3] / 2], [x.shape[2] / 2]])
        grid = F.affine_grid(
            _to(theta, x), [len(x), x.shape[1], height, width], align_corners=False
        )
        return F.grid_sample(x, grid, align_corners=False)

    def _mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        first = self._one_hot(targets)
        mixup, cutmix = self._augmentation.mixup, self._augmentation.cutmix
        if not mixup and not cutmix:
            return x, first
        count = len(x)
        kind, ratio, others = torch.rand(count), torch.rand(count), torch.randperm(count)
        blended, pasted = kind < mixup, (kind >= mixup) & (kind < mixup + cutmix)
        side = ratio.sqrt() * pasted
        pasted_boxes, pasted_share = boxes(side, side, self._size)
        # The share of an image that comes from another one.
        share = torch.where(blended, ratio, pasted_share)
        blend, soft = _to(torch.stack([ratio * blended, share]), x)
        others = _to(others, x)
        other = x[others]
        x = torch.where(_inside(pasted_boxes, x), other, x.lerp(other, blend[:, None, None, None]))
        return x, first.lerp(first[others], soft[:, None])

    def _one_hot(self, targets: Tensor) -> Tensor:
        return F.one_hot(targets.long(), self._num_labels).float()


def resized_windows(count: int, min_scale: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw height and width in pixels, (count,) float32 each, of windows with a uniform share of
    the area of an image of `size`, from `min_scale`, and a log-uniform aspect. If none of some
    attempts fits, the window is the whole image."""
    height, width = size
    area = torch.empty(ATTEMPTS, count).uniform_(min_scale, 1.0) * height * width
    limit = math.log(CROP_ASPECT)
    root = torch.empty(ATTEMPTS, count).uniform_(-limit, limit).div(2).exp()
    rows, columns = area.sqrt() * root, area.sqrt() / root
    fits = (rows <= height) & (columns <= width)
    chosen = fits.int().argmax(dim=0, keepdim=True)
    fitting = fits.any(dim=0)
    rows, columns = rows.gather(0, chosen)[0], columns.gather(0, chosen)[0]
    return rows.where(fitting, float(height)), columns.where(fitting, float(width))


def erased_sides(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw height and width of erased rectangles (arXiv 1708.04896) as parts of the image's,
    (count,) float32 each; 0 for all images but `share` of them."""
    area = torch.empty(count).uniform_(*ERASED_AREA) * (torch.rand(count) < share)
    limit = math.log(ERASED_ASPECT)
    root = torch.empty(count).uniform_(-limit, limit).div(2).exp()
    return area.sqrt() * root, area.sqrt() / root


def boxes(rows: Tensor, columns: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw rectangles, anywhere in an image.

    Args:
        rows, columns: their height and width as parts of the image's, (B,) float32; what is above
            1 counts as 1.
        size: the image's height and width in pixels.

    Returns:
        First and end row, first and end column, (4, B) int64; and the share of the image's area
        that is inside, (B,) float32.
    """
    edges, lengths = [], []
    for part, length in zip((rows, columns), size, strict=True):
        extent = (part * length).round().clamp(max=length)
        room = length - extent
        first = (torch.rand(len(part)) * (room + 1)).floor().minimum(room)
        edges += [first, first + extent]
        lengths.append(extent)
    return torch.stack(edges).long(), lengths[0] * lengths[1] / (size[0] * size[1])


def _inside(edges: Tensor, x: Tensor) -> Tensor:
    """Return a mask of the pixels inside each image's rectangle, (B, 1, H, W) bool, for images like
    `x`."""
    top, bottom, left, right = _to(edges, x)[:, :, None]
    row = torch.arange(x.shape[2], device=x.device)
    column = torch.arange(x.shape[3], device=x.device)
    in_rows, in_columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    inside: Tensor = in_rows[:, None, :, None] & in_columns[:, None, None]
    return inside


def _to(values: Tensor, x: Tensor) -> Tensor:
    """Move to the device of `x`, without waiting for it."""
    return values.to(x.device, non_blocking=True)


# RandAugment (arXiv 1909.13719), with the ranges of torchvision's: an amount of 1 at a strength of
# 1 is the end of a range, 0 changes nothing. Amounts are signed where a range has two sides.


def _brightness(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    return (x * (1 + 0.9 * strength * amount)).clamp(0, 1)


def _saturation(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    return _away_from(_grey(x), x, 0.9 * strength * amount)


def _contrast(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    return _away_from(_grey(x).mean(dim=(2, 3), keepdim=True), x, 0.9 * strength * amount)


def _sharpness(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    # Like Pillow: the centre counts five times, and the border stays.
    kernel = x.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    channels = x.shape[1]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel.expand(channels, 1, 3, 3), groups=channels)
    return _away_from(smooth, x, 0.9 * strength * amount)


def _posterize(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    step: Tensor = torch.exp2((4 * strength * amount.abs()).round())
    return ((x * 255).round() / step).floor() * step / 255


def _solarize(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    return torch.where(x >= 1 - strength * amount.abs(), 1 - x, x)


def _auto_contrast(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def _equalize(x: Tensor, amount: Tensor, strength: float) -> Tensor:
    # Pillow's integer arithmetic.
    levels = (x * 255).round().long().flatten(2)
    histogram = torch.zeros(*levels.shape[:2], LEVELS, dtype=torch.int64, device=x.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    highest = histogram.gather(2, levels.amax(dim=2, keepdim=True))
    step = (levels.shape[2] - highest) // (LEVELS - 1)
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=LEVELS - 1)
    equalized = table.gather(2, levels).view_as(x) / 255
    return torch.where(step[..., None] > 0, equalized, x)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    grey: Tensor = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return grey


def _away_from(base: Tensor, x: Tensor, amount: Tensor) -> Tensor:
    return (x + amount * (x - base)).clamp(0, 1)


COLOR_OPERATIONS: tuple[Callable[[Tensor, Tensor, float], Tensor], ...] = (
    _brightness,
    _saturation,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _auto_contrast,
    _equalize,
)
SHEAR_X, SHEAR_Y, SHIFT_X, SHIFT_Y, ROTATE, IDENTITY = range(
    len(COLOR_OPERATIONS), len(COLOR_OPERATIONS) + 6
)
OPERATIONS = len(COLOR_OPERATIONS) + 6


def draw_operations(count: int) -> tuple[Tensor, Tensor]:
    """Draw the operations of RandAugment for each image, (ROUNDS, count) int64, and their amounts,
    -1 to 1 float32."""
    operations = torch.randint(OPERATIONS, (ROUNDS, count))
    return operations, torch.empty(ROUNDS, count).uniform_(-1, 1)


def geometry(
    operations: Tensor, amounts: Tensor, strength: float, *, size: tuple[int, int]
) -> Tensor:
    """Multiply the maps of the operations that move pixels: (B, 3, 3) float32, as in
    `Augmenter`."""
    height, width = size
    whole = torch.eye(3).repeat(operations.shape[1], 1, 1)
    # The operation applied last is undone first.
    for operation, amount in zip(operations, amounts * strength, strict=True):
        move = torch.eye(3).repeat(len(operation), 1, 1)
        angle = torch.where(operation == ROTATE, amount * math.radians(30), 0.0)
        move[:, 0, 0] = move[:, 1, 1] = angle.cos()
        shear = (amount * math.radians(17)).tan()
        move[:, 0, 1] = torch.where(operation == SHEAR_X, shear, -angle.sin())
        move[:, 1, 0] = torch.where(operation == SHEAR_Y, shear, angle.sin())
        move[:, 0, 2] = torch.where(operation == SHIFT_X, 0.45 * width * amount, 0.0)
        move[:, 1, 2] = torch.where(operation == SHIFT_Y, 0.45 * height * amount, 0.0)
        whole = whole @ move
    return whole


def recolor(x: Tensor, operations: Tensor, amounts: Tensor, *, strength: float) -> Tensor:
    """Apply the operations that leave pixels where they are. (B, 3, H, W) float32, 0 to 1.

    Each operation runs once a round, on the images that drew it.
    """
    order = operations.argsort(dim=1)
    sorted_amounts = _to(amounts.gather(1, order), x)
    on_device = _to(order, x)
    x = x.clamp(0, 1)
    for turn, drawn in enumerate(operations):
        end = 0
        counts = drawn.bincount(minlength=OPERATIONS).tolist()
        for operation, count in zip(COLOR_OPERATIONS, counts, strict=False):
            start, end = end, end + count
            if count:
                images = on_device[turn, start:end]
                amount = sorted_amounts[turn, start:end, None, None, None]
                x = x.index_copy(0, images, operation(x[images], amount, strength))
    return x
