"""Loading a config: safe YAML with `_BASE_`, checked keys and values, and `KEY VALUE` overrides.

The result is a detectron2 `CfgNode` with our nodes added; `settings` turns those into the frozen
dataclasses of `configs.nodes`.

Relative paths: one by which a config file names another (`_BASE_`, `TEACHER.CONFIG`) is relative to
the file that states it, every other one to the working directory; `~` is the home folder.
"""

import contextlib
import difflib
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

import detectron2
from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version

from configs.backbones import BACKBONES
from configs.imports import OF_YOURS, failure, import_modules
from configs.nodes import FIELD_NODES, NODES, OWN_NODES, Settings
from configs.origins import OVERRIDE, Origins, place_of, remember
from configs.rules import LEAF_TYPES
from configs.safe_yaml import ConfigMapping, read_yaml
from configs.stock_keys import TEACHER, refuse_ignored, stock_config
from configs.stock_limits import LIMITS, check_limits, value_of

BASE_KEY = "_BASE_"
IMPORTS = "IMPORTS"
# Every key that may hold a path.
PATH_KEYS = (
    "CACHE.LOCATION",
    "DATASET.EXCLUDE",
    "DATASET.FOLDER",
    "DATASET.IMAGE_LIST",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "TEACHER.CONFIG",
    "TEACHER.WEIGHTS",
)
MODEL_ZOO = "model_zoo://"
# Keys of earlier versions, and where their meaning is now.
_MOVED = {"GID.COUNTS": "DISTILL.COUNTS", "GID.WARMUP_ITERS": "DISTILL.WARMUP_ITERS"}


def default_config() -> CfgNode:
    """Give detectron2's defaults with the nodes of `configs.nodes` added."""
    cfg = stock_config()
    # detectron2 builds SGD alone; training small models from scratch wants ADAMW too.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Parts in which a step runs its images, one after the other; their gradients are averaged.
    cfg.SOLVER.ACCUMULATE = 1
    # With AMP.ENABLED: float16, with scaled losses, or bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Moving average of the weights, evaluated and kept in place of them, such as 0.9998; 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # SIGUSR1 or SIGUSR2, if the scheduler sends one before it preempts: it ends a training as
    # SIGTERM does, after a whole step that is saved. Empty: none.
    cfg.SOLVER.PREEMPTION_SIGNAL = ""
    # Evaluations in a row without a better AP after which a training ends; 0: it never does.
    cfg.TEST.PATIENCE = 0
    # Sets of which only the images are known: a teacher's views of them are distilled by.
    cfg.DATASETS.UNLABELED = ()
    # The family of a detector whose class does not tell it; see `detectors.families`.
    cfg.MODEL.FAMILY = ""
    for name, keys in BACKBONES.items():
        cfg.MODEL[name] = CfgNode(deepcopy(keys))
    # Modules of the user's, imported before anything is built; see `configs.imports`.
    cfg.IMPORTS = ()
    for name, node in NODES.items():
        cfg[name] = CfgNode({item.name.upper(): item.default for item in fields(node)})
    return cfg


def load_config(path: str, overrides: Sequence[Any] = (), imports: Sequence[str] = ()) -> CfgNode:
    """Load a YAML file over the defaults, its `_BASE_` files first, then the overrides.

    The modules of IMPORTS are imported first: they may register nodes, whose keys may then stand.

    Args:
        path: the YAML file.
        overrides: KEY, VALUE, KEY, VALUE, ... as they come from a command line.
        imports: modules that the command line names by `--import`; they are added to IMPORTS.

    Returns:
        A config that may still be changed; its values are within their limits.

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        ValueError: unsafe or broken YAML, a module that cannot be imported, an unknown key, a value
            of the wrong type or outside its limits. One line that names file and line, or the key.
    """
    files = _read_with_bases(path, ())
    import_modules(*_stated_imports(files, overrides))
    import_modules(imports, "--import")
    version = _version_of(files)
    cfg = default_config()
    if version != cfg.VERSION:
        cfg = downgrade_config(cfg, to_version=version)
    origins = Origins(path=path)
    for file_path, content in files:
        _merge(cfg, content, file_path, origins)
    cfg = upgrade_config(cfg)
    _apply_overrides(cfg, overrides, origins)
    cfg.IMPORTS = tuple(dict.fromkeys((*cfg.IMPORTS, *imports)))
    remember(cfg, origins)
    _check_values(cfg)
    _expand_paths(cfg)
    return cfg


def _stated_imports(
    files: Sequence[tuple[str, ConfigMapping]], overrides: Sequence[Any]
) -> tuple[tuple[str, ...], str]:
    """Read IMPORTS before the keys are known: the value stated last, and where it is."""
    stated = [
        (content[IMPORTS], f"{path}:{content.lines[IMPORTS]}: {IMPORTS}")
        for path, content in files
        if IMPORTS in content
    ]
    pairs = zip(overrides[::2], overrides[1::2], strict=False)
    stated += [(value, f"{OVERRIDE}: {IMPORTS}") for name, value in pairs if name == IMPORTS]
    value, place = stated[-1] if stated else ((), IMPORTS)
    names, rule = _coerce(value, (), place), LIMITS[IMPORTS]
    if not rule.accepts(names):
        raise ValueError(f"{place}: expected {rule.expected}, got {names!r}")
    return names, place


