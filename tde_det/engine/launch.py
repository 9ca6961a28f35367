"""Start a command line tool on one process or many."""

import argparse
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
from typing import Any, Callable, Mapping

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..cli import exit_on_input_error
from ..errors import InputError
from ..stop_signals import on_stop_signals
from .slurm import Task, slurm_task


def _run(
    main: Callable,
    args: argparse.Namespace,
    local_rank: int,
    local_size: int,
    group: Mapping[str, Any],
) -> Any:
    """Join a process group, by default that of torchrun's environment variables."""
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if use_cuda else "gloo", **group)
    comm.create_local_process_group(local_size)
    try:
        return main(args)
    finally:
        dist.destroy_process_group()


def _forward(number: int) -> None:
    """Pass a signal on to the processes that do the work."""
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, number)


def _run_as_child(main: Callable, args: argparse.Namespace) -> Any:
    """Run in a process that ends with its parent, to which PyTorch has it sent SIGINT.

    A shell script's ``&`` starts programs, and so their children, with SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return main(args)


def _run_under_srun(main: Callable, args: argparse.Namespace, task: Task) -> Any:
    """Join the other tasks.

    Raises:
        InputError: another launcher is asked for, or there are fewer GPUs than tasks.
    """
    local_rank, local_size = task.local_rank, task.local_size
    if args.num_gpus > 1 or args.num_machines > 1:
        raise InputError(
            f"srun has started {local_size} processes on this machine: leave out --num-gpus and "
            "--num-machines, or let it start one (--ntasks-per-node 1)"
        )
    gpus = torch.cuda.device_count()
    if gpus == 1:  # one of its own for each process, which calls it 0 (--gpus-per-task 1)
        local_rank, local_size = 0, 1
    elif 1 < gpus < local_size:
        raise InputError(f"srun has started {local_size} processes on a machine of {gpus} GPUs")
    where = {"init_method": f"tcp://{task.address}:{task.port}"}
    ranks = {"rank": task.rank, "world_size": task.world_size}
    return _run(main, args, local_rank, local_size, {**where, **ranks})


@exit_on_input_error
def launch_cli(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in the processes of torchrun or ``srun``, else of Detectron2's ``launch``.

    Args:
        main: decorated with :func:`exit_on_input_error` itself, so that spawned processes, too, end
            with the message of a ``InputError`` alone.
        args: with the options of :func:`tde_det.cli.add_launch_options`.

    Raises:
        InputError: SLURM's variables are wrong, or there are too few devices.
    """
    if "LOCAL_RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        local_rank, local_size = (int(os.environ[f"LOCAL_{k}"]) for k in ("RANK", "WORLD_SIZE"))
        return _run(main, args, local_rank, local_size, {})
    task = slurm_task(os.environ)
    is_one_each = task is not None and task.local_size == 1  # for Detectron2's launch on a machine
    if task is not None and not (is_one_each and args.num_gpus > 1):
        return _run_under_srun(main, args, task)
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
                functools.partial(_run_as_child, main) if starts_processes else main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except ProcessExitedException as error:  # a process that has said why, unlike one killed
        sys.exit(error.exit_code if error.exit_code > 0 else str(error))
