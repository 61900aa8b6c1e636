"""The conditions that predictions are made under, for run records."""

from collections.abc import Sequence
from dataclasses import dataclass

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.images.reading import ImageReader
from cvt_cli.inference.scores import kind_of
from cvt_cli.model.form import Form


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """All that predictions depend on, beside the images.

    Attributes:
        device, dtype: by their names.
        only: the labels to choose from; None for all.
        form: of the network; None for the only one, on a GPU.
    """

    checkpoint: Checkpoint
    reader: ImageReader
    device: str
    dtype: str
    batch_size: int
    only: Sequence[str] | None
    form: Form | None

    def facts(self, *, digest: bool) -> dict[str, object]:
        """Return them for a run record.

        Args:
            digest: with the weights' SHA-256, for which all of them are read.
        """
        checkpoint, reader = self.checkpoint, self.reader
        background = reader.background
        return {
            "model": checkpoint.name,
            "commit": checkpoint.files.commit,
            "weights_sha256": checkpoint.files.weights_digest() if digest else None,
            "activation": checkpoint.config.hidden_act,
            "scores": str(kind_of(checkpoint)),
            "preprocessing": checkpoint.preprocessing.to_dict(),
            "device": self.device,
            "dtype": self.dtype,
            "decode": "exact" if reader.exact else "fast",
            "background": background and "#{:02x}{:02x}{:02x}".format(*background),
            "truncated": "accept" if reader.accept_truncated else "refuse",
            "batch_size": self.batch_size,
            "form": self.form and self.form.to_dict(),
            "max_pixels": reader.max_pixels,
            "labels": self.only,
        }
