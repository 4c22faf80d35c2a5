"""Makes one layer of an image, the same bytes whenever it is made: `layer.py LAYER [BELOW…]`.

In goes what the environment /app/venv holds and the layers BELOW do not, or what lies in the folder that `--root` names. Left out is what
is never run: commands of other people's packages, their tests, sources of compiled modules. Every module is compiled, for the root file
system is read-only and nothing could be kept at run time; with `--library` also those of Python's own library that the base image has not
compiled. Every file gets the time of SOURCE_DATE_EPOCH and plain rights.
"""

import argparse
import os
import py_compile
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

VENV = Path("/app/venv")
# Commands that are kept: the interpreter, and our own.
COMMANDS = {"python", "python3", "python3.11", "regulars"}
# What installers leave that says when or from where they installed.
TRACES = {"uv_cache.json", "direct_url.json", "REQUESTED"}
SOURCES = {".c", ".h", ".pyx", ".pxd", ".pxi", ".pyi", ".cpp", ".hpp", ".proto", ".a"}
TEST_FOLDERS = {"test", "tests"}
# Of Python's own library: what no service comes by.
NOT_RUN = {"ensurepip", "idlelib", "lib2to3", "site-packages", "dist-packages", "tkinter", "turtledemo", "pydoc_data", *TEST_FOLDERS}


def main(arguments: Sequence[str]) -> None:
    """Fills the folder LAYER."""
    parser = argparse.ArgumentParser(prog="layer.py")
    parser.add_argument("layer", type=Path)
    parser.add_argument("below", type=Path, nargs="*")
    parser.add_argument("--library", action="store_true")
    parser.add_argument("--root", type=Path)
    chosen = parser.parse_args(arguments)
    layer: Path = chosen.layer
    for path in wanted(VENV) if chosen.root is None else everything(chosen.root):
        name = path if chosen.root is None else path.relative_to(chosen.root)
        if not any(os.path.lexists(inside(below, name)) for below in chosen.below):
            copy(path, inside(layer, name))
    for path in layer.rglob("*.dist-info/RECORD"):
        keep_records(path)
    for path in sorted(layer.rglob("*.py")):
        compile_module(path, inside(Path("/"), path.relative_to(layer)), path)
    if chosen.library:
        library = Path(sysconfig.get_path("stdlib"))
        for path in sorted(library.rglob("*.py")):
            if NOT_RUN.isdisjoint(path.relative_to(library).parts) and not cached(path).exists():
                compile_module(path, path, inside(layer, path))
    settle(layer, int(os.environ["SOURCE_DATE_EPOCH"]))


def inside(root: Path, path: Path) -> Path:
    """`path` as it is called below another root."""
    return root / str(path).lstrip("/")


def wanted(folder: Path) -> Iterator[Path]:
    """Every file and link that an image has a use for."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_left_out = (
            (path.is_dir() and not path.is_symlink())
            or (parts[0] == "bin" and path.name not in COMMANDS)
            or path.name in TRACES
            or path.suffix in SOURCES
            or not TEST_FOLDERS.isdisjoint(parts[:-1])
            or "__pycache__" in parts
        )
        if not is_left_out:
            yield path


def everything(folder: Path) -> Iterator[Path]:
    """Every file and link."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def copy(path: Path, to: Path) -> None:
    """As it is: a link as a link."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, to, follow_symlinks=False)


def keep_records(record: Path) -> None:
    """Of the list of a package's files, those that are in the layer."""
    packages = record.parent.parent
    lines = record.read_text("utf-8").splitlines(keepends=True)
    # A name with a comma is quoted; such a file is no module, and its line is no loss.
    record.write_text("".join(line for line in lines if os.path.lexists(packages / line.partition(",")[0])), "utf-8")


def cached(path: Path) -> Path:
    """Where Python looks for the compiled module."""
    return path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"


def compile_module(source: Path, name: Path, beside: Path) -> None:
    """Compiles `source`, which tracebacks call `name`, as the module `beside`. A few are no modules, such as templates: these are left."""
    target = cached(beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Nothing changes in an image, so that no start need look whether it did.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), cfile=str(target), dfile=str(name), doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError:
        print(f"not compiled: {name}")


def settle(layer: Path, moment: int) -> None:
    """The rights and the time of everything in the layer."""
    for path in (layer, *layer.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # Folders last: what is done in them changes their time.
    for path in sorted((layer, *layer.rglob("*")), key=lambda path: len(path.parts), reverse=True):
        os.utime(path, (moment, moment), follow_symlinks=False)


if __name__ == "__main__":
    main(sys.argv[1:])
