"""The process that SLURM's ``srun`` has started, from its environment variables.

``srun`` starts one process, a task, for each GPU, and says which one it is in ``SLURM_PROCID`` and
the like: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

import re
from typing import List, Mapping, NamedTuple, Optional

from ..errors import InputError

_PORTS = range(15000, 25000)  # below those that systems give to outgoing connections
_NO_TASKS = 2**32 - 6  # from here on, the "steps" of sbatch's script and of salloc's shell


class Task(NamedTuple):
    """A process among those of a step.

    Attributes:
        rank, world_size: among all.
        local_rank, local_size: on its node.
        address, port: where rank 0 waits for the others.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes.

    >>> [first_host(nodes) for nodes in ("node[003-005,9]", "a1,b2", "gpu-1-[2,4]", "r[1-2]n[07]")]
    ['node003', 'a1', 'gpu-1-2', 'r1n07']

    Raises:
        ValueError: it is no such list.
    """
    first = re.match(r"([\w.-]|\[\d+(-\d+)?(,\d+(-\d+)?)*\])+(?=,|$)", nodes)
    if first is None:
        raise ValueError("it is no list of nodes, such as node[003-005,9]")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def tasks_of_nodes(counts: str) -> List[int]:
    """How many tasks each node has.

    >>> tasks_of_nodes("2(x3),1")
    [2, 2, 2, 1]

    Raises:
        ValueError: the text is of another form.
    """
    found: List[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"([1-9]\d*)(?:\(x(\d{1,6})\))?", part)
        if match is None:
            raise ValueError("it gives no tasks of nodes, such as 2(x3),1")
        found += [int(match[1])] * int(match[2] or 1)
    return found


class _Variables:
    """Environment variables, whose errors name them."""

    def __init__(self, environ: Mapping[str, str]):
        self._environ = environ

    def read(self, parse, *names: str):
        """The first of some variables that is set, parsed."""
        for name in names:
            if name in self._environ:
                try:
                    return parse(self._environ[name])
                except ValueError as error:
                    value = self._environ[name]
                    raise InputError(f"{name} is {value!r}: {error}") from None
        raise InputError(f"srun sets SLURM_PROCID and {names[0]}, but only the first is there")


def _natural(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError("it must be a whole number from 0")
    return int(text)


def _port(text: str) -> int:
    if not 0 < _natural(text) < 2**16:
        raise ValueError("it must be a port, from 1 to 65535")
    return int(text)


def slurm_task(environ: Mapping[str, str]) -> Optional[Task]:
    """Which of several tasks this process is; None if ``srun`` has not started several.

    The script of ``sbatch`` and the shell of ``salloc`` are no tasks of ``srun``, whatever
    ``SLURM_NTASKS`` is in them. ``MASTER_ADDR`` and ``MASTER_PORT`` replace the first node and the
    port that the job's number gives.

    Raises:
        InputError: a variable is missing or wrong, or the nodes' tasks are not as many, or not
            numbered one node after the other.
    """
    if "SLURM_PROCID" not in environ or not any(key.startswith("SLURM_STEP") for key in environ):
        return None
    read = _Variables({"SLURM_STEP_ID": "0", **environ}).read
    step = read(_natural, "SLURM_STEP_ID")
    if step >= _NO_TASKS:
        return None
    world_size = read(_natural, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if world_size <= 1:
        return None
    rank, local_rank = read(_natural, "SLURM_PROCID"), read(_natural, "SLURM_LOCALID")
    per_node = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
    nodes = read(tasks_of_nodes, *per_node)
    if len({*nodes}) > 1 or world_size % nodes[0] or rank >= world_size:
        raise InputError(
            f"task {rank} of {world_size}, {', '.join(map(str, nodes))} on the nodes: give every "
            "node as many, such as by srun --ntasks-per-node 8"
        )
    if local_rank != rank % nodes[0]:
        raise InputError(
            f"SLURM_PROCID {rank} has SLURM_LOCALID {local_rank}: number the tasks one node after "
            "the other, by srun --distribution=block"
        )
    if "MASTER_ADDR" in environ:
        address = environ["MASTER_ADDR"]
    else:
        address = read(first_host, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    if "MASTER_PORT" in environ:
        port = read(_port, "MASTER_PORT")
    else:  # steps that run side by side must not meet
        port = _PORTS[(read(_natural, "SLURM_JOB_ID", "SLURM_JOBID") + step) % len(_PORTS)]
    return Task(rank, world_size, local_rank, nodes[0], address, port)
