"""Detectron2's dataset mapper, with an answer to image files that cannot be read."""

import logging
from typing import Any, Dict, Optional

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import InputError

logger = logging.getLogger(__name__)


class TolerantMapper(DatasetMapper):
    """In training a damaged image is skipped with a warning, in inference it is an error.

    Losing one of 100,000 images harms a training less than stopping it overnight. An evaluation
    without one of its images would be wrong, and so would a training whose files are not there.
    """

    def __call__(self, dataset_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        path = dataset_dict["file_name"]
        try:
            return super().__call__(dataset_dict)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist, though the annotations list it") from None
        except (OSError, SizeMismatchError) as error:
            if not self.is_train:
                raise InputError(f"{path} cannot be used: {error}") from error
            logger.warning("skipped %s: %s", path, error)
            return None  # Detectron2 draws another image
