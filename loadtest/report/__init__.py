"""A result -> a report: `write_report` makes report.html (one file, no network) and report.md with its images."""

from loadtest.report.write import write_report

__all__ = ["write_report"]
