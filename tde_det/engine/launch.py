"""Start a command line tool on one process or many."""

import argparse
import contextlib
import multiprocessing
import os
import sys
from typing import Any, Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..cli import exit_on_input_error
from ..errors import InputError
from ..stop_signals import on_stop_signals


def _run_under_torchrun(main: Callable, args: argparse.Namespace) -> Any:
    """Join the process group that torchrun's environment variables describe."""
    local_rank = int(os.environ["LOCAL_RANK"])
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if use_cuda else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return main(args)
    finally:
        dist.destroy_process_group()


def _forward(number: int) -> None:
    """Pass a signal on to the processes that do the work."""
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, number)


@exit_on_input_error
def launch_cli(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` under torchrun if it started us, else with Detectron2's ``launch``.

    Args:
        main: decorated with :func:`exit_on_input_error` itself, so that spawned processes, too, end
            with the message of a ``InputError`` alone.
        args: with the options of :func:`tde_det.cli.add_launch_options`.
    """
    if "LOCAL_RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        return _run_under_torchrun(main, args)
    has_cuda = torch.cuda.is_available()
    # Without CUDA, Detectron2 starts as many processes on the CPU, which then fight for its cores.
    available = torch.cuda.device_count() if has_cuda else os.cpu_count() or 1
    if args.num_gpus > available:
        kind = "GPUs" if has_cuda else "CPU cores and no GPU"
        raise InputError(f"--num-gpus {args.num_gpus}: this machine has {available} {kind}")
    starts_processes = args.num_gpus * args.num_machines > 1
    try:
        with on_stop_signals(_forward) if starts_processes else contextlib.nullcontext():
            return launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except ProcessExitedException as error:  # a process that has said why, unlike one killed
        sys.exit(error.exit_code if error.exit_code > 0 else str(error))
