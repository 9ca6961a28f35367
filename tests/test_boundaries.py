"""What may import what, and how large a file may be: read from the source, not run."""

import ast
import pathlib

import pytest
from conftest import REPOSITORY

PACKAGE = pathlib.Path(REPOSITORY) / "tde_det"
FILES = sorted(PACKAGE.rglob("*.py"))
# Plain PyTorch: each part may import itself, these, and nothing else of the package.
PURE = ("classifiers", "losses", "adjustments", "activations", "class_counts", "distributed")
# What data/ and inference/ must not know.
METHOD = ("losses", "adjustments", "classifiers", "modeling", "evaluation", "engine")
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
EVERY_FILE = pytest.mark.parametrize("name", NAMES)


def tree(name):
    return ast.parse((PACKAGE / name).read_text())


def part_of(name):
    """``losses/base.py`` → ``losses``; ``activations.py`` → ``activations``."""
    return name.split("/")[0].removesuffix(".py")


def imported(name, source=None):
    """Absolute dotted names of all that a file imports, inside functions too.

    >>> sorted(imported("losses/base.py", "import a.b, c\\nfrom ..class_counts import Counts"))
    ['a.b', 'c', 'tde_det.class_counts.Counts']
    >>> sorted(imported("errors.py", "from . import data\\nfrom torch import nn"))
    ['tde_det.data', 'torch.nn']
    """
    package = ["tde_det", *name.split("/")[:-1]]
    found = set()
    for node in ast.walk(ast.parse(source) if source else tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def own_parts(name):
    """The parts of this package that a file imports; tde_det itself is ``""``."""
    names = [n.split(".") for n in imported(name)]
    return {parts[1] if len(parts) > 1 else "" for parts in names if parts[0] == "tde_det"}


@pytest.mark.parametrize("name", [name for name in NAMES if part_of(name) in PURE])
def test_pure_parts_import_nothing_above_them(name):
    assert not {n for n in imported(name) if n.split(".")[0] in ("detectron2", "fvcore")}
    assert own_parts(name) <= set(PURE)


def test_the_order_among_the_pure_parts():
    for name in NAMES:
        allowed = {
            "classifiers": {"classifiers"},
            "losses": {"losses", "class_counts", "distributed"},
            "adjustments": {*PURE} - {"losses"},
            "activations": set(),
            "class_counts": set(),
            "distributed": set(),
        }
        if part_of(name) in allowed:
            assert own_parts(name) <= allowed[part_of(name)], name


@pytest.mark.parametrize("name", [n for n in NAMES if part_of(n) in ("data", "inference")])
def test_data_and_inference_do_not_know_the_method(name):
    assert not own_parts(name) & {*METHOD, ""}


@pytest.mark.parametrize("name", [name for name in NAMES if part_of(name) in PURE])
def test_pure_parts_name_arguments_in_their_errors(name):
    """Neither config keys nor flags of the command line."""
    raises = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Raise)]
    for node in raises:
        assert isinstance(node.exc, (ast.Call, ast.Name)), ast.unparse(node)
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        assert ast.unparse(kind) in ("ValueError", "NotImplementedError"), ast.unparse(node)
        for text in ast.walk(node):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                assert "MODEL." not in text.value and "DATASETS." not in text.value
                assert "--" not in text.value


@EVERY_FILE
def test_no_functions_are_rebound(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            banned = ("FunctionType", "MethodType", "__code__", "__globals__", "__closure__")
            assert node.attr not in banned
        if isinstance(node, ast.ImportFrom):
            assert not {alias.name for alias in node.names} & {"FunctionType", "MethodType"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            # Attributes are set on the object itself or on a copy of it, under a listed name.
            assert ast.unparse(node.args[0]) in ("self", "other"), ast.unparse(node)


def tensor_names(function):
    """Arguments and variables of a function that are annotated as tensors."""
    names = {
        a.arg
        for a in [*function.args.args, *function.args.kwonlyargs]
        if a.annotation is not None and ast.unparse(a.annotation).endswith("Tensor")
    }
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Tensor":
            names.add(ast.unparse(node.target))
    return names


@EVERY_FILE
def test_tensors_get_no_attributes(name):
    functions = [n for n in ast.walk(tree(name)) if isinstance(n, ast.FunctionDef)]
    for function in functions:
        tensors = tensor_names(function)
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute):
                    assert ast.unparse(target.value) not in tensors, ast.unparse(node)


@EVERY_FILE
def test_sizes(name):
    assert len((PACKAGE / name).read_text().splitlines()) <= 300
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 150, node.name
