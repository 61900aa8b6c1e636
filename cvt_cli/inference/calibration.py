"""The calibration error of scores: how far they are from how often labels are right."""

# Bins of equal width, as in arXiv 1706.04599.
CALIBRATION_BINS = 15


class Calibration:
    """Sums up the difference between the best scores of images and the share of right labels."""

    def __init__(self) -> None:
        self._bins = [[0.0, 0.0] for _ in range(CALIBRATION_BINS)]  # scores, correct
        self._count = 0

    def add(self, score: float, is_right: bool) -> None:
        """Count an image: its best score, 0 to 1, and whether that label is the true one."""
        place = self._bins[min(int(score * CALIBRATION_BINS), CALIBRATION_BINS - 1)]
        place[0] += score
        place[1] += is_right
        self._count += 1

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1, of at least one image."""
        return sum(abs(scores - correct) for scores, correct in self._bins) / self._count
