"""Write the JSON schemas of configs, configs/schema/*.json, from the signatures.

    python docs/config_schema.py

jsonargparse emits the schema of each group. Added to it: what our composition allows (files in
place of groups, ``${...}`` in place of values, dotted keys, classes from outside the package), and
taken from it: required keys, since several files make one config.
"""

import importlib
import inspect
import json
import pkgutil
import typing
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import Trainer

from sft_lab.config.ranges import Seed, schema_bounds
from sft_lab.config.signatures import argument_types
from sft_lab.data.sources import Source
from sft_lab.evaluation.generation.decoding import Decoding
from sft_lab.evaluation.generation.vllm.server import VllmServer
from sft_lab.launch.keys import TRAINER_RANGES
from sft_lab.launch.parser import FOLLOWING_KEYS, GROUPS, MANAGED_TRAINER_ARGS
from sft_lab.model.adapter_config import Lora
from sft_lab.runs.logger import RunLogger
from sft_lab.study.design import (
    Arm,
    Axis,
    QuestionDesign,
    ReportDesign,
    Resources,
    Search,
    StudyDesign,
)
from sft_lab.training.guard import Guard
from sft_lab.training.stage import Stage

FOLDER = Path(__file__).parents[1] / "configs" / "schema"
LINKED = {  # keys that follow from others, so that no config may hold them
    group: {key.partition(".")[2] for key in FOLLOWING_KEYS if key.startswith(f"{group}.")}
    for group in GROUPS
}
Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_INTERPOLATION = {"$ref": "#/$defs/interpolation"}
_SHARE = {
    "anyOf": [
        {"type": ["integer", "number", "string"]},
        {
            "type": "object",
            "properties": {"rows": {"type": "number"}, "tokens": {"type": "number"}},
            "additionalProperties": False,
        },
    ]
}
_SHARES = {"k": "", "total": "", "mixture": "additionalProperties", "shares": "items"}
"""Keys of the type ``Share``, or of a container of it; jsonargparse takes that type for text."""
DATACLASSES = {
    owner.__name__: owner
    for owner in (
        *(Lora, Source, VllmServer, Decoding, Stage, Guard),
        *(Arm, Axis, QuestionDesign, ReportDesign, Resources, Search),
    )
}
"""Classes that jsonargparse describes under their names."""
_PLAIN = (int, float, str, bool, type(None), Path)
_STUDY = {"study": StudyDesign, "question": QuestionDesign}


def import_classes() -> None:
    """Import every module of the package that defines classes for configs."""
    for package in ("evaluation", "training", "data"):
        root = importlib.import_module(f"sft_lab.{package}")
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if not module.name.endswith(("sandbox.program", "sandbox.worker")):
                importlib.import_module(module.name)


def class_at(path: str) -> Any:
    """Return a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def is_plain(hint: Any) -> bool:
    """Say whether a type mentions no class but those that YAML can write."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return True
    return all(map(is_plain, parts)) if parts else hint in _PLAIN


def emitted(owners: dict[str, Any], skip: dict[str, set[str]]) -> Schema:
    """Return what jsonargparse emits for groups of arguments."""
    parser = ArgumentParser()
    for group, owner in owners.items():
        parser.add_class_arguments(
            owner, group, skip=skip.get(group, set()), fail_untyped=False, instantiate=False
        )
    schema: Schema = json.loads(parser.get_completion_script("jsonschema"))
    for group, owner in owners.items():
        add_ranges(schema["properties"][group], owner)
    for name, definition in schema.get("$defs", {}).items():
        for choice in definition.get("anyOf", []):
            if path := choice.get("properties", {}).get("class_path", {}).get("const"):
                add_ranges(choice["properties"].get("init_args", {}), class_at(path))
        if owner := DATACLASSES.get(name):
            add_ranges(definition, owner)
    return schema


