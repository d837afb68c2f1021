"""`POST /predict` over HTTP: every answer is what the model says when it is asked directly."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.artifacts import CLASSES
from tests.app.pictures import direct, draw, huge_png, png
from tests.encoding import encode

TOLERANCE = 1e-4  # a batch adds up in another order than a single picture does


def check(entry: dict[str, Any], row: np.ndarray[Any, Any], classes: tuple[str, ...] = CLASSES, top: int = 5) -> None:
    order = np.argsort(-row)[:top]
    assert [name["label"] for name in entry["top"]] == [classes[index] for index in order]
    assert [name["probability"] for name in entry["top"]] == pytest.approx(row[order].tolist(), abs=TOLERANCE)
    assert (entry["label"], entry["probability"]) == (entry["top"][0]["label"], entry["top"][0]["probability"])


def test_one_file(client: httpx.Client, models: Path) -> None:
    answer = client.post("/predict", files={"file": ("cat.png", png(1))})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["version"], len(body["predictions"])) == ("cifar10", 1, 1)
    assert body["predictions"][0]["filename"] == "cat.png"
    check(body["predictions"][0], direct(models / "cifar10/1", png(1))[0])


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_raw_body(client: httpx.Client, models: Path, format_: str) -> None:
    data = encode(draw(2), format_)
    answer = client.post("/predict", content=data, headers={"Content-Type": f"image/{format_.lower()}"})
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["filename"] is None
    check(answer.json()["predictions"][0], direct(models / "cifar10/1", data)[0])


def test_chunked_body(client: httpx.Client, models: Path) -> None:
    data = png(3)
    chunks = (data[start : start + 100] for start in range(0, len(data), 100))
    answer = client.post("/predict", content=chunks, headers={"Content-Type": "image/png"})
    check(answer.json()["predictions"][0], direct(models / "cifar10/1", data)[0])


def test_orientation_is_honoured(client: httpx.Client, models: Path) -> None:
    upright = draw(4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the viewer has to turn it back
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    answer = client.post("/predict", files={"file": turned})
    check(answer.json()["predictions"][0], direct(models / "cifar10/1", encode(upright))[0])


def test_batch_keeps_order(client: httpx.Client, models: Path) -> None:
    data = [png(seed) for seed in range(100)]  # more than the engine takes at once
    answer = client.post("/predict", files=[("file", (f"{i}.png", entry)) for i, entry in enumerate(data)])
    entries = answer.json()["predictions"]
    assert [entry["filename"] for entry in entries] == [f"{i}.png" for i in range(100)]
    for entry, row in zip(entries, direct(models / "cifar10/1", *data), strict=True):
        check(entry, row)


def test_bad_pictures_cost_only_their_entries(client: httpx.Client, models: Path) -> None:
    good = png(5)
    files = [good, b"no picture", png(6)[:-40], huge_png(), b"", good]
    answer = client.post("/predict", files=[("file", (f"{i}", entry)) for i, entry in enumerate(files)])
    assert answer.status_code == 200
    entries = answer.json()["predictions"]
    assert [entry.get("error", {}).get("status") for entry in entries] == [None, 415, 422, 413, 415, None]
    assert all("label" not in entry and entry["error"]["detail"] for entry in entries[1:5])
    row = direct(models / "cifar10/1", good)[0]
    check(entries[0], row)
    check(entries[5], row)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"no picture", 415, "JPEG, PNG, WebP, GIF or BMP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "JPEG, PNG, WebP, GIF or BMP"),
        (png(7)[:-40], 422, "damaged or cut short"),
        (encode(draw(7), "JPEG")[:-40], 422, "damaged or cut short"),
        (huge_png(), 413, "20000 x 20000"),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_bad_picture(client: httpx.Client, data: bytes, status: int, said: str, raw: bool) -> None:
    if raw:
        answer = client.post("/predict", content=data, headers={"Content-Type": "image/png"})
    else:
        answer = client.post("/predict", files={"file": ("x", data)})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail"}
    assert said in answer.json()["detail"]


def test_version(client: httpx.Client, models: Path) -> None:
    answer = client.post("/predict?version=2", files={"file": png(8)})
    assert answer.json()["version"] == 2
    check(answer.json()["predictions"][0], direct(models / "cifar10/2", png(8))[0])


def test_other_model(client: httpx.Client, models: Path) -> None:
    answer = client.post("/predict?model=pets", files={"file": png(9)})
    assert (answer.json()["model"], answer.json()["version"]) == ("pets", 1)
    # It has four classes, fewer than are named by default.
    check(answer.json()["predictions"][0], direct(models / "pets/1", png(9))[0], ("bird", "cat", "dog", "fish"))


@pytest.mark.parametrize(("asked", "named"), [(1, 1), (3, 3), (10, 10), (1000, 10)])
def test_top_k(client: httpx.Client, models: Path, asked: int, named: int) -> None:
    answer = client.post(f"/predict?top_k={asked}", files={"file": png(10)})
    check(answer.json()["predictions"][0], direct(models / "cifar10/1", png(10))[0], top=named)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("top_k=0", 422, "'top_k' is '0': Input should be greater than or equal to 1"),
        ("top_k=-1", 422, "'top_k' is '-1'"),
        ("top_k=many", 422, "'top_k' is 'many'"),
        ("version=new", 422, "'version' is 'new'"),
        ("top_k=0&version=new", 422, "'version' is 'new': Input should be a valid integer"),
        ("model=ship", 404, "Models: changed, cifar10, pets, unpromoted, unreadable."),
        ("model=../cifar10", 404, "no model '../cifar10'"),
        ("model=.runs", 404, "no model '.runs'"),
        ("version=9", 404, "no version 9. Versions: 1, 2."),
        ("version=0", 404, "no version 0. Versions: 1, 2."),
        ("version=-1", 404, "no version -1."),
        ("model=unpromoted", 404, "Ask for one with version=. Versions: 1."),
        ("model=changed", 503, "model.ts was changed after it was written"),
        ("model=unreadable", 503, "manifest.json is not a valid manifest"),
        ("model=changed&version=1", 503, "model.ts was changed after it was written"),
    ],
)
def test_bad_query(client: httpx.Client, query: str, status: int, said: str) -> None:
    answer = client.post(f"/predict?{query}", files={"file": png(11)})
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)
    assert client.post("/predict", files={"file": png(11)}).status_code == 200


def test_unpromoted_version_answers_when_named(client: httpx.Client) -> None:
    answer = client.post("/predict?model=unpromoted&version=1", files={"file": png(12)})
    assert (answer.status_code, answer.json()["model"]) == (200, "unpromoted")


@pytest.mark.parametrize("milliseconds", ["60000", "1e5", "2500.5"])
def test_deadline_that_is_kept(client: httpx.Client, milliseconds: str) -> None:
    answer = client.post("/predict", files={"file": png(1)}, headers={"X-Request-Timeout-Ms": milliseconds})
    assert answer.status_code == 200


@pytest.mark.parametrize("count", [1, 8])
def test_deadline_that_cannot_be_kept(client: httpx.Client, count: int) -> None:
    answer = client.post("/predict", files=[("file", png(1))] * count, headers={"X-Request-Timeout-Ms": "0.001"})
    assert answer.status_code == answer.json()["status"] == 504
    assert int(answer.headers["retry-after"]) >= 1
    assert "X-Request-Timeout-Ms" in answer.json()["detail"]


@pytest.mark.parametrize("milliseconds", ["soon", "0", "-5", "nan", ""])
def test_deadline_that_is_none(client: httpx.Client, milliseconds: str) -> None:
    answer = client.post("/predict", files={"file": png(1)}, headers={"X-Request-Timeout-Ms": milliseconds})
    assert answer.status_code == 422
    assert "X-Request-Timeout-Ms" in answer.json()["detail"]
