"""Requests for the soak test, good and bad, and what has to come of each of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import client, pictures

_BAD = 0.05  # of the requests that are drawn
_BATCH = 0.05
_PINNED = 0.001  # name a version; few, because each waits while that version is loaded
_BATCHES = 256  # different ones
_LARGEST_BATCH = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the status that it deserves.

    `entries` has for each picture its number, or the status of its error if it is a bad one among others.
    """

    message: bytes
    status: int
    entries: Sequence[int] = ()
    version: int | None = None


class Deck:
    """Requests to draw from: single pictures as forms and as bodies, batches of up to five, bad requests.

    Args:
        good: pictures, at most 400, which are below every status.
        versions: of the model, any of which a request may name.
    """

    def __init__(self, good: Sequence[bytes], versions: Sequence[int]) -> None:
        rng = random.Random(0)  # noqa: S311 (requests, no secret)
        numbers = range(len(good))
        files = dict(enumerate(good)) | _bad_files(good[0])
        self._single = [_form(files, [number]) for number in numbers]
        self._single += [Case(client.post("/predict", good[number], "image/png"), 200, [number]) for number in numbers]
        self._batches = [_batch(files, numbers, rng) for _ in range(_BATCHES)]
        self._pinned = [_form(files, [number], version) for number in numbers for version in versions]
        self._bad = _bad(good[0])

    def draw(self, rng: random.Random) -> Case:
        """Any of the requests; 5 % of them are bad."""
        chance = rng.random()
        for share, cases in ((_BAD, self._bad), (_BATCH, self._batches), (_PINNED, self._pinned)):
            if chance < share:
                return rng.choice(cases)
            chance -= share
        return rng.choice(self._single)


def _form(files: Mapping[int, bytes], entries: Sequence[int], version: int | None = None) -> Case:
    path = f"/predict?version={version}" if version else "/predict"
    return Case(client.post(path, *pictures.form(*(files[entry] for entry in entries))), 200, entries, version)


def _batch(files: Mapping[int, bytes], numbers: Sequence[int], rng: random.Random) -> Case:
    entries = rng.choices(numbers, k=rng.randint(2, _LARGEST_BATCH))
    if rng.random() < 0.3:
        entries[rng.randrange(len(entries))] = rng.choice(list(files)[len(numbers) :])
    return _form(files, entries)


def _bad_files(good: bytes) -> dict[int, bytes]:
    """Files that are no good pictures, by the status of their error."""
    return {413: pictures.huge(), 415: b"no picture", 422: good[:-40]}


def _bad(good: bytes) -> list[Case]:
    form, kind = pictures.form(good)
    single = [(status, *pictures.form(data)) for status, data in _bad_files(good).items()]
    single += [(status, data, "image/png") for status, data in _bad_files(good).items()]
    others = [
        (415, *pictures.form(b"")),
        (422, b"", "image/png"),
        (415, good, "text/plain"),
        (422, form.replace(b'name="file"', b'name="picture"'), kind),
        (422, form[: len(form) // 2], kind),
    ]
    return [Case(client.post("/predict", body, content_type), status) for status, body, content_type in single + others]