def add_ranges(schema: Schema, owner: Any) -> None:
    """Add the ranges of a class's arguments to their schema, from the annotated types."""
    for name, hint in argument_types(owner).items():
        part = schema.get("properties", {}).get(name, {})
        part |= schema_bounds(hint)
        for inner, container in ((list, "items"), (dict, "additionalProperties")):
            if typing.get_origin(hint) is inner and isinstance(part.get(container), dict):
                part[container] |= schema_bounds(typing.get_args(hint)[-1])


def adapted(schema: Any) -> Any:
    """Return a schema without required keys, with ``${...}`` allowed in place of any value."""
    if isinstance(schema, list):
        return [adapted(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: adapted(part) for key, part in schema.items() if key not in ("required",)}
    if isinstance(found.get("properties"), dict):
        found["properties"].pop("$schema", None)
        found["properties"] = {
            name: value(with_shares(part, _SHARES[name]) if name in _SHARES else part)
            for name, part in found["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = value(found[key])
    return found


def with_shares(schema: Schema, container: str) -> Schema:
    """Return the schema of a key with shares in place of text, in a container or alone."""
    inner = schema.get(container, schema) if container else schema
    if "string" not in json.dumps(inner.get("anyOf", inner.get("type"))) or "number" in str(inner):
        return schema  # another key of that name, not a share
    texts = {key: schema[key] for key in ("description", "default") if key in schema}
    if not container:
        return {**_SHARE, **texts}
    kind = "array" if container == "items" else "object"
    return {"type": kind, container: _SHARE, **texts}


def value(schema: Schema) -> Schema:
    """Return a schema that takes an interpolation as well."""
    types = schema.get("type", [])
    alternatives = schema.get("anyOf", [])
    if not schema.keys() - {"description", "default"}:
        return schema  # anything
    if "const" in schema or "string" in ([types] if isinstance(types, str) else types):
        return schema
    if any(part.get("type") == "string" for part in alternatives):
        return schema
    texts = {key: schema[key] for key in ("description", "default") if key in schema}
    rest = {key: part for key, part in schema.items() if key not in texts}
    return {"anyOf": [*(alternatives or [rest]), _INTERPOLATION], **texts}


def own_classes(definition: Schema) -> Schema:
    """Return the schema of an object given by ``class_path``, open to classes of a user's own."""
    known = [
        part
        for part in definition["anyOf"]
        if part.get("properties", {}).get("class_path", {}).get("const", "").startswith("sft_lab.")
    ]
    for part in known:
        part["required"] = ["class_path"]
    foreign = {
        "type": "object",
        "description": "A class of your own, or a part of what another file has begun",
        "properties": {
            "class_path": {"type": "string", "not": {"pattern": "^sft_lab\\."}},
            "init_args": {"type": "object"},
        },
        "additionalProperties": False,
    }
    path = {"type": "string", "pattern": "^[\\w.]+\\.\\w+$", "description": "A class path alone"}
    return {"anyOf": [*known, foreign, path]}


def is_class_choice(definition: Schema) -> bool:
    """Say whether a definition describes objects given by ``class_path``."""
    return any("class_path" in part.get("properties", {}) for part in definition.get("anyOf", []))


def trainer_schema() -> tuple[Schema, Schema]:
    """Return the schema of the Trainer's group, and of the definitions it uses."""
    hints = typing.get_type_hints(Trainer.__init__)
    names = set(inspect.signature(Trainer).parameters)
    others = {name for name in names if not is_plain(hints.get(name))}
    emitted_ = emitted({"trainer": Trainer, "logger": RunLogger}, {"trainer": others})
    group = adapted(emitted_["properties"]["trainer"])
    for key, hint in TRAINER_RANGES.items():
        group["properties"][key.removeprefix("trainer.")] |= schema_bounds(hint)
    logger = adapted(emitted_["properties"]["logger"])
    group["properties"] |= {name: {} for name in sorted(others)}
    group["properties"]["logger"] = {"$ref": "#/$defs/RunLogger"}
    for name in MANAGED_TRAINER_ARGS:
        del group["properties"][name]
    run_logger = {
        "type": "object",
        "properties": {
            "class_path": {"const": "sft_lab.runs.logger.RunLogger"},
            "init_args": logger,
        },
        "required": ["class_path"],
        "additionalProperties": False,
    }
    return group, {"RunLogger": {"anyOf": [run_logger, {"type": ["object", "array", "boolean"]}]}}


def run_schema() -> Schema:
    """Return the schema of a run's config."""
    import_classes()
    owners = {name: owner for name, owner in GROUPS.items() if name != "trainer"}
    raw = emitted(owners, LINKED)
    trainer, trainer_definitions = trainer_schema()
    definitions = {name: adapted(part) for name, part in raw.get("$defs", {}).items()}
    definitions = {
        name: own_classes(part) if is_class_choice(part) else part
        for name, part in definitions.items()
    }
    groups = {name: adapted(raw["properties"][name]) for name in owners} | {"trainer": trainer}
    file = {"type": "string", "pattern": "\\.ya?ml$", "description": "A file with this group"}
    seed = {"type": "integer", **schema_bounds(Seed), "default": 0}
    return {
        "$schema": _DRAFT,
        "title": "A run of sft_lab",
        "type": "object",
        "properties": {
            "seed_everything": {"anyOf": [seed, _INTERPOLATION]},
            "ckpt_path": {"type": ["string", "null"]},
            "from": {"type": ["string", "null"]},
            **{
                name: {
                    "anyOf": [
                        {"$ref": f"#/$defs/{name}"},
                        file,
                        {"type": "array", "items": {"anyOf": [file, {"$ref": f"#/$defs/{name}"}]}},
                    ]
                }
                for name in GROUPS
            },
        },
        "patternProperties": {f"^({'|'.join(GROUPS)})\\.": {}},
        "additionalProperties": False,
        "$defs": {
            "interpolation": {"type": "string", "pattern": "\\$\\{"},
            **groups,
            **definitions,
            **trainer_definitions,
        },
    }


def study_schema() -> Schema:
    """Return the schema of a study's config."""
    raw = emitted(_STUDY, {})
    definitions = {name: adapted(part) for name, part in raw.get("$defs", {}).items()}
    study, question = (adapted(raw["properties"][name]) for name in _STUDY)
    overrides = {"type": "object", "description": "Values by dotted key of a run's config"}
    for owner in (study, *definitions.values()):
        if "set" in owner.get("properties", {}):
            owner["properties"]["set"] = overrides
    file = {"type": "string", "pattern": "\\.ya?ml$", "description": "A file with questions"}
    questions = {"type": "object", "additionalProperties": {"$ref": "#/$defs/question"}}
    study["properties"]["questions"] = {
        "anyOf": [questions, file, {"type": "array", "items": file}]
    }
    return {
        "$schema": _DRAFT,
        "title": "A study of sft_lab",
        **study,
        "patternProperties": {"^(questions|resources|set)\\.": {}},
        "$defs": {
            "interpolation": {"type": "string", "pattern": "\\$\\{"},
            "question": question,
            "questions": questions,
            **definitions,
        },
    }


def schemas() -> dict[str, Schema]:
    """Return every schema by file name."""
    run = run_schema()
    parts = {
        f"{name}.json": {"$schema": _DRAFT, "$ref": f"run.json#/$defs/{name}"}
        for name in (
            "trainer",
            "model",
            "corpus",
            "evaluation",
        )  # what runs keep in files of their own
    }
    questions = {"$schema": _DRAFT, "$ref": "study.json#/$defs/questions"}
    return {
        "run.json": run,
        "study.json": study_schema(),
        "questions.json": questions,
        **parts,
    }


def as_text(schema: Schema) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / name).write_text(as_text(schema), encoding="utf-8")
