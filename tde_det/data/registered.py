"""Registered data sets: as tables where their dicts come from an LVIS-format json."""

from typing import Any, Dict, List, Optional, Union

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.utils.file_io import PathManager

from .lvis_table import LvisTable


def table_of(name: str) -> Optional[LvisTable]:
    """The table of a registered data set, if its metadata says that its dicts are those of a json.

    That is: if :func:`register_lvis_json` has registered it, or if its metadata has a ``json_file``
    and the ``evaluator_type`` "lvis", as Detectron2's ``register_lvis_instances`` sets them.

    Raises:
        InputError: the data set's json cannot be used.
    """
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    if metadata.get("lvis_table") is not None:
        return metadata.lvis_table
    if metadata.get("evaluator_type") != "lvis" or not metadata.get("json_file"):
        return None
    metadata.set(**get_lvis_instances_meta(name))  # as load_lvis_json does
    return LvisTable(PathManager.get_local_path(metadata.json_file), metadata.image_root, name)


def registered_dataset(name: str) -> Union[LvisTable, List[Dict[str, Any]]]:
    """The dicts of ``DatasetCatalog.get(name)``, as a table where there is one."""
    table = table_of(name)
    return DatasetCatalog.get(name) if table is None else table


def image_files(name: str) -> List[str]:
    """The path of every image of a registered data set."""
    dataset = registered_dataset(name)
    if isinstance(dataset, LvisTable):
        return dataset.file_names()
    return [record["file_name"] for record in dataset]
