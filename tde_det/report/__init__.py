"""A page that compares runs: APs, errors, reasons and pictures."""

from .build import Options, build_report
from .gallery import Shown

__all__ = ["Options", "Shown", "build_report"]
