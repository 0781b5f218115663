"""A finished run's base and adapters as a logged model of MLflow."""

import logging
import os
import platform
import re
import tempfile
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from mlflow import pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import (
    Array,
    ColSpec,
    DataType,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
)

from sft_lab.evaluation.generation import Decoding
from sft_lab.paths import pinned, unpinned
from sft_lab.runs.client import StoreClient
from sft_lab.runs.inputs import PACKAGES
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.record import read_record
from sft_lab.runs.store import RunStore

_log = logging.getLogger(__name__)

LOADER = "sft_lab.commands.logged_model"
"""The module that loads the model."""
ADAPTER = "adapter"
"""The folder of the adapters among the model's data."""
MAX_NEW_TOKENS = 512
"""The longest answer in tokens, unless another is asked for."""
_NOT_IN_NAMES = re.compile(r"[/:.%\"']")
_NO_SUCH_ENDPOINT = "ENDPOINT_NOT_FOUND"


def log_model(
    logger: RunLogger, config: Mapping[str, Any], template: str, scores: Collection[str]
) -> None:
    """Log the base with the adapters of the last stage as a model that MLflow loads.

    The base is named, not copied, and so are weights that were trained as a whole: the run's
    artifacts hold them. Adapters are copied; files of a local store are linked. A repetition after
    a kill finishes what it finds.

    Args:
        logger: The run, all of whose stages have ended.
        config: Its resolved config.
        template: The chat template's source, for other tools.
        scores: Metric keys of the last evaluation, which the model is shown with.
    """
    logger.flush()
    client, run_id = logger.experiment, logger.run_id
    store = RunStore(logger.tracking_uri)
    settings = _settings(config, read_record(store, run_id).commits)
    stages = list(config["data"]["stages"])
    try:
        model = _opened(client, run_id, _params(config, settings, stages))
    except MlflowException as fault:
        if fault.error_code != _NO_SUCH_ENDPOINT:
            raise
        _log.warning("%s keeps no logged models; MLflow 3 does.", logger.tracking_uri)
        return
    if str(model.status) == "READY":
        return
    weights = f"stages/{stages[-1]}"
    files = {Path(file.path).name for file in client.list_artifacts(run_id, weights)}
    if "adapter_config.json" in files:
        client.copy_to_model(run_id, weights, model.model_id, f"data/{ADAPTER}")
    else:
        settings["weights"] = f"runs:/{run_id}/{weights}"
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), model, settings, template)
        client.log_model_artifacts(model.model_id, folder)
    _link(client, run_id, model.model_id, scores)
    client.finalize_logged_model(model.model_id, "READY")


def _link(client: StoreClient, run_id: str, model_id: str, keys: Collection[str]) -> None:
    """Show a model among the run's outputs, and with the newest point of each metric."""
    run = client.get_run(run_id)
    newest = [
        max(client.get_metric_history(run_id, key), key=lambda point: point.step)
        for key in keys
        if key in run.data.metrics
    ]
    points = [Metric(p.key, p.value, p.timestamp, p.step, model_id) for p in newest]
    client.log_batch(run_id, points)  # the run has them already, so only the model gets them
    shown = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model_id for output in shown):
        step = max((point.step for point in points), default=0)
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def _settings(config: Mapping[str, Any], commits: Mapping[str, str]) -> dict[str, Any]:
    """Return what the model is loaded by, from any folder, whatever the hub's branches do."""
    model, corpus = config["model"], config["corpus"]
    names = {
        "base": (model["base"], model["revision"], commits.get("model.base")),
        "tokenizer": (
            corpus["tokenizer"],
            corpus["tokenizer_revision"],
            commits.get("corpus.tokenizer"),
        ),
    }
    return {
        **{key: lasting(*found) for key, found in names.items()},
        "quantization": model["quantization"],
        "precision": str(config["trainer"]["precision"] or "32-true"),
        "template": corpus["template"],
        "template_args": corpus["template_args"],
    }


def lasting(name: str, revision: str | None, commit: str | None) -> str:
    """Return a folder's absolute path, or a hub name with its commit."""
    if os.path.exists(name):
        return str(Path(name).absolute())
    named = pinned(name, revision)
    return named if commit is None else pinned(unpinned(named)[0], commit)


def _params(
    config: Mapping[str, Any], settings: Mapping[str, Any], stages: list[str]
) -> dict[str, str]:
    """Return what MLflow shows beside the model."""
    base, revision = unpinned(settings["base"])
    lora, peft = config["model"]["lora"], config["model"]["peft"]
    adapters = f"lora r={lora['r']}" if lora else peft["class_path"] if peft else "none"
    return {
        "base": base,
        "revision": revision or "-",
        "quantization": settings["quantization"],
        "adapters": adapters,
        "stages": ", ".join(stages),
        "seed": str(config["seed_everything"]),
    }


def _opened(client: StoreClient, run_id: str, params: dict[str, str]) -> LoggedModel:
    """Return the run's model, which a killed process may have begun."""
    run = client.get_run(run_id)
    found = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    for model in found:
        if model.params.get("stages") == params["stages"]:
            return model
    return client.create_logged_model(
        run.info.experiment_id,
        name=_NOT_IN_NAMES.sub("-", str(run.info.run_name)),
        source_run_id=run_id,
        params=params,
    )


def _write(folder: Path, model: LoggedModel, settings: Mapping[str, Any], template: str) -> None:
    """Write the files of a model, but for its adapters.

    ``mlflow.pyfunc.save_model`` would copy all weights once more, take a second to find out which
    packages are installed, and warn that it has no example.
    """
    (folder / "data").mkdir()
    (folder / "data/chat_template.jinja").write_text(template, encoding="utf-8")
    packages = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n", encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment), encoding="utf-8")
    described = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        signature=_signature(),
        model_uuid=model.model_id,
        model_id=model.model_id,
    )
    pyfunc.add_to_model(
        described,
        loader_module=LOADER,
        data="data",
        python_env="python_env.yaml",
        model_config=dict(settings),
    )
    described.save(str(folder / "MLmodel"))


def _signature() -> ModelSignature:
    """Return rows and options as the command ``generate`` has them, and an answer for each row."""
    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    decoding = Decoding()
    return ModelSignature(
        Schema(
            [
                ColSpec(DataType.string, "prompt", required=False),
                ColSpec(Array(message), "messages", required=False),
            ]
        ),
        Schema([ColSpec(DataType.string)]),
        ParamSchema(
            [
                ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS),
                ParamSpec("temperature", DataType.double, decoding.temperature),
                ParamSpec("top_p", DataType.double, decoding.top_p),
                ParamSpec("seed", DataType.long, decoding.seed),
            ]
        ),
    )
