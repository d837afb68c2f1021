"""The service's settings: environment variables with the prefix `APP_`, and the file `.env`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Everything about the service that can be set, validated once and then constant."""

    model_config = SettingsConfigDict(
        env_prefix="APP_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every network.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, description="Number of server processes that share the port.")
    models_dir: Path = Field(Path("models"), description="Folder of the models.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run: cpu, cuda, or auto for CUDA where there is one."
    )
    default_model: str | None = Field(
        None,
        description="Model that answers when a request names none; unset: cifar10 if there, else the first by name.",
    )
    max_batch: int = Field(64, ge=1, description="Most pictures that the engine computes at once.")
    max_inflight: int = Field(
        1024, ge=1, description="Most pictures in work at once in one process; beyond it requests get 429."
    )
    max_upload_mb: float = Field(20, gt=0, description="Largest request body, in MB (1,000,000 bytes).")
    max_files: int = Field(256, ge=1, description="Most files in one request.")
    max_pixels: int = Field(50_000_000, ge=1, description="Most pixels of a picture, width times height.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated keys, one of which every request then has to carry; unset: open to everybody.",
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = [key.strip() for key in value.split(",")]
        if not all(keys):
            # An empty key would let everybody in who sends an empty header.
            raise ValueError("holds an empty key; write the keys with one comma between two")
        return keys

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.max_files > self.max_inflight:
            raise ValueError(
                f"max_files ({self.max_files}) is above max_inflight ({self.max_inflight}): the largest request could "
                "never be taken. Set APP_MAX_FILES lower or APP_MAX_INFLIGHT higher."
            )
        return self

    @property
    def max_upload_bytes(self) -> int:
        """Largest request body, in bytes."""
        return int(self.max_upload_mb * 1_000_000)
