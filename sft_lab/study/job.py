"""A job of a study and its result: what the study, Ray and a machine exchange."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CELL_TAG = "sft_lab.cell"
PARENT_TAG = "mlflow.parentRunId"
REQUEST_WAS_WRONG, BUSY, OTHER_CODE = 2, os.EX_TEMPFAIL, os.EX_CONFIG


@dataclass(frozen=True)
class Job:
    """Everything a machine needs to train one run; paths are on a shared file system.

    Attributes:
        digest: The run's digest, by which the store finds its runs.
        code: Digest of the code the study was planned with; other code may not run the job.
        name: The run's name.
        config: File of the resolved config, with the run's name and tags.
        fork: ``RUN_ID@STAGE`` to start from, or None.
        tracking_uri: The store.
        dirpath: Folder of checkpoints.
        log: File to which the output of ``fit`` is appended.
        folder: The working directory.
        environment: Environment variables to set in addition to the machine's own.
    """

    digest: str
    code: str
    name: str
    config: Path
    fork: str | None
    tracking_uri: str
    dirpath: Path
    log: Path
    folder: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """The result of one attempt at a job.

    Attributes:
        digest: The run's digest.
        code: Exit code of ``fit``; ``BUSY`` if another process is training the run, ``OTHER_CODE``
            if the machine's code differs, None if the machine was lost.
        run_id: The finished run, or None.
        reason: Why there is no finished run, in one line.
    """

    digest: str
    code: int | None
    run_id: str | None
    reason: str = ""
