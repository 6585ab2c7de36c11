"""The report of a student as files: JSON, Markdown, and one HTML page with its pictures inside."""

from jaxkd.report.student.index import write_index
from jaxkd.report.student.page import HTML, JSON, MARKDOWN, student_tables, write_student_report
from jaxkd.report.student.sections import StudentReport

__all__ = [
  "HTML",
  "JSON",
  "MARKDOWN",
  "StudentReport",
  "student_tables",
  "write_index",
  "write_student_report",
]
