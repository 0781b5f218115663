"""The report of a study: tables, figures and careful sentences as HTML, Markdown and CSV."""

from sft_lab.study.report.comparing import MarksReader
from sft_lab.study.report.page import Report
from sft_lab.study.report.report import build_report
from sft_lab.study.report.writing import write_report

__all__ = ["MarksReader", "Report", "build_report", "write_report"]
