"""What tests run in processes of their own. Each imports this, so little more."""

import os

from cvt_cli.system.cores import SPIN_COUNT


class Odd:
    """Answers of a process of its own, odd ones too."""

    def __init__(self, fails: bool = False) -> None:
        if fails:
            import torch

            raise torch.OutOfMemoryError("no more")

    def process(self) -> int:
        return os.getpid()

    def spins(self) -> str | None:
        return os.environ.get(SPIN_COUNT)

    def fail(self) -> None:
        raise ValueError("seven", 7)

    def fail_oddly(self) -> None:
        error = ValueError("odd")
        error.add_note("")
        error.function = lambda: None  # type: ignore[attr-defined]
        raise error

    def die(self, by: int) -> None:
        os.kill(os.getpid(), by)
