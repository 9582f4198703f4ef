"""A study as one HTML file that needs no network, with all its numbers beside it."""

from mixqvit.report.files import Report
from mixqvit.report.steps import report_steps

__all__ = ["Report", "report_steps"]
