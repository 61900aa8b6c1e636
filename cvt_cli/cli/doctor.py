"""`cvt doctor`: a description of the machine, as one block to paste into a bug report."""

from typing import TYPE_CHECKING

from cvt_cli.cli.output_options import OutputOption, ReplaceOption, ReportFormatOption

if TYPE_CHECKING:
    from cvt_cli.output.report_tables import Report

EXAMPLES = """\
[bold]Examples[/]

cvt doctor

cvt doctor --format json | jq .extras
"""


def doctor(
    format_: ReportFormatOption = None,
    output: OutputOption = None,
    overwrite: ReplaceOption = False,
) -> None:
    """Show versions, devices, what is fast here, the cache, and which extras are installed.

    Paste it into a bug report: it holds no secrets, only whether tokens and addresses are set.
    """
    from cvt_cli.output.report_tables import check_new, pick_format, write_report

    check_new(output, overwrite)
    write_report(_report(), pick_format(format_, output), output)


def _report() -> "Report":
    from cvt_cli.benchmark.bug_report import diagnose, doctor_report

    return doctor_report(diagnose())
