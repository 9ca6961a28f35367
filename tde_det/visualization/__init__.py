"""Pictures of predictions that stay readable at LVIS's settings."""

from .draw import draw_panels, pixels
from .results import draw_results
from .select import select_readable

__all__ = ["draw_panels", "draw_results", "pixels", "select_readable"]
