"""Processes that ``srun`` starts, from its environment variables."""

import argparse
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from tde_det.engine import launch
from tde_det.engine.slurm import Task, first_host, slurm_task, tasks_of_nodes
from tde_det.errors import InputError

# Of task 5 of 8, on the second of two nodes; what a step has besides is left out.
STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu-[007-008]",
    "SLURM_JOB_NODELIST": "gpu-[001-008]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


def without(*names):
    return {key: value for key, value in STEP.items() if key not in names}


def test_task_of_a_step():
    task = slurm_task(STEP)
    assert task == Task(5, 8, 1, 4, "gpu-007", task.port)
    assert 1024 < task.port < 32768  # beyond, Linux gives ports to whoever asks
    assert slurm_task({**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == task.port
    for key, value in (("SLURM_JOB_ID", "1234568"), ("SLURM_STEP_ID", "1")):
        assert slurm_task({**STEP, key: value}).port != task.port
    assert slurm_task(without("SLURM_STEP_NODELIST")).address == "gpu-001"
    named = slurm_task({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert named == Task(5, 8, 1, 4, "10.0.0.1", 29500)
    per_node = {**without("SLURM_STEP_TASKS_PER_NODE"), "SLURM_NTASKS_PER_NODE": "4"}
    assert slurm_task(per_node) == task


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # The script of sbatch, and a shell of salloc on the login node.
        {**without("SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")},
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "a"},
        {**STEP, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # salloc's shell on a node: its own step has one task, the job has eight.
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"},
    ],
)
def test_no_tasks(environ):
    assert slurm_task(environ) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x': it must be a whole number"),
        ({"SLURM_NTASKS": "-2"}, "SLURM_NTASKS is '-2'"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is ''"),
        ({"SLURM_JOB_ID": "1_2"}, "SLURM_JOB_ID is '1_2'"),
        ({"SLURM_STEP_ID": "batch"}, "SLURM_STEP_ID is 'batch'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000': it must be a port"),
        ({"MASTER_PORT": "tcp"}, "MASTER_PORT is 'tcp'"),
        ({"SLURM_STEP_NODELIST": "gpu-[1"}, r"NODELIST is 'gpu-\[1': it is no list of nodes"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is ''"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4x2"}, "TASKS_PER_NODE is '4x2': .*such as"),
        ({"SLURM_STEP_TASKS_PER_NODE": "0(x2)"}, "TASKS_PER_NODE is '0"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}, "4, 4, 1 on the nodes: give every node as many"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "as many"),
        ({"SLURM_PROCID": "8", "SLURM_LOCALID": "0"}, "task 8 of 8"),
        ({"SLURM_LOCALID": "2"}, "--distribution=block"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(InputError, match=message):
        slurm_task({**STEP, **change})


@pytest.mark.parametrize(
    "name", ["SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_TASKS_PER_NODE"]
)
def test_missing_values(name):
    with pytest.raises(InputError, match="srun sets SLURM_PROCID and SLURM_.*only the first"):
        slurm_task(without(name))


def naive_hosts(prefix, ranges):
    """All hosts, by going through the ranges."""
    found = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        found += [f"{prefix}{i:0{len(low)}}" for i in range(int(low), int(high or low) + 1)]
    return found


def test_lists_of_nodes():
    for ranges in ("003-005,9", "2,4", "10", "0-1", "098-101,007"):
        hosts = naive_hosts("n-1a", ranges)
        assert first_host(f"n-1a[{ranges}]") == hosts[0]
        assert first_host(f"n-1a[{ranges}],z9") == hosts[0]
        assert first_host(",".join(hosts)) == hosts[0]
    assert first_host("tux.cluster.org") == "tux.cluster.org"
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1] and tasks_of_nodes("8") == [8]
    for bad in ("", ",a", "a[", "a[]", "a[1-]", "a b", "a[x]", "[1"):
        with pytest.raises(ValueError, match="no list of nodes"):
            first_host(bad)
    for bad in ("", "2(x3", "2,", "x", "2(x)", "-1", "1(x99999999)"):
        with pytest.raises(ValueError, match="no tasks of nodes"):
            tasks_of_nodes(bad)


PROGRAM = """
import argparse, json
import torch, torch.distributed as dist
from detectron2.utils import comm
from tde_det.engine import launch_cli

def main(args):
    total = torch.ones(1)
    if dist.is_initialized():
        dist.all_reduce(total)
    print(json.dumps([comm.get_rank(), comm.get_world_size(), comm.get_local_rank(),
                      comm.get_local_size(), total.item()]))

if __name__ == "__main__":
    options = dict(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    launch_cli(main, argparse.Namespace(**options))
"""


def on_localhost():
    """A job with two tasks on this machine, whose port is free."""
    for job in range(os.getpid(), os.getpid() + 100):
        step = {**STEP, "SLURM_JOB_ID": str(job), "SLURM_NTASKS": "2"}
        step.update(SLURM_STEP_NODELIST="localhost", SLURM_STEP_TASKS_PER_NODE="2")
        with socket.socket() as free:
            if free.connect_ex(("localhost", slurm_task({**step, "SLURM_PROCID": "1"}).port)):
                return step
    raise AssertionError("all ports are taken")


def test_two_tasks(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {**os.environ, "PYTHONPATH": REPOSITORY, "CUDA_VISIBLE_DEVICES": "", **on_localhost()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", tmp_path / "program.py"],
            env={**environ, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, (out, err)) in enumerate(zip(processes, outputs)):
        assert process.returncode == 0, err[-3000:]
        assert json.loads(out.splitlines()[-1]) == [rank, 2, rank, 2, 2.0]


@pytest.fixture
def chosen(monkeypatch):
    """Start with some variables and options; who runs main, and in which group."""
    for key in [key for key in os.environ if key.startswith(("SLURM_", "LOCAL_", "MASTER_"))]:
        monkeypatch.delenv(key)
    found = []
    monkeypatch.setattr(launch, "_run", lambda *how: found.extend(how[2:]))
    monkeypatch.setattr(launch, "launch", lambda _, count, **__: found.extend(["launch", count]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def start(environ, num_gpus=1, gpus=0):
        found.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        options = {"num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
        with monkeypatch.context() as patch:
            for key, value in environ.items():
                patch.setenv(key, value)
            launch.launch_cli(print, argparse.Namespace(num_gpus=num_gpus, **options))
        return found

    return start


def test_which_launcher(chosen):
    """torchrun before srun before Detectron2's."""
    port = slurm_task(STEP).port
    group = {"init_method": f"tcp://gpu-007:{port}", "rank": 5, "world_size": 8}
    assert chosen(STEP) == [1, 4, group] == chosen(STEP, gpus=4)
    assert chosen(STEP, gpus=1) == [0, 1, group]  # of its own, which has number 0
    torchrun = {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    assert chosen({**STEP, **torchrun}) == [2, 3, {}] == chosen(torchrun)
    assert chosen({**STEP, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == ["launch", 1]
    script = without("SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    assert chosen(script) == ["launch", 1] and chosen(script, 2) == ["launch", 2]
    one_each = {"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}
    assert chosen({**STEP, **one_each}, 2) == ["launch", 2]
    assert chosen({**STEP, **one_each})[:2] == [0, 1]


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"SLURM_LOCALID": "a"}, {}, "error: SLURM_LOCALID is 'a'"),
        ({}, {"num_gpus": 2}, "error: srun has started 4 processes .* leave out --num-gpus"),
        ({}, {"gpus": 3}, "error: srun has started 4 processes on a machine of 3 GPUs"),
    ],
)
def test_errors_are_one_line(chosen, change, options, message):
    with pytest.raises(SystemExit, match=message):
        chosen({**STEP, **change}, **options)
