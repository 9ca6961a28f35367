"""Evaluation: LVIS metrics and the Detectron2 evaluator that reports them."""

from .detections import Detections
from .evaluator import LongTailEvaluator
from .lvis_eval import BACKENDS, METRICS, check_backend, evaluate_lvis
from .report import check_extra, format_table, report_lvis
from .results_file import parse_detections, read_detections, write_detections

__all__ = [
    "BACKENDS",
    "METRICS",
    "Detections",
    "LongTailEvaluator",
    "check_backend",
    "check_extra",
    "evaluate_lvis",
    "format_table",
    "parse_detections",
    "read_detections",
    "report_lvis",
    "write_detections",
]
