import json

import pytest

from cvt_cli.system.text import counted, neutral


def test_one_is_not_several() -> None:
    assert [counted(count, "file") for count in range(3)] == ["0 files", "1 file", "2 files"]


STEERING = {
    "\x1b]52;c;eA==\x07": "\\u001b]52;c;eA==\\u0007",  # puts text into the clipboard
    "a\rb": "a\\u000db",
    "\u202egpj.exe": "\\u202egpj.exe",
    "\x9b2J": "\\u009b2J",
    "a\u2028b": "a\\u2028b",
    "\U000e0001": "\\udb40\\udc01",
}


@pytest.mark.parametrize(("text", "shown"), STEERING.items())
def test_what_steers_a_terminal_is_neutral(text: str, shown: str) -> None:
    assert neutral(text) == shown
    assert json.loads(f'"{neutral(text)}"') == text  # JSON stays JSON


def test_lines_and_letters_of_any_language_stay() -> None:
    text = "a,b\r\nü\t日本\u3000語\n"
    assert neutral(text) == text.replace("\r\n", "\n")
