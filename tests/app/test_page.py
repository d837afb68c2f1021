"""The page in a real browser, against a real server."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from tests import needs
from tests.app import artifacts, pictures
from tests.app.process import Server, serve
from tests.training.shapes import write_shapes

TRAINING_MS = 240_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = needs.chromium()
    with sync_playwright() as playwright:
        # Containers have no user namespaces and little shared memory; the page is our own.
        running = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    yield from opened(browser, server)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trains, too."""
    models = tmp_path_factory.mktemp("trainer") / "models"
    artifacts.write(models, "cifar10", seed=1)
    with serve(models, finetune_workers=1, finetune_threads=1) as running:
        yield running


def opened(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, from a server; whatever it reports as an error fails the test."""
    with browser.new_context() as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        yield page
        assert not errors


def test_the_page_and_its_files_are_served_and_closed_to_foreign_scripts(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    own = re.findall(r'(?:src|href)="(web/[^"]+)"', answer.text)
    assert len(own) == 2
    for path in own:
        assert client.get(f"/{path}").status_code == 200
    assert client.get("/web/../settings.py").status_code == 404
    assert client.get("/web/%2e%2e/settings.py").status_code == 404


def test_chosen_pictures_get_their_answers_and_a_broken_one_its_own_error(page: Page, client: httpx.Client) -> None:
    files = [("one.png", pictures.png(1)), ("broken.png", b"no picture"), ("two.png", pictures.png(2))]
    told = client.post("/predict?model=cifar10", files=[("file", file) for file in files]).json()["predictions"]
    expect(page.locator("#model")).to_have_value("cifar10")
    chosen: list[FilePayload] = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.set_input_files("#pictures", chosen)
    items = page.locator("#answers li")
    expect(items).to_have_count(3)
    expect(items.locator("strong")).to_have_text([told[0]["label"], "", told[2]["label"]])
    expect(items.nth(1)).to_contain_text(told[1]["error"]["detail"])
    expect(page.locator("#problem")).to_be_hidden()


def test_versions_and_what_is_wrong_with_them_are_listed(page: Page) -> None:
    cards = page.locator("#models article")
    expect(cards.filter(has_text="cifar10").locator("tbody tr")).to_have_count(2)
    expect(cards.filter(has_text="cifar10").locator("tbody tr").nth(1)).to_contain_text("in production")
    expect(cards.filter(has_text="unreadable").locator(".error")).not_to_be_empty()


def test_a_key_is_asked_for_and_used(browser: Browser, guarded: Server) -> None:
    for page in opened(browser, guarded):
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key input", "second-key")
        page.click("#key button")
        expect(page.locator("#model")).to_have_value("cifar10")
        expect(page.locator("#key")).to_be_hidden()


def test_what_is_wrong_with_a_folder_is_said(browser: Browser, trainer: Server, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    for page in opened(browser, trainer):
        page.set_input_files("#folder", folder)
        page.fill("[name=name]", "pets")
        page.click("#train button")
        expect(page.locator("#problem")).to_contain_text("cat/1.png")
        expect(page.locator("#jobs li", has_text="pets")).to_have_count(0)


def test_a_folder_of_pictures_becomes_a_model_that_answers(browser: Browser, trainer: Server, tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", count=30)
    for page in opened(browser, trainer):
        page.set_input_files("#folder", folder)
        expect(page.locator("#folder-chosen")).to_have_text("60 files in cross, disc")
        page.fill("[name=name]", "shapes")
        page.click("#train button")
        expect(page.locator("#jobs li")).to_contain_text("succeeded", timeout=TRAINING_MS)
        expect(page.locator("#models article", has_text="shapes")).to_contain_text("in production")
        page.select_option("#model", "shapes")
        page.set_input_files("#pictures", folder / "disc" / "0.png")
        expect(page.locator("#answers strong")).to_have_text(re.compile("disc|cross"))


def test_a_folder_is_packed_into_an_archive_that_holds_the_same_files(page: Page) -> None:
    long = "pets/" + "a" * 120 + "/ö 1.png"
    contents = {"pets/cat/1.png": pictures.png(1), long: b"x" * 512, "pets/dog/empty": b""}
    packed = page.evaluate(
        """async (entries) => {
             const {pack} = await import("/web/tar.js");
             const files = entries.map(([path, bytes]) => ({path, file: new File([new Uint8Array(bytes)], path)}));
             return [...new Uint8Array(await pack(files).arrayBuffer())];
           }""",
        [[path, list(data)] for path, data in contents.items()],
    )
    with tarfile.open(fileobj=io.BytesIO(bytes(packed))) as archive:
        unpacked = {member.name: archive.extractfile(member) for member in archive}
        assert {name: file.read() for name, file in unpacked.items() if file} == contents
