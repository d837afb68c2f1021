"""The pages in a real browser, against a real server."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    FilePayload,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests import needs
from tests.app import artifacts, pictures
from tests.app.process import Server, serve
from tests.encoding import encode
from tests.training.shapes import draw

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
def guarded(models: Path) -> Iterator[Server]:
    with serve(models, api_keys="right-key") as running:
        yield running


def opened(browser: Browser, server: Server, path: str = "/") -> Iterator[Page]:
    """A page, from a server; its errors, what its policy forbids, and what it asks of anybody else fail the test."""
    with browser.new_context() as context:
        page = context.new_page()
        errors: list[str] = []

        def sent(request: Request) -> None:
            if not request.url.startswith((server.url, "blob:", "data:")):
                errors.append(f"asked for {request.url}")

        def said(message: ConsoleMessage) -> None:
            if "Content Security Policy" in message.text:
                errors.append(message.text)

        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", sent)
        page.on("console", said)
        page.goto(server.url + path)
        yield page
        assert not errors


def try_listing_models(page: Page) -> None:
    """On the page of the API, send GET /models and see it answered."""
    operation = page.locator(".opblock", has_text="All models")
    operation.locator("button.opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")


@pytest.mark.parametrize(("path", "files"), [("/", 2), ("/docs", 3)])
def test_the_pages_and_their_files_are_served_and_closed_to_foreign_scripts(
    client: httpx.Client, path: str, files: int
) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert not any("unsafe" in part or "http" in part for part in policy)
    own = re.findall(r'(?:src|href)="(web/[^"]+)"', answer.text)
    assert len(own) == files
    for found in (answer, *(client.get(f"/{file}") for file in own)):
        assert found.status_code == 200
        assert found.headers["x-content-type-options"] == "nosniff"


def test_only_the_pages_files_are_served(client: httpx.Client) -> None:
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


def test_a_key_is_asked_for_and_used_on_both_pages(browser: Browser, guarded: Server) -> None:
    for page in opened(browser, guarded):
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key input", "right-key")
        page.click("#key button")
        expect(page.locator("#model")).to_have_value("cifar10")
        expect(page.locator("#key")).to_be_hidden()
        page.get_by_role("link", name="API").click()
        try_listing_models(page)


@pytest.mark.parametrize("scheme", ["HTTPBearer", "APIKeyHeader"])
def test_the_api_is_described_and_tried_with_a_key(browser: Browser, guarded: Server, scheme: str) -> None:
    for page in opened(browser, guarded, "/docs"):
        expect(page.locator(".opblock-post .opblock-summary-path", has_text="/predict")).to_be_visible()
        page.click("button.authorize")
        form = page.locator(".auth-container", has_text=scheme)
        form.locator("input").fill("right-key")
        form.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").first.click()
        try_listing_models(page)


def test_a_folder_of_pictures_becomes_a_model_that_answers(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    folder = tmp_path / "shapes"
    for kind in ("disc", "cross"):
        (folder / kind).mkdir(parents=True)
        for number in range(30):
            (folder / kind / f"{number}.png").write_bytes(encode(draw(kind, number)))
    with serve(tmp_path / "models", data_dir=tmp_path / "data", finetune_workers=1) as running:
        for page in opened(browser, running):
            page.set_input_files("#folder", folder)
            expect(page.locator("#folder-chosen")).to_have_text("60 files in cross, disc")
            page.fill("[name=name]", "shapes")
            page.click("#train button")
            expect(page.locator("#jobs li")).to_contain_text("succeeded", timeout=TRAINING_MS)
            expect(page.locator("#models article", has_text="shapes")).to_contain_text("in production")
            page.select_option("#model", "shapes")
            page.set_input_files("#pictures", folder / "disc" / "0.png")
            expect(page.locator("#answers strong")).to_have_text(re.compile("disc|cross"))


def test_predictions_are_corrected_and_trained_on(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "pets", seed=3, classes=("bird", "cat", "dog", "fish"))
    with serve(tmp_path / "models", data_dir=tmp_path / "data", keep_feedback=True, api_keys="right-key") as running:
        for page in opened(browser, running):
            page.fill("#key input", "right-key")
            page.click("#key button")
            expect(page.locator("#model")).to_have_value("pets")
            choose(page, *map(pictures.png, range(5)))
            expect(page.locator("#feedback-count")).to_contain_text("0 labelled, 5 wait")
            label(page, page.locator("#answers li").first, "newt")
            expect(page.locator("#answers li").first).to_contain_text("right label: newt")
            expect(page.locator("#feedback-count")).to_contain_text("1 labelled, 4 wait")
            expect(page.locator("#classes option")).to_have_text(["bird", "cat", "dog", "fish", "newt"])
            queue = page.locator("#queue li")
            expect(queue).to_have_count(4)
            expect(queue.first.locator("img")).to_have_js_property("naturalWidth", 48)
            queue.first.get_by_role("button", name="Forget").click()
            expect(queue).to_have_count(3)
            label(page, queue.first, "newt")
            expect(queue).to_have_count(2)
            expect(queue.first.locator("input")).to_be_focused()
            page.click("#learn")
            expect(page.locator("#problem")).to_contain_text("needs 3")
            label(page, queue.first, "Newt")
            expect(page.locator("#problem")).to_contain_text("differs only in case")
            label(page, queue.first, "newt")
            expect(page.locator("#feedback-count")).to_contain_text("3 labelled, 1 wait")
            page.click("#learn")
            expect(page.locator("#jobs li")).to_contain_text("queued")
            expect(page.locator("#problem")).to_be_hidden()


def choose(page: Page, *data: bytes) -> None:
    """Have pictures classified."""
    page.set_input_files("#pictures", [FilePayload(name="1.png", mimeType="image/png", buffer=each) for each in data])


def label(page: Page, item: Locator, name: str) -> None:
    item.locator("input").fill(name)
    page.keyboard.press("Enter")


def test_where_pictures_are_not_kept_nothing_can_be_corrected(page: Page) -> None:
    with page.expect_response("**/feedback"):
        page.reload()
    choose(page, pictures.png(1))
    expect(page.locator("#answers li")).to_have_count(1)
    expect(page.locator("#answers form")).to_have_count(0)
    expect(page.locator("#feedback")).to_be_hidden()
    expect(page.locator("#problem")).to_be_hidden()


def test_what_is_wrong_with_a_folder_is_said(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    with serve(tmp_path / "models", data_dir=tmp_path / "data", finetune_workers=1) as running:
        for page in opened(browser, running):
            page.set_input_files("#folder", folder)
            page.fill("[name=name]", "pets")
            page.click("#train button")
            expect(page.locator("#problem")).to_contain_text("cat/1.png")
            expect(page.locator("#jobs li")).to_have_count(0)


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
