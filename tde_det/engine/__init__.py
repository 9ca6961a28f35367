"""Engine: from a command line to a configured, launched training or evaluation."""

from .checks import check_files
from .launch import exit_on_input_error, launch_cli
from .setup import fall_back_to_cpu, read_config, setup
from .trainer import Trainer

__all__ = [
    "Trainer",
    "check_files",
    "exit_on_input_error",
    "fall_back_to_cpu",
    "launch_cli",
    "read_config",
    "setup",
]
