"""Read a config: Detectron2's defaults, ours, a file, and changes from a command line."""

import difflib
import os
from typing import Any, Iterator, List, Sequence

from detectron2.config import CfgNode, get_cfg

from ..config import add_tde_config
from ..errors import InputError
from .checks import CHECKS
from .lazy_config import is_lazy, read_lazy_config
from .safe_yaml import check_yaml


def _spell_floats(cfg: CfgNode, opts: List[str]) -> List[str]:
    """Let ``MODEL.TDE.ALPHA 0`` stand for 0.0, which the config's type check insists on."""
    spelled = list(opts)
    for i in range(0, len(opts) - 1, 2):
        node: Any = cfg
        for key in str(opts[i]).split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, float) and str(opts[i + 1]).lstrip("+-").isdigit():
            spelled[i + 1] = f"{opts[i + 1]}.0"
    return spelled


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _like(cfg: CfgNode, reason: str) -> str:
    """The key of ``cfg`` that may have been meant by one that an error calls non-existent."""
    if not reason.startswith("Non-existent"):
        return ""
    close = difflib.get_close_matches(reason.split(": ")[-1], list(_keys(cfg)), n=1)
    return f". Is it {close[0]}?" if close else ""


def _read_yaml_config(config_file: str, opts: Sequence[str]) -> CfgNode:
    for key in opts[::2]:
        if "=" in key:
            raise InputError(
                f"{key}: a yaml config is changed by KEY VALUE, such as MODEL.WEIGHTS "
                "model_final.pth; path.key=value is for a .py config"
            )
    cfg = get_cfg()
    add_tde_config(cfg)
    if config_file and not os.path.isfile(config_file):
        raise InputError(f"the config file {config_file} does not exist")
    try:
        if config_file:
            check_yaml(config_file)
            cfg.merge_from_file(config_file, allow_unsafe=False)
        cfg.merge_from_list(_spell_floats(cfg, list(opts)))
    except (AssertionError, KeyError, ValueError) as error:
        reason = str(error.args[0] if error.args else error)
        if "<class 'float'> vs. <class 'int'>" in reason:
            reason += ". Write 1.0, not 1, in a config file"
        if "MODEL.ADJUSTMENTS" in reason:
            reason += """. Write a list, such as "['norcal gamma=0.3']\""""
        if "\n" in reason and "config key: " in reason:  # the whole node
            reason = f"{reason.split('config key: ')[-1]} is a section with keys, not a value"
        raise InputError(f"config: {reason}{_like(cfg, reason)}") from error
    except (AttributeError, TypeError) as error:
        raise InputError(f"{config_file} is no mapping of keys to values") from error
    except RecursionError as error:
        raise InputError(f"{config_file} is a _BASE_ of itself") from error
    except OSError as error:
        raise InputError(f"{config_file}: {error}") from error
    if is_lazy(cfg):
        raise InputError(
            f"{config_file or 'config'} sets LAZY_CONFIG.FILE, which names a program: give "
            f"{cfg.LAZY_CONFIG.FILE} itself as --config-file, if you trust it"
        )
    return cfg


def read_config(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Merge Detectron2's defaults, ours, a config file and changes to it.

    Args:
        config_file: yaml file or ``.py`` LazyConfig; "" for none.
        opts: keys and values in turn, such as ``["MODEL.WEIGHTS", "model_final.pth"]``; for a
            LazyConfig overrides, such as ``["train.init_checkpoint=model_final.pth"]``.

    Raises:
        InputError: the config file does not exist, or a key or value is wrong.
    """
    if config_file.endswith(".py"):
        cfg = read_lazy_config(config_file, opts)
    else:
        cfg = _read_yaml_config(config_file, opts)
    for check in CHECKS["read"]:
        check(cfg)
    return cfg
