"""Packaging of ridurre. Dependencies are listed in requirements.txt, the version in the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# Held to one series: a newer one may find fault with unchanged code.
LINTERS = ["ruff==0.17.*", "mypy==2.4.*"]
# What `ridurre.export` needs beyond TensorFlow: what converts, and what runs the files.
ONNX = ["onnx", "onnxruntime", "tf2onnx"]
OPENVINO = ["openvino"]
LITERT = ["ai-edge-litert"]
REPORT = ["altair>=6", "igraph>=1", "jinja2", "vl-convert-python"]


def read(name: str) -> str:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def version() -> str:
    """Read as text: importing the package would import TensorFlow."""
    return re.search(r'^__version__ = "([^"]+)"$', read("ridurre/__init__.py"), re.MULTILINE)[1]


setup(
    name="ridurre",
    version=version(),
    description="Structured filter pruning for Keras 3 models",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="the ridurre authors",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["ridurre", "ridurre.*"]),
    py_modules=["ridurre_command"],
    package_data={"ridurre": ["py.typed"], "ridurre.reports": ["page.html", "page.js", "page.css"]},
    install_requires=read("requirements.txt").split(),
    entry_points={"console_scripts": ["ridurre = ridurre_command:main"]},
    extras_require={
        "docs": ["mkdocs==1.6.*", "mkdocs-material==9.*", "mkdocstrings[python]==1.*"],
        "example": ["matplotlib"],
        "hub": ["keras-hub"],
        "litert": LITERT,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "ray": ["ray"],
        "report": REPORT,
        "sensitivity": ["joblib", "matplotlib", "pandas"],
        "pictures": ["matplotlib"],
        "tensorboard": ["tensorboardX"],
        "test": [
            "pytest>=8",
            "pytest-xdist",
            "hypothesis",
            "matplotlib",
            "playwright",
            "ray",
            "tensorboardX",
            *LITERT,
            *ONNX,
            *OPENVINO,
            *REPORT,
            *LINTERS,
        ],  # fmt: skip
    },
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
