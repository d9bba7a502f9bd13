"""A grid of trainings, scored and drawn."""

from .grid import configure
from .render import HEADS, TAILS, caption, cells_of, columns, failures, saved_text
from .runner import Comparison, write_report
from .table import Table

__all__ = [
    "HEADS",
    "TAILS",
    "Comparison",
    "Table",
    "caption",
    "cells_of",
    "columns",
    "configure",
    "failures",
    "saved_text",
    "write_report",
]
