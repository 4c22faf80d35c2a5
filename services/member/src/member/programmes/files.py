"""Programme files: YAML as people write it, read into the plain JSON values of a definition."""

from pathlib import Path

import yaml

LARGEST_FILE = 4 * 1024 * 1024


class ProgrammeFileUnreadable(Exception):
    """A programme file cannot be read; the sentence names the file and the line."""


class _Loader(yaml.SafeLoader):
    """YAML without its surprises: a key given twice is a fault, and a date stays the text it was."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    found: dict[object, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a text", problem_mark=key_node.start_mark)
        if key in found:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def read_definition(path: Path) -> object:
    """The definition in a YAML (or JSON) file, unchecked. Raises ProgrammeFileUnreadable."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ProgrammeFileUnreadable(f"{path} is larger than {LARGEST_FILE // 1024 // 1024} MiB: it is not a programme.")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ProgrammeFileUnreadable(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ProgrammeFileUnreadable(f"{path} is not UTF-8 text.") from error
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise ProgrammeFileUnreadable(f"{place}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ProgrammeFileUnreadable(f"{path} is not YAML: {error}.") from error
