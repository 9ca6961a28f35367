"""Evaluation: LVIS metrics and the Detectron2 evaluator that reports them."""

from .evaluator import LongTailEvaluator, format_table
from .lvis_eval import METRICS, evaluate_lvis

__all__ = ["METRICS", "LongTailEvaluator", "evaluate_lvis", "format_table"]
