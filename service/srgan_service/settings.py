"""Everything that can be set, by `SRGAN_*` in the environment or by `srgan serve`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from srgan.environment import PREFIX


class Settings(BaseSettings):
    """The service's settings; each field is also `SRGAN_` and its name in capitals.

    "Megapixels" are of the picture as uploaded unless the name says output; `_s` are seconds.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any.")
    insecure: bool = Field(False, description="Serve other machines without API keys.")
    allowed_hosts: str = Field(
        "", description="Names beside localhost by which a service without keys is asked; separated by commas."
    )

    cors_origins: str = Field(
        "", description="Pages elsewhere that may use the service, as https://photos.example; separated by commas."
    )

    model: str | None = Field(
        None, description="Bundled model or file (.onnx, .pth, ...) used when a request names none."
    )
    memory_bytes: int = Field(
        2**30, ge=2**24, description="For one piece of work, which is how long a cancelled request goes on."
    )
    tile_lr_px: int | None = Field(
        None, ge=16, description="Side of a tile's core, instead of what fits memory_bytes."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, gpu, gpu:N or npu.")
    precision: str = Field("auto", description="auto, fp32, bf16, fp16 or int8.")
    batch_tiles: int | None = Field(
        None, ge=1, le=64, description="Tiles of several requests run together; by default as the device likes it."
    )

    limit_bytes: int = Field(32 * 2**20, ge=1, description="Bytes of one upload.")
    limit_megapixels: float | None = Field(
        None,
        gt=0,
        description="Pixels of one upload; by default 25, where 8 GB of memory are free, and 16 elsewhere.",
    )
    limit_side_px: int = Field(16_384, ge=1, description="Longer side of one upload.")
    limit_frames: int = Field(100, ge=1, description="Of an animation, or pages; together within the pixels.")
    limit_output_megapixels: float = Field(400.0, gt=0, description="Pixels of one result.")

    queue_requests: int = Field(64, ge=1, description="Requests inside at once, their uploads included.")
    queue_megapixels: float = Field(64.0, gt=0, description="Decoded and not yet answered, in all.")
    queue_bytes: int = Field(256 * 2**20, ge=1, description="Upload bytes held at once, in all.")
    key_share: float = Field(0.5, gt=0, le=1, description="Of the queue that one API key may take.")
    small_megapixels: float = Field(0.5, gt=0, description="Up to here a picture goes by the express lane.")
    small_at_once: int = Field(4, ge=1, description="Pictures of the express lane worked on at once.")
    large_at_once: int = Field(2, ge=1, description="Larger pictures worked on at once.")

    deadline_s: float = Field(60.0, gt=0, description="From a request's head to the end of its work.")
    header_timeout_s: float = Field(10.0, gt=0, description="For a request's head, and for an idle connection.")
    body_timeout_s: float = Field(30.0, gt=0, description="For an upload, beside what its size earns it.")
    body_bytes_per_s: int = Field(256 * 1024, ge=1, description="The slowest upload or download that goes on.")
    write_timeout_s: float = Field(30.0, gt=0, description="How long a client may leave an answer untouched.")
    grace_s: float = Field(20.0, gt=0, description="After SIGTERM, for what is being worked on.")
    connections: int = Field(4096, ge=1, description="Open at once.")
    limit_header_bytes: int = Field(64 * 1024, ge=1024, description="Of a request's head.")

    keys: Annotated[str, NoDecode] = Field(
        "", description="API keys as name:key, separated by commas; key may be sha256:HEX.", repr=False
    )
    keys_file: Path | None = Field(None, description="TOML file of API keys, see docs/deployment.md.")

    database_url: str | None = Field(
        None, description="PostgreSQL for jobs; by default SQLite in data_dir.", repr=False
    )
    database_timeout_s: float = Field(10.0, gt=0, description="How long a request waits for the database.")
    data_dir: str = Field("srgan-data", description="Folder or fsspec URL for the pictures of jobs.")
    jobs: bool = Field(True, description="Offer /v1/jobs.")
    jobs_at_once: int = Field(1, ge=1, description="Jobs that this process works on at once.")
    job_files: int = Field(100, ge=1, description="Pictures in one job.")
    job_bytes: int = Field(512 * 2**20, ge=1, description="Upload bytes of one job.")
    job_queue: int = Field(1000, ge=1, description="Jobs waiting or running, in all.")
    key_jobs: int = Field(2000, ge=1, description="Jobs of one API key that are kept, ended ones among them.")
    key_job_bytes: int = Field(
        8 * 2**30, ge=1, description="Uploads and results that are kept for the jobs of one API key."
    )
    job_watchers: int = Field(256, ge=1, description="Clients that watch jobs by server-sent events.")
    job_expiry_s: float = Field(
        24 * 3600.0, gt=0, description="After its end a job and its files are kept so long."
    )
    job_poll_s: float = Field(0.5, gt=0, description="How often the database is asked for jobs to do.")
    lease_s: float = Field(15.0, gt=0, description="After this long without a sign of life, others take over.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        for origin in filter(None, map(str.strip, text.split(","))):
            if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
                raise ValueError(f"{origin!r} is no origin: write it as https://photos.example, without a path")
        return text

    @property
    def origins(self) -> frozenset[str]:
        """`cors_origins`, as browsers spell them."""
        return frozenset(filter(None, (origin.strip().lower() for origin in self.cors_origins.split(","))))
