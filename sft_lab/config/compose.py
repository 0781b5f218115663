"""Configs: files and overrides merged key by key into one, each value's origin kept for errors."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.errors import RequestError
from sft_lab.paths import find_config


def best_precision() -> str:
    """Return bf16-mixed where the machine computes bf16 natively, else 32-true.

    A CPU without AVX512-BF16 or AMX emulates bf16 fifteen times slower than it computes float32.
    """
    import torch  # seconds to import, and most configs are read without it

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def best_optimizer() -> str:
    """Return paged_adamw_8bit where there is CUDA, else adamw."""
    import torch

    return "paged_adamw_8bit" if torch.cuda.is_available() else "adamw"


_UNSET = re.compile(r"Environment variable '([^']+)' not found")
# Among them a number of 5,000 digits, a ValueError, and 1,000 brackets, a RecursionError.
_NOT_YAML = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)
_OF_MACHINE = {"best_precision": best_precision, "best_optimizer": best_optimizer}
for _name, _resolver in _OF_MACHINE.items():
    OmegaConf.register_resolver(_name, _resolver)


@contextmanager
def without_machine() -> Iterator[None]:
    """Resolve what depends on the machine to its value on a plain CPU, so that torch can wait."""
    plain = {"best_precision": "32-true", "best_optimizer": "adamw"}
    for name, value in plain.items():
        OmegaConf.register_resolver(name, lambda value=value: value, replace=True)
    try:
        yield
    finally:
        for name, resolver in _OF_MACHINE.items():
            OmegaConf.register_resolver(name, resolver, replace=True)


@dataclass
class Composed:
    """A merged config, not yet resolved, and where each of its values was written.

    Attributes:
        config: The merged values.
        origins: ``file, line n`` by dotted key.
    """

    config: DictConfig = field(default_factory=lambda: OmegaConf.create({}))
    origins: dict[str, str] = field(default_factory=dict)

    def merge_file(self, path: str) -> None:
        """Merge a config file over what is there.

        A group that is a file name, ``trainer: ../trainer.yaml``, is replaced by that file;
        its name is relative to the referring file. A key may be dotted, ``data.k: 1/4``.

        Raises:
            RequestError: If a file is missing or is not YAML.
        """
        file = find_config(path)
        values, origins = _read(file)
        for key, value in values.items():
            # A key that YAML merges in (<<) is written elsewhere in the file.
            self._set(key, value, file.parent, origins.get(key, str(file)))
        self.origins |= origins

    def override(self, key: str, value: str) -> None:
        """Set one dotted key, as the command line does; its neighbours stay.

        Raises:
            RequestError: If the value is not YAML, or the key points past the end of a list.
        """
        where = f"--{key}"
        self.origins = {k: v for k, v in self.origins.items() if not k.startswith(f"{key}.")}
        self.origins[key] = where
        self._set(key, _parse(value, where), Path(), where)

    def append(self, key: str, value: str) -> None:
        """Add an entry to a list: ``--trainer.callbacks+=my.Callback``.

        Raises:
            RequestError: If the value is not YAML.
        """
        where = f"--{key}+"
        entry = _parse(value, where)
        if isinstance(entry, str):
            entry = {"class_path": entry}
        old = OmegaConf.to_container(self.config)
        for part in key.split("."):
            old = old.get(part) if isinstance(old, Mapping) else None
        entries = old if isinstance(old, list) else [] if old is None else [old]
        self.origins[key] = where
        self._set(key, [*entries, entry], Path(), where)

    def override_last(self, key: str, value: str) -> None:
        """Set an argument of the entry that was appended last: ``--trainer.callbacks.step=3``."""
        above, _, name = key.rpartition(".")
        container = above.removesuffix(".init_args")
        last = len(OmegaConf.select(self.config, container)) - 1
        self.override(f"{container}.{last}.init_args.{name}", value)

    def _set(self, key: str, value: Any, folder: Path, where: str) -> None:
        if "." not in key and isinstance(value, list) and any(map(_is_file, value)):
            for part in value:
                self._set(key, part, folder, where)
            return
        if "." not in key and _is_file(value):
            shared = folder / value
            if not shared.is_file():
                raise RequestError(
                    f"{where}: {key} refers to {value}, but {shared} does not exist."
                )
            value, origins = _read(shared)
            self.origins |= {f"{key}.{inner}": origin for inner, origin in origins.items()}
        for part in reversed(key.split(".")):
            value = {part: value}
        try:
            merged = _merged(OmegaConf.to_container(self.config), value)
            self.config = OmegaConf.create(merged)
        except (*_NOT_YAML, IndexError) as fault:
            reason = str(fault).splitlines()[0]
            raise RequestError(f"{where}: {key} cannot be set: {reason}.") from fault

    def resolved(self) -> dict[str, Any]:
        """Return plain values with every ``${...}`` filled in.

        Raises:
            RequestError: If an interpolation points to nothing.
        """
        try:
            plain = OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)
        except (OmegaConfBaseException, RecursionError) as fault:
            key = str(getattr(fault, "full_key", "") or "")
            reason = str(fault).splitlines()[0].rstrip(".")
            if unset := _UNSET.search(reason):
                raise RequestError(
                    f"{self.where(key)} needs the environment variable {unset[1]}, which is not "
                    f"set; export {unset[1]}=VALUE, or override the key."
                ) from fault
            raise RequestError(f"{self.where(key)}: {reason}.") from fault
        return {str(key): value for key, value in cast(dict[Any, Any], plain).items()}

    def where(self, key: str) -> str:
        """Return a key after the place it was written at, or alone where a flag gave it."""
        origin = self.origin(key)
        return f"--{key}" if origin == f"--{key}: " else f"{origin}{key}"

    def origin(self, key: str) -> str:
        """Return "file, line n: " of a key, or the nearest above it; nothing for a default.

        An object whose class a flag has chosen comes from that flag.
        """
        if self.origins.get(f"{key}.class_path", "").startswith("--"):
            return f"{self.origins[f'{key}.class_path']}: "
        while key:
            if key in self.origins:
                return f"{self.origins[key]}: "
            key = key.rpartition(".")[0]
        return ""


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def _merged(old: Any, new: Any) -> Any:
    """Return ``new`` laid over ``old`` key by key; keys of digits count the items of a list."""
    if isinstance(old, list) and isinstance(new, Mapping) and all(str(k).isdigit() for k in new):
        items = list(old)
        for index, value in new.items():
            items[int(index)] = _merged(items[int(index)], value)
        return items
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or _is_other_kind(old, new):
        return new
    if old and not new:
        raise ValueError(f"{{}} changes nothing of {{{', '.join(map(str, old))}}}")
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _is_other_kind(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    """Say whether ``new`` replaces ``old``: {tokens: n} after {rows: n}, another class."""
    shares = ({"rows"}, {"tokens"})
    if set(old) in shares and set(new) in shares:
        return set(old) != set(new)
    return "class_path" in new and new["class_path"] != old.get("class_path")


def _parse(text: str, where: str) -> Any:
    if text.startswith("${"):
        return text
    try:
        # OmegaConf's own reading of YAML, in which 1e-3 is a number.
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(f"value: {text}")))[
            "value"
        ]
    except _NOT_YAML as fault:
        raise RequestError(f"{where}: {_cut(text)!r} is not a YAML value.") from fault


def _cut(text: str) -> str:
    return text if len(text) < 200 else f"{text[:200]}..."


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        content = file.read_text(encoding="utf-8")
        node = yaml.compose(content)
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise RequestError(f"{file}: a config holds keys and values, got {content[:40]!r}.")
        loaded = cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.create(content)))
        origins = dict(_origins(node, file))
    except RequestError:
        raise
    except _NOT_YAML as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        reason = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise RequestError(f"{where}: not YAML: {reason}.") from fault
    return {str(key): value for key, value in loaded.items()}, origins


def _origins(node: Any, file: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, f"{file}, line {key.start_mark.line + 1}"
            yield from _origins(value, file, f"{name}.")


def compose_files(files: Iterable[str], overrides: Mapping[str, Any]) -> Composed:
    """Merge config files in order, and then values by dotted key.

    Args:
        files: Paths; one that is not there is looked for among the packaged configs.
        overrides: Plain values, or text as a command line holds it.

    Raises:
        RequestError: If a file or value cannot be read.
    """
    composed = Composed()
    for file in files:
        composed.merge_file(file)
    for key, value in overrides.items():
        composed.override(key, as_yaml(value))
    return composed


def as_yaml(value: Any) -> str:
    """Return a value as a command line takes it; text stays as it is.

    >>> as_yaml("1/16"), as_yaml({"rows": 500}), as_yaml(None)
    ('1/16', '{rows: 500}', 'null')
    """
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...")


def dump(config: Mapping[str, Any]) -> str:
    """Return a resolved config as the text of a file that is read back as just these values."""
    # By OmegaConf, which quotes the text that it would read as a number, such as 12e345.
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _escaped(value: Any) -> Any:
    """Return a value whose text is not taken for an interpolation."""
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def compose(arguments: list[str], keys: Collection[str]) -> tuple[Composed, list[str], list[str]]:
    """Merge config files and dotted overrides, which win; leave other arguments to the parser.

    Args:
        arguments: The arguments of the command.
        keys: First parts of the keys that can be overridden.

    Returns:
        The merged config, the config files' names, and the arguments that are left.
    """
    files: list[str] = []
    steps: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        key = name.removeprefix("--")
        is_config = name in ("--config", "-c")
        is_override = (
            name.startswith("--") and key.split(".")[0] in keys and not key.endswith(".help")
        )
        if not is_config and not is_override:
            rest.append(argument)
            continue
        if not equals:
            if not waiting:
                raise RequestError(f"{argument} needs a value.")
            value = waiting.pop(0)
        if is_config:
            files.append(value)
        else:
            steps.append((key, value))
    composed = compose_files(files, {})
    appended: set[str] = set()  # lists that have grown: ``--key.name`` means their new entry
    for key, value in steps:
        above = key.rpartition(".")[0].removesuffix(".init_args")
        if key.endswith("+"):
            appended.add(key.removesuffix("+"))
            composed.append(key.removesuffix("+"), value)
        elif above in appended:
            composed.override_last(key, value)
        else:
            composed.override(key, value)
    return composed, files, rest
