"""The comparison of a candidate with the version in production: what is counted, and when the candidate has lost."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIN_FAILED = 3  # failures: fewer may be a mishap
MIN_ANSWERED = 20  # pictures of each version before failures are compared
MIN_TIMED = 100  # pictures of each version before latencies are compared

# Standard errors. Four are passed by chance once in 30,000 looks, and the counts are looked at every second;
# successive looks see nearly the same counts, so a harmless candidate is hardly ever ended by mistake.
_SURE = 4.0


@dataclass
class Tally:
    """What one version did: pictures, failures among them, and the sums of the others' seconds and their squares."""

    pictures: int = 0
    failures: int = 0
    seconds: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float | None) -> None:
        """Count a picture that took so long from decoded to answered, or None for one that the version failed on."""
        self.pictures += 1
        if seconds is None:
            self.failures += 1
        else:
            self.seconds += seconds
            self.squares += seconds * seconds

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def answered(self) -> int:
        """Pictures without the failures."""
        return self.pictures - self.failures

    @property
    def mean(self) -> float:
        """Mean latency in seconds."""
        return self.seconds / max(1, self.answered)

    @property
    def mean_variance(self) -> float:
        """Variance of the mean latency, in seconds squared."""
        count = max(1, self.answered)
        return max(0.0, self.squares / count - self.mean**2) / count


@dataclass
class Comparison:
    """A candidate beside the version in production.

    Attributes:
        compared: pictures that both have answered.
        agreed: those among them to which both gave the same label.
        dropped: pictures that were not given to the second version, because the service was busy.
    """

    production: Tally = field(default_factory=Tally)
    candidate: Tally = field(default_factory=Tally)
    compared: int = 0
    agreed: int = 0
    dropped: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.production + other.production,
            self.candidate + other.candidate,
            self.compared + other.compared,
            self.agreed + other.agreed,
            self.dropped + other.dropped,
        )

    def regression(self, max_slowdown: float) -> str | None:
        """Why the candidate has lost, if it has.

        It has when it fails on a larger share of its pictures (two-proportion z-test), or when its mean latency is
        more than `max_slowdown` times that of production (Welch's t-test against that multiple). Both by four standard
        errors, and with a minimum count, so that a few requests on a busy machine decide nothing.
        """
        return self._failing() or self._slow(max_slowdown)

    def _failing(self) -> str | None:
        old, new = self.production, self.candidate
        if new.failures < MIN_FAILED or min(old.pictures, new.pictures) < MIN_ANSWERED:
            return None
        share = (old.failures + new.failures) / (old.pictures + new.pictures)
        error = math.sqrt(share * (1 - share) * (1 / old.pictures + 1 / new.pictures))
        if new.failures / new.pictures - old.failures / old.pictures <= _SURE * error:
            return None
        return f"failed on {new.failures} of {new.pictures} pictures, production on {old.failures} of {old.pictures}"

    def _slow(self, max_slowdown: float) -> str | None:
        old, new = self.production, self.candidate
        if min(old.answered, new.answered) < MIN_TIMED:
            return None
        error = math.sqrt(new.mean_variance + max_slowdown**2 * old.mean_variance)
        if new.mean - max_slowdown * old.mean <= _SURE * error:
            return None
        return (
            f"took {1000 * new.mean:.2f} ms a picture, production {1000 * old.mean:.2f} ms; "
            f"{max_slowdown:g} times that was allowed"
        )


def publish(folder: Path, who: str, counted: Comparison) -> None:
    """Let other processes know what this one has counted.

    Args:
        folder: of the trial.
        who: this process, by a name that no other has.
        counted: all that it has counted so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{who}.partial"
    partial.write_text(json.dumps(asdict(counted)))
    partial.replace(folder / f"{who}.json")


def gather(folder: Path) -> Comparison:
    """What all processes have counted together."""
    total = Comparison()
    for path in folder.glob("*.json"):
        total += _from_json(json.loads(path.read_text()))
    return total


def _from_json(found: dict[str, Any]) -> Comparison:
    return Comparison(Tally(**found.pop("production")), Tally(**found.pop("candidate")), **found)
