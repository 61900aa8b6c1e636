"""Whatever is read back or taken in, damaged: no error of ours, no hang, no growth.

`pytest tests/fuzz --fuzz 1000` reads a thousand of each kind. The damage depends on the number of
the input only, which a failure names.
"""

import random
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvt_cli.images import retries
from tests.fuzz.targets import Target, answering, targets

KINDS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "index",
    "run files",
    "class names",
    "yaml",
    "http",
    "zip",
    "tar",
    "tar.gz",
    "parquet images",
    "parquet",
    *(f"{each} document" for each in ("csv", "tsv", "json", "jsonl")),
    *(f"{each} journal" for each in ("csv", "tsv", "json", "jsonl")),
)
# Seconds of processor time that one input may take, and MB that all of a kind may add.
SECONDS, GROWTH = 5, 300

ODD = [
    *(b"", b"\0", b"\xff", b"-1", b"1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'""'),
    *(b'"\\ud800"', b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\xff" * 8, b"\x7f\xff\xff\xff"),
    *(b"\r\n", b"\x1b[2J", b"../../x", b"65535", b"2147483648", b"a" * 70_000),
]


def damaged(example: bytes, chance: random.Random) -> bytes:
    """Change some of it."""
    data = bytearray(example)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0:  # a bit
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
            case 1:  # the end
                del data[at:]
            case 2:  # a piece
                del data[at : at + chance.randrange(1, 30)]
            case 3:
                data[at:at] = chance.choice(ODD)
            case 4:  # a piece twice, or often
                piece = data[at : at + chance.randrange(1, 200)]
                data[at:at] = piece * chance.choice((1, 1, 2, 100))
            case 5:  # a number or a text
                words = list(re.finditer(rb'-?\d+|"[^"]*"|true|false|null', data))
                if words:
                    word = chance.choice(words)
                    data[word.start() : word.end()] = chance.choice(ODD)
            case 6:
                size = chance.choice((1, 2, 4, 8))
                data[at : at + size] = chance.randbytes(size)
    return bytes(data)


@pytest.fixture(scope="module")
def every_target(
    tiny_cvt: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Target]]:
    pytest.importorskip("pyarrow", reason="needs cvt-cli[parquet]")
    answers: list[bytes] = [b""]
    with answering(answers) as url:
        yield targets(tiny_cvt(), tmp_path_factory.mktemp("fuzz"), url, answers)


@pytest.mark.parametrize("kind", KINDS)
def test_damage(
    kind: str,
    every_target: dict[str, Target],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(retries, "_BACK_OFF", (0.0, 0.0))
    target = every_target[kind]
    assert set(every_target) == set(KINDS)
    for example in target.examples:
        assert example  # which is read as what it is
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(request.config.getoption("--fuzz")):
        chance = random.Random(f"{kind} {number}")
        data = damaged(chance.choice(target.examples), chance)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read(data, tmp_path)
        except target.may_raise as error:
            assert len(str(error)) < 3000, f"{kind} {number}: a message without end"
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {data[:500]!r}") from error
        assert time.process_time() - start < SECONDS, f"{kind} {number}: {data[:500]!r}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH * 1024, f"{kind}: {grown >> 10} MB more"