def _check_values(cfg: CfgNode) -> None:
    """Hold every value, ours and detectron2's, against its limits."""
    try:
        settings(cfg)
        check_limits(cfg)
    except ValueError as error:
        key = str(error).partition(":")[0]
        raise ValueError(f"{place_of(cfg, key)}{error}") from None


def _expand_paths(cfg: CfgNode) -> None:
    for key in PATH_KEYS:
        *parents, name = key.split(".")
        node = value_of(cfg, parents[0]) if parents else cfg
        node[name] = os.path.expanduser(node[name])
    stated = cfg.TEACHER.CONFIG
    if stated and "://" not in stated:
        # Already so, unless it is an override: a saved config must find it from anywhere.
        cfg.TEACHER.CONFIG = os.path.abspath(stated)


def settings(cfg: CfgNode) -> Settings:
    """Turn the nodes of `configs.nodes` into frozen, validated dataclasses.

    Raises:
        ValueError: a value is outside its limits, or the config lacks one of our nodes.
    """
    for name in OWN_NODES:
        if name not in cfg:
            raise ValueError(f"the config has no node {name}: use configs.loader")
    # A module that only the teacher's config names registers its node after `cfg` was made.
    made = {name: _validated(node, cfg.get(name, {})) for name, node in NODES.items()}
    ours: dict[str, Any] = {name.lower(): made.pop(name) for name in FIELD_NODES}
    return Settings(**ours, others=made)


def _validated(node: type[Any], stated: Mapping[str, Any]) -> Any:
    values = {item.name: stated.get(item.name.upper(), item.default) for item in fields(node)}
    try:
        return node(**values)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{node.node}."):
            raise
        # From a check that the user wrote without `FieldChecks`.
        raise ValueError(f"{node.node}: {failure(error)}") from error


def teacher_config(cfg: CfgNode) -> CfgNode:
    """Load the config of the teacher that `cfg` names.

    Weights, device and datasets come from `cfg`, everything else from the teacher's own file. The
    modules that either names are imported. An empty TEACHER.WEIGHTS gives a teacher without
    weights, never one with the weights that its own file begins its training with.

    Args:
        cfg: of a dump or of a student.

    Raises:
        FileNotFoundError: the teacher's config does not exist.
        ValueError: TEACHER.CONFIG is empty, or the teacher's config is wrong.
    """
    path = cfg.TEACHER.CONFIG
    if not path:
        raise ValueError("TEACHER.CONFIG: expected the teacher's YAML file, got ''")
    if path.startswith(MODEL_ZOO):
        path = _model_zoo_path(path.removeprefix(MODEL_ZOO), "TEACHER.CONFIG")
    import_modules(cfg.IMPORTS, f"{place_of(cfg, IMPORTS)}{IMPORTS}")
    try:
        teacher = load_config(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"TEACHER.CONFIG: {error}") from None
    teacher.MODEL.WEIGHTS = cfg.TEACHER.WEIGHTS
    teacher.MODEL.DEVICE = cfg.MODEL.DEVICE
    teacher.DATASETS = cfg.DATASETS.clone()
    teacher.DATASET = cfg.DATASET.clone()
    teacher.IMPORTS = tuple(dict.fromkeys((*cfg.IMPORTS, *teacher.IMPORTS)))
    refuse_ignored(teacher, TEACHER)
    return teacher


def _read_with_bases(path: str, above: tuple[str, ...]) -> list[tuple[str, ConfigMapping]]:
    """Read a file and its bases, the outermost base first; `above`: the files that lead here.

    Of several bases the later one wins, with all that leads to it.
    """
    path = os.path.expanduser(path)
    real_path = os.path.realpath(path)
    if real_path in above:
        chain = " -> ".join((*above[above.index(real_path) :], real_path))
        raise ValueError(f"{path}: {BASE_KEY} leads back to itself: {chain}")
    content = read_yaml(path)
    _resolve_teacher(content, path)
    if BASE_KEY not in content:
        return [(path, content)]
    line = content.lines[BASE_KEY]
    stated = content.pop(BASE_KEY)
    files = []
    for base in stated if isinstance(stated, list) else [stated]:
        base_path = _base_path(base, f"{path}:{line}", os.path.dirname(path))
        files += _read_with_bases(base_path, (*above, real_path))
    return [*files, (path, content)]


