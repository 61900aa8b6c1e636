"""`cvt doctor`: a description of the machine, as one block to paste into a bug report."""

from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import ReportOptions

EXAMPLES = """\
[bold]Examples[/]

cvt doctor

cvt doctor --format json | jq .extras
"""


@grouped
def doctor(*, report: ReportOptions) -> None:
    """Show versions, devices, what is fast here, the cache, and which extras are installed.

    Paste it into a bug report: it holds no secrets, only whether tokens and addresses are set.
    """
    from cvt_cli.output.report_tables import write_report

    format_ = report.pick_format()

    from cvt_cli.benchmark.bug_report import diagnose, doctor_report

    write_report(doctor_report(diagnose()), format_, report.output)
