"""`cvt` and `python -m cvt_cli`."""

from cvt_cli.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
