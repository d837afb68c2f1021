"""Alive and ready are two things."""

from pathlib import Path

import httpx

from tests.app import artifacts
from tests.app.pictures import png
from tests.app.process import serve


def test_service_with_models(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_service_without_models(tmp_path: Path) -> None:
    with serve(tmp_path / "nowhere", ready=False) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/predict", files={"file": png(1)}).status_code in {404, 503}
        assert client.get("/models").json() == {"models": []}


def test_service_without_the_default_model_that_was_set(tmp_path: Path) -> None:
    artifacts.write(tmp_path, "pets", seed=1)
    with (
        serve(tmp_path, ready=False, default_model="resnet20") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        server.wait_logged("The default model resnet20 is not in")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "There is no model 'resnet20'. Models: pets." in answer.json()["detail"]
        assert client.post("/predict", files={"file": png(1)}).status_code == 404
        assert client.post("/predict", params={"model": "pets"}, files={"file": png(1)}).status_code == 200


def test_service_whose_only_model_is_broken(tmp_path: Path) -> None:
    artifacts.change_a_byte(artifacts.write(tmp_path, "pets", seed=1) / "model.ts")
    with serve(tmp_path, ready=False) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/predict", files={"file": png(1)}).status_code == 503
