"""The service's settings: environment variables with the prefix `APP_`, and the file `.env`."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.serving.engine import Kind
from training import machine

# Infinity, and numbers that are infinite as bytes or seconds, cannot be counted with.
_MOST = 1e12
_Amount = Annotated[float, Field(gt=0, le=_MOST)]
_KEY = re.compile(r"[!-~]+")  # visible ASCII


class Settings(BaseSettings):
    """Everything about the service that can be set, validated once and then constant."""

    model_config = SettingsConfigDict(
        env_prefix="APP_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every network.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of proxies whose X-Forwarded-For is believed, comma-separated; * is all.",
    )
    max_receive_seconds: _Amount = Field(
        20, description="Seconds that a request may take to arrive, besides one for every 10 kB of it."
    )
    access_log: bool = Field(True, description="Whether every request is a line in the log.")
    workers: int = Field(1, ge=1, description="Number of server processes that share the port.")
    models_dir: Path = Field(Path("models"), description="Folder of the models.")
    data_dir: Path = Field(
        Path("data"), description="Folder for what the service writes: uploads, jobs, feedback, logs."
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of the jobs, postgresql://USER:PASSWORD@HOST/NAME; unset: SQLite in the data folder.",
    )
    finetune_workers: int = Field(
        1, ge=0, description="Fine-tune workers that `serve` runs while there are jobs; 0: none on this machine."
    )
    finetune_threads: int = Field(
        0, ge=0, description="Threads that a fine-tune computes with; 0: as many as there are processors."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run: cpu, cuda, or auto for CUDA where there is one."
    )
    engine: Literal["auto"] | Kind = Field(
        "auto", description="What computes: auto for the fastest that answers as the model's file does, or one by name."
    )
    default_model: str | None = Field(
        None,
        description="Model that answers when a request names none; unset: cifar10 if there, else the first by name.",
    )
    max_batch: int = Field(64, ge=1, description="Most pictures that the engine computes at once.")
    max_inflight: int = Field(
        128, ge=1, description="Pictures in work in one process with which further requests get 429."
    )
    max_inflight_mb: _Amount = Field(
        512, description="Request bodies in work in one process, in MB, with which further requests get 429."
    )
    max_wait_seconds: _Amount = Field(
        5, description="Predicted wait for an answer, in seconds, above which further requests get 429."
    )
    max_decode_pixels: int = Field(
        50_000_000, ge=1, description="Most pixels that are decoded at once in one process; larger pictures wait."
    )
    max_upload_mb: _Amount = Field(20, description="Largest request body, in MB (1,000,000 bytes).")
    max_files: int = Field(256, ge=1, description="Most files in one request.")
    max_pixels: int = Field(50_000_000, ge=1, description="Most pixels of a picture, width times height.")
    max_dataset_mb: _Amount = Field(2000, description="Largest archive for fine-tuning, in MB (1,000,000 bytes).")
    max_dataset_files: int = Field(200_000, ge=1, description="Most files in an archive for fine-tuning.")
    keep_datasets_mb: float = Field(
        20_000,
        ge=0,
        le=_MOST,
        description="Archives of ended fine-tunes beyond this many MB are deleted, oldest first; of decoded data sets "
        "as many MB are kept, and those not read for longest deleted after each fine-tune.",
    )
    keep_feedback: bool = Field(
        False, description="Keep the pictures that are classified, so that they can be labelled and trained on."
    )
    feedback_max_mb: _Amount = Field(
        1000,
        description="Most MB of such pictures; the oldest go first, and those without a label before others.",
    )
    feedback_max_days: _Amount = Field(90, description="Days for which such a picture is kept.")
    max_memory_mb: _Amount | None = Field(
        None,
        description="Memory of one process, in MB, above which it unloads the models that were not asked for longest; "
        "unset: half of the machine's, shared by the processes.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated keys of visible ASCII characters, one of which every request then has to carry; "
        "unset: open to everybody.",
    )

    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated names that lead to a service without keys. Addresses, names without a dot, and "
        "those that end in .local, .localhost, .lan, .internal or .home.arpa need not be named.",
    )

    @field_validator("api_keys", "hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        entries = [entry.strip() for entry in value.split(",")]
        if not all(entries):
            # An empty key would let everybody in who sends an empty header.
            raise ValueError("holds an empty entry; write one comma between two")
        return entries

    @field_validator("api_keys")
    @classmethod
    def _sendable(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(_KEY.fullmatch(key.get_secret_value()) for key in value):
            # Programs send other characters as UTF-8, browsers as Latin-1: not all would come in.
            raise ValueError("holds a key with a space or a character beyond ASCII; make it of ASCII's visible ones")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _known_proxies(cls, value: str) -> str:
        # uvicorn takes what it cannot read for a name, which no client has: nobody would be believed.
        for entry in () if value == "*" else map(str.strip, value.split(",")):
            try:
                (ip_network if "/" in entry else ip_address)(entry)
            except ValueError as error:
                raise ValueError(
                    f"{error}; write addresses and networks such as 192.0.2.7 and 10.0.0.0/8, comma-separated, or *"
                ) from error
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("postgresql://", "sqlite:///")):
            raise ValueError("has to begin with postgresql:// or sqlite:///")
        return value

    def choose_device(self) -> Literal["cpu", "cuda"]:
        """Where models run on this machine.

        Raises:
            training.errors.InputError: it is to be CUDA, which is not present.
        """
        if self.device == "cpu" or (self.device == "auto" and not machine.has_nvidia_driver()):
            return "cpu"
        # Only here: torch takes a second and 300 MB, and OpenVINO does without it.
        from training.device import choose_device  # noqa: PLC0415

        return "cpu" if choose_device(self.device).type == "cpu" else "cuda"

    @property
    def max_upload_bytes(self) -> int:
        """Largest request body, in bytes."""
        return int(self.max_upload_mb * 1_000_000)

    @property
    def max_dataset_bytes(self) -> int:
        """Largest request body that carries an archive for fine-tuning, in bytes."""
        return int(self.max_dataset_mb * 1_000_000)

    @property
    def keep_datasets_bytes(self) -> int:
        """Archives of ended fine-tunes that are kept, in bytes, and decoded data sets."""
        return int(self.keep_datasets_mb * 1_000_000)

    @property
    def feedback_max_bytes(self) -> int:
        """Pictures that are kept for labelling, in bytes."""
        return int(self.feedback_max_mb * 1_000_000)

    @property
    def max_inflight_bytes(self) -> int:
        """Request bodies in work, in bytes."""
        return int(self.max_inflight_mb * 1_000_000)
