"""Engine: from a command line to a configured, launched training or evaluation."""

from .launch import exit_on_data_error, launch_cli
from .setup import setup
from .trainer import Trainer

__all__ = ["Trainer", "exit_on_data_error", "launch_cli", "setup"]
