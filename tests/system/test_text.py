from cvt_cli.system.text import counted


def test_one_is_not_several() -> None:
    assert [counted(count, "file") for count in range(3)] == ["0 files", "1 file", "2 files"]
