"""The jobs in the database, each a DBOS workflow with a step for every picture. Nothing else here knows DBOS."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, WorkflowStatus
from dbos import error as dbos_error

from srgan_service.jobs.records import JobOutcome, JobSpec, PictureOutcome, ResultFile

# DBOS's words. A job that waits is ENQUEUED, one that is worked on PENDING; what DBOS calls a success may be a job
# whose pictures all failed.
State = Literal[
    "ENQUEUED", "PENDING", "DELAYED", "SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
]
ACTIVE: tuple[State, ...] = ("ENQUEUED", "PENDING")
_ENDED: tuple[State, ...] = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

_QUEUE = "srgan-jobs"
_NAME = "srgan-job"
_VERSION = "2"  # of the workflow's steps: a job begun by one version is not continued by another
_MOST_STARTS = 20  # of one job: what kills its process so often will always do so

# DBOS keeps its database and what it can run in the process, not in an object: two would mix their jobs.
_dbos_in_use = threading.Lock()

# That a job was cancelled is no error of ours; DBOS tells it with a trace.
logging.getLogger("dbos").addFilter(lambda record: not _is_of_a_cancelled_job(record))


@dataclass(frozen=True)
class StoredJob:
    """A job as the database has it. `outcome`: None until it has come to its end by itself."""

    id: str
    owner: str
    state: State
    created: datetime
    started: datetime | None
    finished: datetime | None
    spec: JobSpec
    outcome: JobOutcome | None


@dataclass(frozen=True)
class Steps:
    """What carries out a job; all are called with its id and its spec.

    `picture`, `pack`: the steps, whose results are kept in the database; they are tried again after an OSError.
    `ended` is told of a job that is done.
    """

    picture: Callable[[str, JobSpec, int], PictureOutcome]
    pack: Callable[[str, JobSpec, list[PictureOutcome]], ResultFile | None]
    ended: Callable[[str, JobOutcome], None]


class Workflows:
    """Jobs in the database at `url`, worked on in this process under the name `executor`.

    `poll_s`: how often the database is asked for jobs to do. All methods raise what the database raises.
    """

    def __init__(self, url: str, executor: str, *, at_once: int, poll_s: float) -> None:
        self._executor = executor
        self._at_once, self._poll_s = at_once, poll_s
        self._config: DBOSConfig = {
            "name": "srgan",
            "system_database_url": url,
            "application_version": _VERSION,
            "executor_id": executor,
            "serializer": DBOSPortableJSONSerializer(),  # by default it would be pickle
            "log_level": "ERROR",
            "run_migrations": True,
        }

    def start(self, steps: Steps) -> None:
        """Open the database and begin to work on jobs. Raises RuntimeError if another application did already."""
        if not _dbos_in_use.acquire(blocking=False):
            raise RuntimeError("one process has one DBOS, so it serves jobs for one application")
        try:
            _register(steps)
            DBOS(config=self._config)
            DBOS.launch()
            DBOS.register_queue(
                _QUEUE,
                worker_concurrency=self._at_once,
                polling_interval_sec=self._poll_s,
                on_conflict="always_update",
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close the database. Workflows that have not ended go on elsewhere."""
        DBOS.destroy(destroy_registry=True)  # with the steps of `start`, so that it can be called again
        _dbos_in_use.release()

    def add(self, id: str, owner: str, spec: JobSpec) -> bool:
        """Accept a job; return False, and do nothing, if there is or was one of that id."""
        try:
            DBOS.enqueue_workflow_with_options(
                {
                    "workflow_name": _NAME,
                    "queue_name": _QUEUE,
                    "workflow_id": id,
                    "workflow_id_reuse_policy": "reject",
                    "authenticated_user": owner,
                    "app_version": _VERSION,
                },
                id,
                spec,
            )
        except dbos_error.DBOSWorkflowIDInUseError:
            return False
        return True

    def find(self, id: str) -> StoredJob | None:
        """Return a job, None if there is none of that id."""
        status = DBOS.get_workflow_status(id)
        if status is None or (status.name, status.app_version) != (_NAME, _VERSION):
            return None
        return _stored(status)

    def page(self, owner: str, limit: int, offset: int) -> list[StoredJob]:
        """Return jobs of `owner`, the newest first."""
        found = DBOS.list_workflows(
            user=owner,
            name=_NAME,
            app_version=_VERSION,
            limit=limit,
            offset=offset,
            sort_desc=True,
            status=[*ACTIVE, *_ENDED],
        )
        return [_stored(status) for status in found]

    def count(self, states: Sequence[State], owner: str | None = None) -> int:
        """Return how many jobs are in one of `states`, of one owner or of all."""
        return len(
            DBOS.list_workflows(status=list(states), name=_NAME, user=owner, load_input=False, load_output=False)
        )

    def cancel(self, id: str) -> None:
        """Cancel a job that has not ended."""
        DBOS.cancel_workflow(id)

    def delete(self, ids: Sequence[str]) -> None:
        """Forget jobs."""
        DBOS.delete_workflows(list(ids))

    def ended_before(self, moment: datetime, limit: int) -> list[str]:
        """Return the ids of jobs that ended before `moment`."""
        statuses = DBOS.list_workflows(
            status=list(_ENDED),
            name=_NAME,
            completed_before=moment.isoformat(),
            limit=limit,
            load_input=False,
            load_output=False,
        )
        return [status.workflow_id for status in statuses]

    def lost(self) -> list[str]:
        """Return the ids of jobs that ended without an outcome and were not cancelled."""
        statuses = DBOS.list_workflows(
            status=["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"], name=_NAME, load_input=False, load_output=False
        )
        return [status.workflow_id for status in statuses]

    def other_executors(self) -> set[str]:
        """Return the names of the other processes that have begun jobs and not ended them."""
        pending = DBOS.list_workflows(status="PENDING", name=_NAME, load_input=False, load_output=False)
        return {status.executor_id for status in pending if status.executor_id} - {self._executor}

    def take_over(self, executor: str) -> None:
        """Put back into the queue what a process that is gone had begun.

        In one statement for each job, and only while it is still that process's: of several that notice, one
        succeeds. The public `DBOS.resume_workflows` asks for neither, would revive what was cancelled meanwhile,
        and forgets how often a job was begun; so DBOS's version range in pyproject.toml is closed above.
        """
        DBOS._recover_pending_workflows([executor])


