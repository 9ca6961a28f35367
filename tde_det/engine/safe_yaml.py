"""Yaml configs of strangers: values alone, no tags that run something, no files written."""

import yaml
from detectron2.config import CfgNode

from ..errors import InputError
from .download import check_address, is_address


class _Config(CfgNode):
    @classmethod
    def _open_cfg(cls, filename: str):
        if is_address(filename):
            check_address(filename)
        return super()._open_cfg(filename)


def check_yaml(path: str) -> None:
    """Read a yaml config, and its ``_BASE_`` files, as values alone.

    Detectron2 goes on with ``yaml.unsafe_load`` where this fails, unless it is told not to.

    Raises:
        InputError: it holds a tag that could run something, or is no yaml.
    """
    try:
        _Config.load_yaml_with_base(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        place, mark = error.problem or "", error.problem_mark
        tag = place.rpartition("tag:yaml.org,2002:")[2].strip("'") if "tag:" in place else ""
        if not tag:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from error
        line = f"{mark.name}, line {mark.line + 1}" if mark else path
        raise InputError(
            f"{line}: the tag !!{tag} is not read, since it could run a program: write the value "
            "itself in its place"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
