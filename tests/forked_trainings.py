"""Trainings by tools/train_net.py in forks of one process, so that each need not import PyTorch.

A json a line comes in, with the arguments of :func:`train`; its result goes out.
"""

import datetime
import glob
import json
import os
import pathlib
import random
import resource
import runpy
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tde_det.engine import launch_cli

TOOL = runpy.run_path(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools/train_net.py")
)


def be_a_training(words, log, rank, ranks, largest_file, break_at):
    """What the fork does: it never returns."""
    code = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        if break_at:
            break_rpn(*break_at)
        sys.argv = ["train_net.py", *words]
        args = TOOL["parse_args"]()
        TOOL["exit_when_asked"]()
        if ranks == 1:
            launch_cli(TOOL["main"], args)
        else:
            folder = os.path.dirname(log)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/{os.path.basename(log)}.init",
                rank=rank,
                world_size=ranks,
                timeout=datetime.timedelta(seconds=30),
            )
            comm.create_local_process_group(ranks)
            TOOL["main"](args)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # As at the end of a program, but without the modules of the parent.
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def break_rpn(iteration, rank):
    """Let the RPN of a rank find NaN in an iteration, as Detectron2's does on its own."""
    from detectron2.modeling.proposal_generator import rpn
    from detectron2.utils.events import get_event_storage

    find = rpn.find_top_rpn_proposals

    def broken(proposals, logits, *args):
        if get_event_storage().iter == iteration and comm.get_rank() == rank:
            logits = [x * torch.nan for x in logits]
        return find(proposals, logits, *args)

    rpn.find_top_rpn_proposals = broken


def fill_disk(folder):
    """Leave no byte on the file system of a folder."""
    with open(f"{folder}/ballast", "wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def until(moment, folder, log, pids):
    """Wait for "start", "step", "checkpoint" or "evaluation"; False if the training ended first."""
    begins = {"step": "Starting training", "evaluation": "Start inference"}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if moment == "checkpoint" and glob.glob(f"{folder}/*.pth.partial"):
            return True
        if moment == "start" or begins.get(moment, "\0") in pathlib.Path(log).read_text():
            return True
        time.sleep(0.001)
    raise TimeoutError(moment)


def train(words, folder, send=None, moment="", delay=0.0, rank=None, **more):
    """Run a training, and send it a signal.

    Args:
        words: the command line.
        folder: OUTPUT_DIR.
        send: a signal's name; None for none; "a full disk" for that.
        moment: see :func:`until`.
        delay: at most so many seconds later, at random.
        rank: that gets the signal; None for all.
        more: of :func:`be_a_training`.
    """
    ranks = more.get("ranks", 1)
    log = f"{more.get('log') or folder}.{time.monotonic_ns()}.log"
    pathlib.Path(log).touch()
    pids = []
    for i in range(ranks):
        pid = os.fork()
        if pid == 0:
            be_a_training(words, log, i, ranks, more.get("largest_file"), more.get("break_at"))
        pids.append(pid)
    sent, start = False, 0.0
    if send and until(moment, folder, log, pids):
        time.sleep(random.random() * delay)
        start = time.monotonic()
        if send == "a full disk":
            fill_disk(os.path.dirname(folder))
        for i, pid in enumerate(pids):
            if rank in (None, i) and send != "a full disk":
                os.kill(pid, getattr(signal, send))
        sent = True
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    seconds = time.monotonic() - start if sent else 0.0
    return {"codes": codes, "sent": sent, "seconds": seconds, "log": pathlib.Path(log).read_text()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    random.seed(int(sys.argv[1]))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(train(**json.loads(line))), file=out, flush=True)
