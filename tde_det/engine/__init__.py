"""Engine: from a command line to a configured, launched training or evaluation."""

from .checkpoints import load_model
from .config_file import read_config
from .launch import launch_cli
from .predictor import Predictor
from .setup import setup, setup_tool
from .trainer import Trainer

__all__ = [
    "Predictor",
    "Trainer",
    "launch_cli",
    "load_model",
    "read_config",
    "setup",
    "setup_tool",
]
