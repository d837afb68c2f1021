"""The pages in a real browser, against a real server."""

import io
import re
import signal
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import (
    APIResponse,
    Browser,
    ConsoleMessage,
    FilePayload,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from app.feedback.label import MAX_LENGTH
from app.jobs.folder import JobFolder, State
from app.jobs.job import Progress
from tests import needs
from tests.app import artifacts, pictures
from tests.app.jobs import TINY, accepted, shapes, submit
from tests.app.process import Server, serve, upload_begun
from tests.encoding import encode
from tests.training.shapes import draw

TRAINING_MS = 240_000
expect.set_options(timeout=30_000)  # a busy machine fails no test


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


@pytest.fixture
def three_versions(tmp_path: Path) -> Iterator[Server]:
    """A service of one model, whose first version of three is in production."""
    for version in (1, 2, 3):
        artifacts.write(tmp_path / "models", "pets", seed=version, classes=("cat", "dog"), promote=version == 1)
    with serve(tmp_path / "models", data_dir=tmp_path / "data") as running:
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
        assert found.headers["cache-control"] == "no-cache"
        known = client.get(found.url, headers={"if-none-match": found.headers["etag"]})
        assert known.headers["cache-control"] == "no-cache"


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


def test_many_pictures_go_in_portions_and_their_answers_with_another_model(page: Page) -> None:
    bodies: list[str] = []
    page.on("request", lambda request: bodies.append(request.url) if "/predict?" in request.url else None)
    expect(page.locator("#model")).to_have_value("cifar10")
    choose(page, *[pictures.png(seed % 5) for seed in range(20)])
    items = page.locator("#answers li")
    expect(items).to_have_count(20)
    expect(page.locator("#waiting")).to_be_hidden()
    assert len(bodies) == 2
    names = items.locator("strong").all_inner_texts()
    assert names == names[:5] * 4
    page.select_option("#model", "pets")
    expect(items).to_have_count(0)
    # Together they are more than this service takes at once.
    choose(page, pictures.png(1), b"x" * 3_000_000, b"x" * 3_000_000, b"x" * 5_000_000, pictures.png(1))
    expect(items.locator("strong")).to_have_text([re.compile("."), "", "", "", re.compile(".")])
    expect(items.locator(".error")).to_have_count(3)
    expect(items.nth(3)).to_contain_text("4 MB")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_large_drop_outlasts_a_broken_connection_and_a_busy_service(browser: Browser, models: Path) -> None:
    sent: list[Route] = []
    uploads: list[socket.socket] = []

    def disturb(route: Route) -> None:
        sent.append(route)
        if len(sent) == 2:
            route.abort()
            return
        if len(sent) == 3:
            uploads.append(upload_begun(running.url))
        route.continue_()

    with serve(models, max_inflight=1) as running:
        for page in opened(browser, running):
            page.route("**/predict?*", disturb)
            choose(page, *[pictures.png(seed % 5) for seed in range(48)])
            expect(page.locator("#waiting")).to_contain_text("16 of 48 done. The service is busy.")
            uploads.pop().close()
            names = page.locator("#answers strong")
            expect(names).to_have_count(48)
            assert names.all_inner_texts()[:45] == names.all_inner_texts()[:5] * 9
            expect(page.locator("#problem")).to_be_hidden()


def test_pictures_that_get_no_answer_are_said(page: Page, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(20)]
    for file in files:
        file.write_bytes(pictures.png(1))

    def lose(route: Route) -> None:
        files[17].unlink(missing_ok=True)
        route.continue_()

    page.route("**/predict?*", lose)
    page.set_input_files("#pictures", files)
    expect(page.locator("#problem")).to_contain_text("17.png cannot be read any more")
    expect(page.locator("#problem")).to_contain_text("The last 4 of 20 pictures are not classified.")
    expect(page.locator("#answers li")).to_have_count(16)


def test_a_dropped_folder_is_no_picture(page: Page, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    box = page.locator("#pictures-drop").bounding_box()
    assert box
    data = {"items": [], "files": [str(tmp_path / "cat")], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"x": box["x"] + 5, "y": box["y"] + 5}
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    expect(page.locator("#problem")).to_contain_text("goes to 'Train your own'")


def test_versions_and_what_is_wrong_with_them_are_listed(page: Page) -> None:
    cards = page.locator("#models article")
    expect(cards.filter(has_text="cifar10").locator("tbody tr")).to_have_count(2)
    expect(cards.filter(has_text="cifar10").locator("tbody tr").nth(1)).to_contain_text("in production")
    expect(cards.filter(has_text="unreadable").locator(".error")).not_to_be_empty()


def test_the_versions_shown_are_those_that_were_asked_for_last(browser: Browser, three_versions: Server) -> None:
    held: list[tuple[Route, APIResponse]] = []

    def hold(route: Route) -> None:
        held.append((route, route.fetch()))

    for page in opened(browser, three_versions):
        rows = page.locator("#models tbody tr")
        page.route("**/models", hold, times=1)
        with page.expect_request("**/models"):
            rows.nth(1).get_by_role("button", name="Promote").click()
        rows.nth(0).get_by_role("button", name="Promote").click()
        expect(rows.nth(0)).to_contain_text("in production")
        route, late = held.pop()
        with page.expect_response("**/models"):
            route.fulfill(response=late)
        for _ in range(3):
            page.evaluate("async () => (await fetch('models/pets/versions/1')).json()")
        expect(rows.nth(0)).to_contain_text("in production")


def test_what_changes_a_model_keeps_the_focus_there(browser: Browser, three_versions: Server) -> None:
    for page in opened(browser, three_versions):
        card = page.locator("#models article")
        rows = card.locator("tbody tr")
        back = card.get_by_role("button", name="Back to the version before")
        for row in (1, 0):
            rows.nth(row).get_by_role("button", name="Promote").press("Enter")
            expect(rows.nth(row)).to_contain_text("in production")
            expect(card.locator("h3")).to_be_focused()
        back.press("Enter")
        expect(rows.nth(1)).to_contain_text("in production")
        expect(back).to_be_focused()
        back.press("Enter")
        expect(rows.nth(2)).to_contain_text("in production")
        expect(card.locator("h3")).to_be_focused()


def test_a_key_is_asked_for_and_used_on_both_pages(browser: Browser, guarded: Server) -> None:
    for page in opened(browser, guarded):
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key input", "right-key")
        page.click("#key button")
        expect(page.locator("#model")).to_have_value("cifar10")
        expect(page.locator("#key")).to_be_hidden()
        page.get_by_role("link", name="API").click()
        try_listing_models(page)


def test_a_key_that_no_request_can_carry_locks_nobody_out(browser: Browser, guarded: Server) -> None:
    for page in opened(browser, guarded):
        page.evaluate("sessionStorage.setItem('key', 'right-\\u200bkey')")
        page.reload()
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key input", "right-\u200bkey")
        page.click("#key button")
        expect(page.locator("#problem")).to_contain_text("not even invisible ones")
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key input", " right-key ")
        page.click("#key button")
        expect(page.locator("#model")).to_have_value("cifar10")
        expect(page.locator("#key")).to_be_hidden()


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
            sees_names(queue.first, "1.png, taken for (bird|cat|dog|fish)")
            queue.first.get_by_role("button", name="Forget").click()
            expect(queue).to_have_count(3)
            expect(queue.first.get_by_role("button", name="Forget")).to_be_focused()
            label(page, queue.first, "newt")
            expect(queue).to_have_count(2)
            expect(queue.first.locator("input")).to_be_focused()
            page.click("#learn")
            expect(page.locator("#problem")).to_contain_text("needs 3")
            label(page, queue.first, "Newt")
            expect(page.locator("#problem")).to_contain_text("differs only in case")
            label(page, queue.first, "newt")
            expect(page.locator("#feedback-count")).to_contain_text("3 labelled, 1 wait")
            queue.first.get_by_role("button", name="Forget").click()
            expect(queue).to_have_count(0)
            expect(page.locator("#feedback-title")).to_be_focused()
            page.locator("#learn").dblclick()
            expect(page.locator("#jobs li")).to_contain_text("queued")
            expect(page.locator("#problem")).to_be_hidden()


def choose(page: Page, *data: bytes) -> None:
    """Have pictures classified."""
    page.set_input_files("#pictures", [FilePayload(name="1.png", mimeType="image/png", buffer=each) for each in data])


def label(page: Page, item: Locator, name: str) -> None:
    item.locator("input").fill(name)
    page.keyboard.press("Enter")


def sees_names(item: Locator, prediction: str) -> None:
    """What belongs to a prediction names it to those who only hear the page."""
    expect(item.locator("input")).to_have_accessible_name(re.compile(f"^right label of {prediction}$"))
    expect(item.locator("form button")).to_have_accessible_name(re.compile(f"^Save the right label of {prediction}$"))
    expect(item.locator(".forget")).to_have_accessible_name(re.compile(f"^Forget {prediction}$"))


def test_what_waits_for_a_label_is_that_of_the_chosen_model(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "birds", seed=1, classes=("crow", "owl"))
    artifacts.write(tmp_path / "models", "pets", seed=3, classes=("cat", "dog"))
    late = "**/feedback/queue?model=birds*"
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    with serve(tmp_path / "models", data_dir=tmp_path / "data", keep_feedback=True) as running:
        for page in opened(browser, running):
            for model in ("birds", "pets"):
                page.select_option("#model", model)
                choose(page, pictures.png(1))
                expect(page.locator("#queue li")).to_have_count(1)
            page.route(late, hold)
            with page.expect_request(late):
                page.select_option("#model", "birds")
            with page.expect_response("**/models/pets/versions/1"):
                page.select_option("#model", "pets")
            with page.expect_response(late):
                held.pop().continue_()
            page.unroute(late)
            page.evaluate("async () => (await fetch('feedback/queue?model=birds')).json()")
            expect(page.locator("#queue strong")).to_have_text([re.compile("cat|dog")])
            expect(page.locator("#classes option")).to_have_text(["cat", "dog"])


def test_what_is_being_typed_outlasts_the_end_of_a_job(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "pets", seed=3, classes=("cat", "dog"))
    with (
        serve(tmp_path / "models", data_dir=tmp_path / "data", keep_feedback=True) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        job = accepted(submit(client, shapes(3), name="shapes", **TINY))
        for page in opened(browser, running):
            expect(page.locator("#jobs .status")).to_have_text("queued")
            choose(page, pictures.png(1), pictures.png(2))
            expect(page.locator("#queue li")).to_have_count(2)
            field = page.locator("#queue input").nth(1).element_handle()
            field.type("ne")
            (other,) = client.post("/predict", files={"file": ("3.png", pictures.png(3))}).json()["predictions"]
            assert client.get(f"/feedback/{other['id']}/picture").status_code == 200
            client.delete(f"/finetune/{job}")
            expect(page.locator("#queue li")).to_have_count(3)
            assert field.input_value() == "ne"
            assert field.evaluate("field => field === document.activeElement")


def test_nothing_is_wider_than_a_phone(browser: Browser, tmp_path: Path) -> None:
    classes = ("c" * MAX_LENGTH, "d" * MAX_LENGTH)
    for promote in (True, False):
        artifacts.write(tmp_path / "models", "m" * 64, seed=1, classes=classes, promote=promote)
    with serve(tmp_path / "models", data_dir=tmp_path / "data", keep_feedback=True) as running:
        for page in opened(browser, running):
            page.set_viewport_size({"width": 360, "height": 740})
            expect(page.locator("#models tbody tr")).to_have_count(2)
            choose(page, pictures.png(1))
            expect(page.locator("#answers li")).to_have_count(1)
            expect(page.locator("#queue input")).to_have_attribute("maxlength", str(MAX_LENGTH))
            assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_where_pictures_are_not_kept_nothing_can_be_corrected(page: Page) -> None:
    with page.expect_response("**/feedback"):
        page.reload()
    choose(page, pictures.png(1))
    expect(page.locator("#answers li")).to_have_count(1)
    expect(page.locator("#answers form")).to_have_count(0)
    expect(page.locator("#feedback")).to_be_hidden()
    expect(page.locator("#problem")).to_be_hidden()


def test_what_is_wrong_with_a_folder_is_said(browser: Browser, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pets", cat=b"no picture", dog=pictures.png(1))
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    with serve(tmp_path / "models", data_dir=tmp_path / "data", finetune_workers=1) as running:
        for page in opened(browser, running):
            page.fill("[name=name]", "pets")
            page.set_input_files("#folder", folder / "cat")
            expect(page.locator("#folder-chosen")).to_contain_text("No folder in the chosen one holds pictures")
            page.click("#train button")
            expect(page.locator("#problem")).to_contain_text("one folder of pictures for each class")
            page.set_input_files("#folder", folder_of(tmp_path / "lone", cat=pictures.png(1)))
            page.click("#train button")
            expect(page.locator("#problem")).to_contain_text("Only cat holds pictures")
            page.set_input_files("#folder", folder)
            expect(page.locator("#folder-chosen")).to_have_text("6 files in cat, dog")
            page.click("#train button")
            expect(page.locator("#problem")).to_contain_text("cat/1.png")
            expect(page.locator("#jobs li")).to_have_count(0)


def test_what_goes_wrong_is_seen_wherever_the_page_is_scrolled_to(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.locator("#models article")).not_to_have_count(0)
    fill(page, "pets", folder_of(tmp_path / "pets", cat=b"no picture", dog=pictures.png(1)))
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.click("#train button")
    expect(page.locator("#problem")).to_contain_text("cat/0.png")
    expect(page.locator("#problem")).to_be_in_viewport(ratio=1)
    expect(page.locator("#train button")).to_be_focused()


def folder_of(folder: Path, **classes: bytes) -> Path:
    """A folder of classes with as many pictures as each needs."""
    for name, data in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(3):
            (folder / name / f"{number}.png").write_bytes(data)
    return folder


def test_a_restart_of_the_service_is_survived_and_nothing_is_trained_twice(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    folder = folder_of(tmp_path / "pets", cat=pictures.png(1), dog=pictures.png(2))
    keys: list[str] = []

    def sent(request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/finetune"):
            keys.append(request.headers["idempotency-key"])

    with serve(tmp_path / "models", data_dir=tmp_path / "data") as running:
        for page in opened(browser, running):
            page.on("request", sent)
            fill(page, "pets", folder)
            page.locator("#train button").dblclick()
            job = sees_its_progress(page, tmp_path / "data")
            sees_no_old_answers(page, running)
            running.stop()
            expect(page.locator("#away")).to_contain_text("cannot be reached")
            choose(page, pictures.png(1))
            expect(page.locator("#problem")).to_have_text("The service cannot be reached. Is it running?")
            expect(page.locator("#answers li")).to_have_count(0)
            for name in ("pets", "newts"):
                fill(page, name, folder)
                page.click("#train button")
                expect(page.locator("#problem")).to_contain_text("Try again")
            port = running.url.rpartition(":")[2]
            with serve(tmp_path / "models", "--port", port, data_dir=tmp_path / "data"):
                sees_its_end(page, f"{running.url}/finetune/{job}")
                page.click("#train button")
                expect(page.locator("#jobs li")).to_have_count(2)
                fill(page, "newts", folder)
                page.click("#train button")
                expect(page.locator("#jobs li")).to_have_count(3)
    accepted, broken, *retried, last = keys
    assert len(retried) == 2
    assert len({accepted, broken, *retried, last}) == 4


def test_many_unfinished_jobs_do_not_hold_up_the_page(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    with (
        serve(tmp_path / "models", data_dir=tmp_path / "data") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        for _ in range(7):  # browsers open six connections to a service
            accepted(submit(client, shapes(3), name="shapes", **TINY))
        for page in opened(browser, running):
            jobs = page.locator("#jobs li")
            expect(jobs.locator(".status")).to_have_text(["queued"] * 7)
            choose(page, pictures.png(1))
            expect(page.locator("#answers li")).to_have_count(1)
            with page.expect_response("**/models"):
                jobs.first.get_by_role("button", name="Cancel").click()
            expect(jobs.locator(".status")).to_have_text(["cancelled", *["queued"] * 6])


def test_a_folder_that_changed_after_it_was_chosen_is_to_be_chosen_again(browser: Browser, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "models", "cifar10", seed=1)
    folder = folder_of(tmp_path / "pets", cat=pictures.png(1), dog=pictures.png(2))
    with serve(tmp_path / "models", data_dir=tmp_path / "data") as running:
        for page in opened(browser, running):
            fill(page, "pets", folder)
            (folder / "cat" / "1.png").write_bytes(pictures.png(3) + b"more")
            page.click("#train button")
            said = "pets/cat/1.png cannot be read any more. Choose the folder again."
            expect(page.locator("#problem")).to_have_text(said)
            fill(page, "pets", folder)
            page.click("#train button")
            expect(page.locator("#jobs .status")).to_have_text("queued")
            expect(page.locator("#problem")).to_be_hidden()


def fill(page: Page, name: str, folder: Path) -> None:
    """Say what is to be trained."""
    page.set_input_files("#folder", folder)
    page.fill("[name=name]", name)


def sees_its_progress(page: Page, data: Path) -> str:
    """What a worker says of the only job is shown; gives its id."""
    jobs = page.locator("#jobs li")
    expect(jobs.locator(".status")).to_have_text("queued")
    job = jobs.get_attribute("data-id")
    assert job
    progress = Progress(epoch=2, epochs=5, eta_seconds=2280)
    JobFolder(data, job).write_state(State(progress=progress, warnings=["Few cats.", "Few dogs."]))
    expect(jobs.locator(".detail")).to_have_text("epoch 2 of 5, about 38 min left")
    expect(jobs.locator(".warnings")).to_have_text("Few cats.\nFew dogs.")
    return job


def sees_its_end(page: Page, job: str) -> None:
    """The only job is followed again; what is shown when it ends takes no error away."""
    expect(page.locator("#away")).to_be_hidden()
    with page.expect_response("**/models"):
        httpx.delete(job, timeout=60)
    expect(page.locator("#jobs .status")).to_have_text("cancelled")
    expect(page.locator("#jobs .detail")).to_be_empty()
    expect(page.locator("#jobs .warnings")).to_contain_text("Few cats.")
    expect(page.locator("#problem")).to_contain_text("Try again")


def sees_no_old_answers(page: Page, server: Server) -> None:
    """Answers go when others are waited for, which is said."""
    section, items = page.locator("#classify"), page.locator("#answers li")
    choose(page, pictures.png(1))
    expect(items).to_have_count(1)
    server.process.send_signal(signal.SIGSTOP)
    choose(page, pictures.png(2), pictures.png(3))
    expect(section).to_have_attribute("aria-busy", "true")
    expect(page.locator("#waiting")).to_have_text("Classifying: 0 of 2 done")
    expect(items).to_have_count(0)
    server.process.send_signal(signal.SIGCONT)
    expect(items).to_have_count(2)
    expect(section).to_have_attribute("aria-busy", "false")
    expect(page.locator("#waiting")).to_be_hidden()


def test_a_folder_is_packed_into_an_archive_that_holds_the_same_files(page: Page) -> None:
    long = "pets/" + "a" * 120 + "/ö 1.png"
    contents = {"pets/cat/1.png": pictures.png(1), long: b"x" * 512, "pets/dog/empty": b""}
    packed = page.evaluate(
        """async (entries) => {
             const {pack} = await import("/web/tar.js");
             const files = entries.map(([path, bytes], place) => {
               const lastModified = (place - 1) * 1000; // the first one is from before 1970
               return {path, file: new File([new Uint8Array(bytes)], path, {lastModified})};
             });
             return [...new Uint8Array(await pack(files).arrayBuffer())];
           }""",
        [[path, list(data)] for path, data in contents.items()],
    )
    with tarfile.open(fileobj=io.BytesIO(bytes(packed))) as archive:
        assert [member.mtime for member in archive] == [0, 0, 1]
        unpacked = {member.name: archive.extractfile(member) for member in archive}
        assert {name: file.read() for name, file in unpacked.items() if file} == contents
