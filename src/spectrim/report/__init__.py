"""The report: records in, one dictionary out, and from that one HTML file that opens anywhere, offline."""

from spectrim.report.render import render, write_html
from spectrim.report.summarise import SCHEMA, summarise

__all__ = ["SCHEMA", "render", "summarise", "write_html"]
