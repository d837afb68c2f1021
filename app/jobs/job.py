"""A fine-tune job: what was asked for, how far it has come, and what came out."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from training.artifact import NAME_PATTERN

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Form(BaseModel):
    """The form fields of `POST /finetune` beside the archive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME_PATTERN}$", description="Model that gets the new version; made if it is new.")
    base: str | None = Field(
        None,
        description="Model to start from, NAME or NAME@VERSION; without `base` and `recipe`, the model `name` itself, "
        "and the default model if `name` is new.",
    )
    recipe: str | None = Field(None, description="Train from scratch by this recipe, without a base.")
    method: Literal["auto", "head", "full", "lora"] = Field("auto", description="What of the base is trained.")
    epochs: PositiveInt | None = Field(None, description="Left out: chosen from the size of the data.")
    batch_size: int | None = Field(None, ge=2, description="Left out: chosen from the size of the data.")
    learning_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Left out: chosen from the method."
    )
    classes: Literal["auto", "replace", "add"] = Field("auto", description="What becomes of the base's classes.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same model, on one machine.")
    promote: Literal["auto", "never"] = Field(
        "auto", description="auto: into production if it is not worse than what is there. The first version always is."
    )


class Request(Form):
    """A form together with its archive.

    Attributes:
        start: the version to start from, NAME@VERSION, as it was when the job was accepted; None with a recipe.
        dataset: name of the archive in the job's folder.
        gathered: whether the archive was made of feedback.
        warnings: what is worth knowing of how it was made.
    """

    start: str | None
    dataset: str
    dataset_sha256: str
    gathered: bool = False
    warnings: tuple[str, ...] = ()

    def repeats(self, other: "Request") -> bool:
        """Whether both ask for the same; what they start from, and feedback, may have changed in between."""
        changing = {"start"}
        if self.gathered and other.gathered:
            changing |= {"dataset", "dataset_sha256", "warnings"}
        return self.model_dump(exclude=changing) == other.model_dump(exclude=changing)


class Progress(BaseModel):
    """How far a job has come. What is not known yet is null."""

    epoch: int = Field(0, description="The epoch that is running or has just ended, from 1; 0 while data are read.")
    epochs: int | None = None
    loss: float | None = Field(None, description="Mean training loss of this epoch so far.")
    val_accuracy: float | None = Field(None, description="Of the last finished epoch, 0 to 1.")
    eta_seconds: float | None = Field(None, description="Estimated time until the last epoch ends.")


class Result(BaseModel):
    """What a job has made."""

    model: str
    version: int
    metrics: dict[str, Any] = Field(description="Figures by split; the version's manifest has all of them.")
    promoted: bool = Field(description="Whether the version went into production when the job ended.")
    reason: str = Field(description="Why it did, or why not.")
    comparison: dict[str, Any] | None = Field(
        None, description="Candidate and production on the same held-out pictures; null without a production version."
    )


class JobFailure(BaseModel):
    """Why a job failed."""

    detail: str
    errors: list[str] = Field(description="Every problem of the dataset; empty if the dataset was not the reason.")


class Job(BaseModel):
    """A job as the service shows it."""

    id: str
    name: str
    status: Status
    created: str = Field(description="When it was accepted, ISO 8601.")
    progress: Progress
    warnings: list[str] = Field(description="What is worth knowing about the dataset.")
    result: Result | None = None
    error: JobFailure | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in {"succeeded", "failed", "cancelled"}


class JobFailedError(Exception):
    """Ends a job as failed. The queue stores the text and `data`, which are shown to the user.

    Args:
        detail: why.
        errors: problems of the dataset, a sentence each.
    """

    def __init__(self, detail: str, errors: list[str]) -> None:
        super().__init__(detail)
        self.data = errors  # the attribute that the queue's serializer keeps
