"""`cvt` and `python -m cvt_cli`."""

import sys


def main() -> None:
    """Run the command line of this process."""
    try:
        from cvt_cli.cli.app import main as run
    except KeyboardInterrupt:  # before there is anything to interrupt
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