def _base_path(base: Any, place: str, folder: str) -> str:
    """Find the file that `_BASE_` names, relative to the file that names it."""
    if not isinstance(base, str) or not base:
        raise ValueError(f"{place}: {BASE_KEY}: expected the path of a YAML file, got {base!r}")
    if base.startswith(MODEL_ZOO):
        return _model_zoo_path(base.removeprefix(MODEL_ZOO), f"{place}: {BASE_KEY}")
    if "://" in base:
        raise ValueError(f"{place}: {BASE_KEY}: expected a local file or {MODEL_ZOO}NAME: {base}")
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(base)))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{place}: {BASE_KEY}: config file {path} does not exist")
    return path


def _model_zoo_path(name: str, place: str) -> str:
    # Not detectron2.model_zoo.get_config_file: that module imports the deprecated pkg_resources.
    path = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs", name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{place}: detectron2 ships no {name}")
    return path


def _resolve_teacher(content: ConfigMapping, path: str) -> None:
    """Make TEACHER.CONFIG absolute: only here is the file known that it is relative to."""
    node = content.get("TEACHER")
    stated = node.get("CONFIG") if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(stated, str) and stated and "://" not in stated:
        beside = os.path.join(os.path.dirname(path), os.path.expanduser(stated))
        node["CONFIG"] = os.path.abspath(beside)


def _version_of(files: Sequence[tuple[str, ConfigMapping]]) -> int:
    """Give the config version that the files are written for, as detectron2 decides it."""
    latest = int(get_cfg().VERSION)
    for path, content in reversed(files):
        version = content.get("VERSION")
        if version is None:
            continue
        if not isinstance(version, int) or not 0 <= version <= latest:
            raise ValueError(f"{path}: VERSION: expected 0 to {latest}, got {version!r}")
        return version
    path, content = files[-1]
    return int(guess_version(content, path))


def _merge(
    cfg: CfgNode, content: ConfigMapping, path: str, origins: Origins, prefix: str = ""
) -> None:
    """Set what one file states in `cfg`, in place, and note where it does."""
    for key, value in content.items():
        name = prefix + key
        line = f"{path}:{content.lines[key]}"
        place = f"{line}: {name}"
        if key not in cfg:
            raise ValueError(f"{line}: {_unknown(name, key)}")
        if isinstance(cfg[key], CfgNode) != isinstance(value, ConfigMapping):
            expected = "a node with keys" if isinstance(cfg[key], CfgNode) else "a value"
            raise ValueError(f"{place}: expected {expected}, got {value!r}")
        if isinstance(value, ConfigMapping):
            _merge(cfg[key], value, path, origins, f"{name}.")
        else:
            cfg[key] = _coerce(value, cfg[key], place)
            origins.places[name] = line


def _apply_overrides(cfg: CfgNode, overrides: Sequence[Any], origins: Origins) -> None:
    """Set KEY VALUE pairs in `cfg`, in place."""
    if len(overrides) % 2:
        raise ValueError(f"overrides are pairs of KEY VALUE: {overrides[-1]} has no value")
    for name, value in zip(overrides[::2], overrides[1::2], strict=True):
        node = cfg
        *parents, key = str(name).split(".")
        for parent in parents:
            node = node.get(parent)
            if not isinstance(node, CfgNode):
                raise ValueError(f"override: {_unknown(name, key)}")
        if key not in node:
            raise ValueError(f"override: {_unknown(name, key)}")
        if isinstance(node[key], CfgNode):
            raise ValueError(f"override: {name} is a node: give one of its keys")
        node[key] = _coerce(value, node[key], f"override: {name}")
        origins.places[str(name)] = OVERRIDE


def _coerce(value: Any, default: Any, place: str) -> Any:
    """Bring a value to the type of the default it replaces, by yacs's rules.

    Text is read as a Python literal where it is one, list and tuple stand for each other, None
    matches everything but a switch. Beyond yacs, an integer stands for a float.
    """
    if isinstance(value, str):
        # Text that Python cannot read is text: `{[]: 1}` has no hash, and 3000 dashes no end.
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = literal_eval(value)
    is_unset = value is None and type(default) is not bool
    if isinstance(value, LEAF_TYPES):
        if type(value) is type(default) or is_unset or default is None:
            return value
        if isinstance(value, tuple | list) and isinstance(default, tuple | list):
            return type(default)(value)
        if type(default) is float and type(value) is int:
            with contextlib.suppress(OverflowError):  # refused below
                return float(value)
    got = f"{value!r} ({type(value).__name__})"
    example = default if default != () else ("NAME",)
    raise ValueError(f"{place}: expected {type(default).__name__}, such as {example!r}, got {got}")


def _unknown(name: str, key: str) -> str:
    """Word the error for an unknown key, with its new name or the nearest known one."""
    if name in _MOVED:
        return f"the config key {name} is now {_MOVED[name]}"
    cfg = default_config()
    known = list(_names(cfg))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    near = near or [other for other in known if other.rsplit(".", 1)[-1] == key]
    hint = f", did you mean {near[0]}?" if near else ""
    if name.partition(".")[0] not in cfg:
        hint += f" {OF_YOURS}"
    return f"unknown config key {name}{hint}"


def _names(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _names(value, f"{prefix}{key}.")
