"""The command line that the tools share. Imports nothing heavy, so that ``--help`` answers at once.

    tool.py --config-file FILE [options of the tool] [KEY VALUE ...]

KEY VALUE pairs, such as ``MODEL.WEIGHTS model_final.pth``, change the config. They may
stand anywhere. A ``.py`` config is changed by ``path.key=value`` instead, such as
``train.init_checkpoint=model_final.pth``.
"""

import argparse
import functools
import logging
import os
import re
import sys
import warnings
from typing import Any, Callable, List, Optional, Sequence

from .errors import InputError

_OVERRIDE = re.compile(r"\+?[a-z_]\w*(\.\w+)+=.*", re.DOTALL)  # of a LazyConfig
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|SEED|OUTPUT_DIR|VIS_PERIOD|CUDNN_BENCHMARK")

# What Detectron2, PyTorch and lvis-api say of each other at every start.
warnings.filterwarnings("ignore", r".*torch\.(jit|cuda\.amp)\..* is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
warnings.filterwarnings("ignore", "Detected pickle protocol")
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
for _name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension", "lvis.results"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def make_plain_parser(doc: Optional[str], example: str) -> argparse.ArgumentParser:
    """A parser of a tool without a config.

    Args:
        doc: the tool's docstring.
        example: a command line, shown at the end of the help.
    """
    return argparse.ArgumentParser(
        description=doc,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_parser(
    doc: Optional[str], example: str, config_file: Optional[str] = None
) -> argparse.ArgumentParser:
    """A parser of a tool with a config: ``--config-file`` and, for :func:`parse_args`, KEY VALUE.

    Args:
        doc, example: see :func:`make_plain_parser`.
        config_file: the default, "" for none; None if the user must name one.
    """
    parser = make_plain_parser(doc, example)
    parser.epilog = (
        f"{parser.epilog}\n\nKEY VALUE pairs change a yaml config, path.key=value a .py config."
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=config_file,
        required=config_file is None,
        help="yaml file or .py LazyConfig, see configs/"
        + (f" (default: {os.path.basename(config_file)})" if config_file else ""),
    )
    return parser


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's options for several processes; torchrun and srun need none of them."""
    group = parser.add_argument_group("several GPUs or machines (torchrun and srun work too)")
    group.add_argument("--num-gpus", type=int, default=1, help="per machine (default: 1)")
    group.add_argument("--num-machines", type=int, default=1, help="default: 1")
    group.add_argument("--machine-rank", type=int, default=0, help="of this machine (default: 0)")
    group.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")


def parse_args(
    parser: argparse.ArgumentParser, words: Optional[Sequence[str]] = None
) -> argparse.Namespace:
    """Parse a command line; its KEY VALUE pairs, or ``path.key=value``, are in ``opts``."""
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    parser.usage = f"{usage} [KEY VALUE ...]".replace("%", "%%")
    words = sys.argv[1:] if words is None else words
    opts: List[str] = []
    others: List[str] = []
    i = 0
    while i < len(words):
        if _KEY.fullmatch(words[i]):
            if i + 1 == len(words):
                parser.error(f"{words[i]} has no value")
            opts += words[i : i + 2]
            i += 2
        elif _OVERRIDE.fullmatch(words[i]):
            opts.append(words[i])
            i += 1
        else:
            others.append(words[i])
            i += 1
    args = parser.parse_args(others)
    args.opts = opts
    return args


def exit_on_input_error(main: Callable) -> Callable:
    """Make ``main`` end the program with the message of a :class:`InputError` alone."""

    @functools.wraps(main)
    def wrapped(*args: Any) -> Any:
        try:
            return main(*args)
        except InputError as error:
            sys.exit(f"error: {error}")

    return wrapped
