"""Pictures of predictions that stay readable at LVIS's settings."""

from .draw import draw_comparison, draw_objects
from .results import draw_results
from .select import select_readable

__all__ = ["draw_comparison", "draw_objects", "draw_results", "select_readable"]
