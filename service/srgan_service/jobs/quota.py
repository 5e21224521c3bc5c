"""What the jobs of one API key may keep, so that none fills the disk or the database for the others."""

from __future__ import annotations

from srgan_service.http.problems import Problem
from srgan_service.jobs.files import JobFiles
from srgan_service.jobs.workflows import ACTIVE, StoredJob, Workflows
from srgan_service.settings import Settings

ANYBODY = "-"  # the owner of jobs without keys; no key can have this name alone


class Quota:
    """Counts jobs and bytes by their owner. Its methods raise what database and storage do."""

    def __init__(self, settings: Settings, workflows: Workflows, files: JobFiles) -> None:
        self._settings = settings
        self._workflows = workflows
        self._files = files

    def room_bytes(self, owner: str, share: float) -> float:
        """Return how many bytes a further job of `owner` may bring. Raises Problem if there may be none.

        `share`: what it may have of all jobs in work.
        """
        most = self._settings.job_queue
        if self._workflows.count(ACTIVE) >= most:
            raise Problem("queue-full", "there are too many jobs; try again later", retry_after_s=30)
        if owner == ANYBODY:
            return float("inf")
        if self._workflows.count(ACTIVE, owner) >= max(1, share * most):
            raise Problem("key-over-share", "this API key has too many jobs in work", retry_after_s=30)
        kept = self._workflows.page(owner, self._settings.key_jobs, 0)
        if len(kept) >= self._settings.key_jobs:
            raise _over_quota(f"{len(kept)} jobs")
        return self._settings.key_job_bytes - sum(map(_bytes, kept))

    def refuse_result(self, id: str, size_bytes: int) -> None:
        """Raise Problem if the key of a job that is worked on may not keep another result of that size."""
        job = self._workflows.find(id)
        if job is None or job.owner == ANYBODY:
            return
        kept = sum(map(_bytes, self._workflows.page(job.owner, self._settings.key_jobs, 0)))
        if kept + self._files.results_bytes(id) + size_bytes > self._settings.key_job_bytes:
            raise over_bytes()


def over_bytes() -> Problem:
    """Return what is said to a key whose jobs would keep too many bytes."""
    return _over_quota("as many bytes of jobs as it may")


def _over_quota(what: str) -> Problem:
    detail = f"this API key keeps {what}; remove some, or wait until they expire, and send this again"
    return Problem("key-over-share", detail, retry_after_s=60)


def _bytes(job: StoredJob) -> int:
    """Return what a job keeps: its uploads until it has ended, then its result."""
    if job.state in ACTIVE:
        return sum(picture["bytes"] for picture in job.spec["files"])
    result = job.outcome["result"] if job.outcome is not None else None
    return result["bytes"] if result is not None else 0
