"""The report: records in, one dictionary out, and from that one HTML file that opens anywhere, offline."""

from spectrim.report.render import render, render_sweep, write_html, write_sweep
from spectrim.report.summarise import SCHEMA, summarise
from spectrim.report.sweeping import summarise_sweep

__all__ = ["SCHEMA", "render", "render_sweep", "summarise", "summarise_sweep", "write_html", "write_sweep"]
