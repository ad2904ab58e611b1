"""From a result to a report: `write_report` writes report.html (one file, no network) and report.md with its plots."""

from loadtest.report.write import write_report

__all__ = ["write_report"]