def _stored(status: WorkflowStatus) -> StoredJob:
    assert status.input is not None  # noqa: S101  # only of statuses that were loaded with it
    _, spec = status.input["args"]
    return StoredJob(
        id=status.workflow_id,
        owner=status.authenticated_user or "",
        state=status.status,
        created=_time(status.created_at) or datetime.now(UTC),
        started=_time(status.dequeued_at),
        finished=_time(status.completed_at),
        spec=spec,
        outcome=status.output,
    )


def _time(epoch_ms: int | None) -> datetime | None:
    return None if epoch_ms is None else datetime.fromtimestamp(epoch_ms / 1000, UTC)


def _register(steps: Steps) -> None:
    """Tell DBOS what to run.

    Not as methods of a `DBOSConfiguredInstance`: its name, which other processes must know to go on with a job,
    can be taken once for as long as there is a registry, the classes are forgotten with the registry, and the
    application may be made several times in a process.
    """

    @DBOS.step(name="work", retries_allowed=True, max_attempts=5, should_retry=_is_of_the_disk)
    def picture(id: str, spec: JobSpec, index: int) -> PictureOutcome:
        return steps.picture(id, spec, index)

    @DBOS.step(name="pack", retries_allowed=True, max_attempts=5, should_retry=_is_of_the_disk)
    def pack(id: str, spec: JobSpec, files: list[PictureOutcome]) -> ResultFile | None:
        return steps.pack(id, spec, files)

    @DBOS.workflow(name=_NAME, max_recovery_attempts=_MOST_STARTS)
    def job(id: str, spec: JobSpec) -> JobOutcome:
        files = [picture(id, spec, index) for index in range(len(spec["files"]))]
        outcome: JobOutcome = {"files": files, "result": pack(id, spec, files)}
        steps.ended(id, outcome)
        return outcome


def _is_of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError)


def _is_of_a_cancelled_job(record: logging.LogRecord) -> bool:
    kinds = dbos_error.DBOSAwaitedWorkflowCancelledError, dbos_error.DBOSWorkflowCancelledError
    return record.exc_info is not None and isinstance(record.exc_info[1], kinds)
