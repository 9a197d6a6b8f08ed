"""The page in a browser, before an endpoint with the models that are shipped; no Ray."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import serve.page
import services
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect, sync_playwright
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

import glioray
from glioray.cases.casefiles import ROLE_OF
from glioray.cases.nifti import encode_volume, read_volume
from glioray.config import override
from glioray.reports.images import LABEL_COLOURS
from glioray.tasks.segmentation.package import read_package, write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.model import SuperResolver

MODELS = Path(glioray.__file__).parent / "models"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 720}
WORK_MS = 120_000


@dataclass
class Visit:
    """A page that is open, and what its browser reported.

    Attributes:
        page: in the browser.
        url: of the endpoint.
        requests: addresses that were asked for.
        errors: of the page's scripts and of its policy.
    """

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def section(self, name: str = "segment") -> Locator:
        return self.page.locator(f"#{name}")

    def expect_state(self, state: str, name: str = "segment") -> None:
        expect(self.section(name)).to_have_attribute("data-state", state, timeout=WORK_MS)

    def expect_drawn(self) -> None:
        """Wait until the images are on the canvas."""
        self.expect_state("result")
        expect(self.page.locator("#segment .screen")).to_have_attribute(
            "data-shown", re.compile("."), timeout=60_000
        )

    def download(self, text: str, name: str = "segment") -> bytes:
        with self.page.expect_download() as found:
            self.section(name).locator(".downloads a", has_text=text).click()
        return Path(found.value.path()).read_bytes()

    def expect_no_sideways_scroll(self) -> None:
        widths = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], f"the page is {widths[0]} px wide in a window of {widths[1]}"


@contextmanager
def run_endpoint(segmenter: Path) -> Iterator[str]:
    """The address of an endpoint in this process, with a segmentation model and the super-resolution model that is shipped."""
    superres = str(MODELS / "starter-superres")
    watches: dict[str, ModelWatch[Any]] = {
        "segmentation": ModelWatch(str(segmenter), Predictor.load, poll_s=3600, device="cpu"),
        "superres": ModelWatch(superres, SuperResolver.load, poll_s=3600, device="cpu"),
    }
    for watch in watches.values():
        watch.refresh()
    port = services.free_port()
    config = uvicorn.Config(make_api(Settings(), watches), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the endpoint did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


def write_quick(folder: Path, **preprocess: Any) -> Path:
    """The segmentation model that is shipped, with one plane of three and without mirrored copies, for speed."""
    spec, net = read_package(MODELS / "starter")
    quick = {f"preprocess.{name}": value for name, value in {"planes": ("axial",), **preprocess}.items()}
    config = override(spec.config, **quick, **{"postprocess.mirror": (False, False)})
    write_package(folder, replace(spec, config=config), net.state_dict())
    return folder


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an endpoint with a quick model, whose example is a small head."""
    folder = write_quick(tmp_path_factory.mktemp("quick"), size=(96, 80))
    with pytest.MonkeyPatch.context() as patch, run_endpoint(folder) as url:
        patch.setattr(serve.page, "_HEAD_MM", (80, 96, 64))
        yield url


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A browser that is installed on this machine, with WebGL by software."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: install chromium")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("browser")),
            executable_path=chromium,
            headless=True,
            args=ARGUMENTS,
            viewport=DESKTOP,
            accept_downloads=True,
        )
        yield context
        context.close()


@contextmanager
def open_page(context: BrowserContext, url: str) -> Iterator[Visit]:
    """The page, newly opened; it must ask nobody else for anything and break none of its own rules."""
    page = context.new_page()
    page.emulate_media(color_scheme="light")
    visit = Visit(page, url)
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    expect(page.locator("#state-text")).to_have_text("Ready")
    yield visit
    page.close()
    assert not [
        address for address in visit.requests if not address.startswith((url, f"blob:{url}", "data:"))
    ]
    # The browser reports each refused request as an error of its own.
    assert not [text for text in visit.errors if not text.startswith("Failed to load resource")]


@pytest.fixture
def visit(context: BrowserContext, endpoint: str) -> Iterator[Visit]:
    with open_page(context, endpoint) as visit:
        yield visit


@pytest.fixture(scope="module")
def case(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four files of the example."""
    folder = tmp_path_factory.mktemp("case")
    with zipfile.ZipFile(
        io.BytesIO(requests.get(f"{endpoint}/web/example.zip", timeout=300).content)
    ) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def segment(visit: Visit, files: list[Path], timeout_ms: float = WORK_MS) -> None:
    visit.page.set_input_files("#segment input.files", files)
    visit.expect_state("ready")
    visit.page.get_by_role("button", name="Segment", exact=True).click()
    expect(visit.section()).to_have_attribute("data-state", "result", timeout=timeout_ms)
    visit.expect_drawn()


def mask_of(data: bytes) -> np.ndarray:
    return read_volume(data, name="mask").array


def post_case(url: str, files: dict[str, Path], **fields: str) -> requests.Response:
    parts = {name: (path.name, path.read_bytes()) for name, path in files.items()}
    answer = requests.post(f"{url}/v1/segment", files=parts, data=fields, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer


def by_modality(folder: Path) -> dict[str, Path]:
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    return {name: next(folder.glob(f"*_{end}.nii.gz")) for name, end in names.items()}


def count_colour(canvas: Locator, colour: str, tolerance: int = 60) -> int:
    """Pixels of a picture of the canvas that have the hue of a colour."""
    pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(float)
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], float)
    saturated = np.ptp(pixels, axis=-1) > 60
    scaled = pixels / np.maximum(pixels.max(axis=-1, keepdims=True), 1) * wanted.max()
    return int((saturated & (np.abs(scaled - wanted).max(axis=-1) < tolerance)).sum())


def check_result(visit: Visit) -> tuple[np.ndarray, dict[str, Any]]:
    """Check that the overlay is on the screen; returns the mask and the report of the downloads."""
    page = visit.page
    canvas = page.locator("#segment canvas")
    mask = mask_of(visit.download("Mask"))
    report = json.loads(visit.download("Report as data"))
    cells = page.locator("#segment .volumes tbody tr")
    assert cells.count() == len(report["volumes_ml"])
    for row, ml in zip(cells.all(), report["volumes_ml"].values(), strict=True):
        assert row.locator("td").first.inner_text() == f"{ml:.1f}"
    colours = [
        LABEL_COLOURS[name] for name, number in (("ncr", 1), ("ed", 2), ("et", 4)) if (mask == number).any()
    ]
    assert colours
    with_labels = [count_colour(canvas, colour) for colour in colours]
    page.get_by_role("radio", name="None").check(force=True)
    expect(page.locator("#segment .legend")).to_be_empty()
    without = [count_colour(canvas, colour) for colour in colours]
    assert max(without) < 50
    assert max(with_labels) > 500, with_labels
    page.get_by_role("radio", name="P(WT)").check(force=True)
    legend = page.locator("#segment .legend")
    expect(legend).to_contain_text("Probability of whole tumour", timeout=60_000)
    page.get_by_role("radio", name="Uncertainty").check(force=True)
    expect(legend).to_contain_text("Uncertainty: 0.1", timeout=60_000)
    page.get_by_role("radio", name="Labels").check(force=True)
    return mask, report


def test_a_case_is_recognised_segmented_shown_and_downloaded(visit: Visit, case: Path) -> None:
    page = visit.page
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    chosen = {
        box.get_attribute("name"): box.locator("option:checked").get_attribute("title")
        for box in page.locator(".slots select").all()
    }
    assert chosen == {name: path.name for name, path in by_modality(case).items()}
    page.get_by_role("button", name="Segment", exact=True).click()
    visit.expect_drawn()
    mask, report = check_result(visit)
    # The downloads are what programs get.
    files = by_modality(case)
    np.testing.assert_array_equal(mask, mask_of(post_case(visit.url, files).content))
    assert report == post_case(visit.url, files, output="report").json()
    with zipfile.ZipFile(io.BytesIO(visit.download("Everything"))) as archive:
        assert {
            "segmentation.nii.gz",
            "report.json",
            "report.html",
            "overlay.png",
            "probability_wt.nii.gz",
            "uncertainty.nii.gz",
        } <= set(archive.namelist())
        assert archive.testzip() is None
    page.get_by_role("button", name="New case").click()
    visit.expect_state("empty")
    expect(page.locator("#segment h1")).to_be_focused()


@pytest.mark.real
def test_a_real_case_gets_the_mask_of_a_job(
    context: BrowserContext, real_data: Path, run_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = real_data / "brats2021" / "BraTS2021_01485"
    files = by_modality(folder)
    model = write_quick(tmp_path / "model")
    with run_endpoint(model) as url, open_page(context, url) as visit:
        segment(visit, list(files.values()), timeout_ms=600_000)
        mask, _ = check_result(visit)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / folder.name).symlink_to(folder)
    out = tmp_path / "masks"
    flags = ["--model", str(model), "--data", str(tmp_path / "data"), "--labels", "brats-et4"]
    run_here("predict", *flags, "--out", str(out))
    written = mask_of((out / f"{folder.name}_seg.nii.gz").read_bytes())
    np.testing.assert_array_equal(mask, written)


def test_wrong_files_are_refused_in_a_sentence(visit: Visit, case: Path, tmp_path: Path) -> None:
    page = visit.page
    alert = page.locator("#segment [role=alert]")
    text = tmp_path / "notes.txt"
    text.write_text("nothing")
    page.set_input_files("#segment input.files", text)
    expect(alert).to_contain_text("expected .nii or .nii.gz")
    visit.expect_state("empty")
    page.set_input_files("#segment input.files", [path for path in case.iterdir() if "_t2." not in path.name])
    expect(page.locator("#segment form .notes")).to_contain_text("No file was recognised as T2")
    page.get_by_role("button", name="Segment", exact=True).click()
    expect(alert).to_contain_text("No file for T2")
    damaged = tmp_path / "x_t2.nii.gz"
    damaged.write_bytes(by_modality(case)["t2"].read_bytes()[:5000])
    page.set_input_files("#segment input.files", damaged)
    page.locator(".slots select[name=t2]").select_option(label="x_t2.nii.gz")
    page.get_by_role("button", name="Segment", exact=True).click()
    parts = by_modality(case) | {"t2": damaged}
    sent = {name: (path.name, path.read_bytes()) for name, path in parts.items()}
    detail = requests.post(f"{visit.url}/v1/segment", files=sent, timeout=60).json()["detail"]
    expect(alert).to_contain_text(detail[1:])
    visit.expect_state("ready")


def test_a_case_of_other_voxels_is_resampled_on_request(visit: Visit, case: Path, tmp_path: Path) -> None:
    files = []
    for path in case.iterdir():
        volume = read_volume(path.read_bytes(), name=path.name)
        files.append(tmp_path / path.name)
        files[-1].write_bytes(encode_volume(volume.array, volume.affine @ np.diag([1, 1, 2, 1])))
    visit.page.set_input_files("#segment input.files", files)
    visit.page.get_by_role("button", name="Segment", exact=True).click()
    alert = visit.page.locator("#segment [role=alert]")
    expect(alert).to_contain_text("along Z but the model was trained on", timeout=WORK_MS)
    visit.expect_state("ready")
    alert.get_by_role("button", name="Resample and segment").click()
    expect(visit.section()).to_have_attribute("data-state", "result", timeout=WORK_MS)
    (flag,) = visit.page.locator("#segment .flags li", has_text="was resampled from voxels of").all()
    assert "so its borders are less exact" in flag.inner_text()
    visit.page.locator("#segment button.restart:visible").click()
    assert not visit.page.locator("#segment [name=resample]").is_checked()


def test_names_mean_what_they_mean_in_a_bucket(visit: Visit) -> None:
    names = {f"CASE/CASE{mark}{token}.nii.gz": role for token, role in ROLE_OF.items() for mark in "_-"}
    names |= {
        "sub-01_ce-gd_T1w.nii.gz": "t1c",
        "MR_T2-FLAIR.nii": "flair",
        "case_t1_ce.nii.gz": "t1c",
        "BRATS_001_0003.nii.gz": "flair",
    }
    script = (
        "names => import('/web/names.js').then(({recognise}) => names.map((name) => recognise(name).role))"
    )
    assert dict(zip(names, visit.page.evaluate(script, list(names)), strict=True)) == names
    script = "paths => import('/web/names.js').then(({assign}) => assign(paths.map((path) => ({path})), ['t1', 't1c', 't2', 'flair']))"
    two = [
        "a/a_t1.nii.gz",
        "a/a_t1ce.nii.gz",
        *(f"b/b_{name}.nii.gz" for name in ("t2", "flair", "t1", "t1ce")),
    ]
    found = visit.page.evaluate(script, two)
    assert found == {"slots": {"t1": 4, "t1c": 5, "t2": 2, "flair": 3}, "title": "b", "notes": []}
    found = visit.page.evaluate(script, ["scan.nii.gz"])
    assert found["slots"] == {"image": 0}
    found = visit.page.evaluate(script, ["x_0000.nii.gz", "x_0001.nii.gz"])
    assert found["slots"] == {"t1": 0, "t1c": 1, "t2": None, "flair": None}
    assert [note.partition(",")[0] for note in found["notes"]] == [
        "The files are numbered",
        "No file was recognised as T2",
    ]


def test_a_case_is_dropped(visit: Visit, case: Path) -> None:
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in sorted(case.iterdir())]
    transfer = visit.page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) {
                transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            }
            return transfer;
        }""",
        files,
    )
    drop = visit.page.locator("#segment .drop")
    drop.dispatch_event("dragover", {"dataTransfer": transfer})
    expect(visit.section()).to_have_class(re.compile("over"))
    drop.dispatch_event("drop", {"dataTransfer": transfer})
    visit.expect_state("ready")
    assert visit.page.locator(".slot.missing").count() == 0


def test_the_page_fits_a_phone(visit: Visit, case: Path) -> None:
    page = visit.page
    page.set_viewport_size(PHONE)
    visit.expect_no_sideways_scroll()
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    visit.expect_state("ready")
    visit.expect_no_sideways_scroll()
    page.get_by_role("button", name="Segment", exact=True).click()
    visit.expect_drawn()
    visit.expect_no_sideways_scroll()
    page.get_by_role("link", name="Super-resolve").click()
    visit.expect_no_sideways_scroll()
    page.get_by_role("button", name="Try a synthetic image").click()
    visit.expect_state("ready", "superresolve")
    page.get_by_role("button", name="Super-resolve", exact=True).click()
    visit.expect_state("result", "superresolve")
    visit.expect_no_sideways_scroll()


def press_until(page: Page, key: str, target: Locator, limit: int = 60) -> None:
    for _ in range(limit):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press(key)
    pytest.fail(f"{limit} times {key} do not reach {target}")


def test_everything_is_reached_by_the_keyboard(visit: Visit) -> None:
    page = visit.page
    press_until(page, "Tab", page.locator(".skip"), 2)
    page.keyboard.press("Enter")
    press_until(page, "Tab", page.get_by_role("button", name="Try a synthetic case"), 8)
    page.keyboard.press("Enter")
    visit.expect_state("ready")
    expect(page.locator("#segment .case-title")).to_be_focused()
    press_until(page, "Tab", page.get_by_role("button", name="Segment", exact=True), 12)
    page.keyboard.press("Enter")
    visit.expect_drawn()
    expect(page.locator("#segment h1")).to_be_focused()
    flair = page.get_by_role("radio", name="FLAIR")
    press_until(page, "Tab", flair, 6)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="T1c")).to_be_checked()
    canvas = page.locator("#segment canvas")
    press_until(page, "Tab", canvas, 8)
    output = page.locator(".sliders output").nth(2)
    first = int(output.inner_text().split()[0])
    page.keyboard.press("PageUp")
    expect(output).to_have_text(re.compile(f"^{first + 1} of"))
    press_until(page, "Tab", page.locator(".sliders input").nth(2), 6)
    page.keyboard.press("ArrowLeft")
    expect(output).to_have_text(re.compile(f"^{first} of"))
    press_until(page, "Tab", page.locator("#segment .downloads a").first, 8)
    with page.expect_download() as found:
        page.keyboard.press("Enter")
    assert found.value.suggested_filename.endswith("_segmentation.nii.gz")
    press_until(page, "Shift+Tab", page.get_by_role("link", name="Super-resolve"), 40)
    page.keyboard.press("Enter")
    press_until(page, "Shift+Tab", page.locator(".skip"), 8)
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    press_until(page, "Tab", page.get_by_role("button", name="Choose a file"), 4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Visit, case: Path, tmp_path: Path, scheme: Any) -> None:
    page = visit.page
    # Colours on their way from light to dark have no contrast yet.
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def check(state: str) -> None:
        found = Axe().run(page).response["violations"]
        serious = [
            (fault["id"], [node["html"] for node in fault["nodes"]])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert not serious, f"{state}, {scheme}: {serious}"

    check("empty")
    text = tmp_path / "notes.txt"
    text.write_text("nothing")
    page.set_input_files("#segment input.files", text)
    expect(page.locator("#segment [role=alert] p")).to_be_visible()
    check("error")
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    visit.expect_state("ready")
    page.locator("#segment summary").click()
    check("ready")
    page.get_by_role("button", name="Segment", exact=True).click()
    check("working")
    visit.expect_drawn()
    check("result")
    page.get_by_role("link", name="Super-resolve").click()
    check("super-resolution, empty")
    page.get_by_role("button", name="Try a synthetic image").click()
    visit.expect_state("ready", "superresolve")
    check("super-resolution, ready")
    page.get_by_role("button", name="Super-resolve", exact=True).click()
    visit.expect_state("result", "superresolve")
    check("super-resolution, result")


def test_an_image_is_super_resolved_and_compared(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Super-resolve").click()
    page.get_by_role("button", name="Try a synthetic image").click()
    visit.expect_state("ready", "superresolve")
    page.locator("#superresolve form .blend").fill("0.5")
    page.get_by_role("button", name="Super-resolve", exact=True).click()
    visit.expect_state("result", "superresolve")
    coarse = requests.get(f"{visit.url}/web/example.png", timeout=60).content
    sent = {"image": ("example.png", coarse)}
    fine = requests.post(
        f"{visit.url}/v1/superresolve", files=sent, data={"blend": "0.5"}, timeout=60
    ).content
    made = np.asarray(Image.open(io.BytesIO(visit.download("Result", "superresolve"))))
    np.testing.assert_array_equal(made, np.asarray(Image.open(io.BytesIO(fine))))
    compare = page.locator("#superresolve .compare")
    wipe = page.locator("#superresolve .wipe")
    pictures = []
    for share in ("0", "100"):
        wipe.fill(share)
        pictures.append(np.asarray(Image.open(io.BytesIO(compare.screenshot())).convert("L"), float))
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


def test_a_volume_is_super_resolved_and_compared(visit: Visit, case: Path, tmp_path: Path) -> None:
    volume = read_volume(by_modality(case)["t1"].read_bytes(), name="t1")
    coarse = volume.array.reshape(20, 4, 24, 4, 64).mean(axis=(1, 3)).astype(np.int16)
    path = tmp_path / "coarse.nii.gz"
    path.write_bytes(encode_volume(coarse, volume.affine @ np.diag([4, 4, 1, 1])))
    page = visit.page
    page.get_by_role("link", name="Super-resolve").click()
    page.set_input_files("#superresolve input.files", path)
    page.get_by_role("button", name="Super-resolve", exact=True).click()
    visit.expect_state("result", "superresolve")
    expect(page.locator("#superresolve .facts-line")).to_contain_text("20 × 24 to 80 × 96 pixels")
    assert count_grey(page.locator("#superresolve canvas.after")) > 5000


def count_grey(canvas: Locator) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("L"))
    return int((pixels > 40).sum())


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Visit, case: Path) -> None:
    page = visit.page
    keys: list[str | None] = []

    def guard(route: Route) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"detail": "no API key was sent; send one"})

    page.route("**/v1/segment", guard)
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    page.get_by_role("button", name="Segment", exact=True).click()
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("secret")
    page.keyboard.press("Enter")
    visit.expect_drawn()
    assert keys == [None, "Bearer secret"]
    assert page.evaluate("sessionStorage.getItem('glioray-key')") == "secret"
    assert page.evaluate("localStorage.length") == 0
    page.evaluate("sessionStorage.clear()")


def test_without_webgl_the_picture_is_shown(context: BrowserContext, endpoint: str, case: Path) -> None:
    page = context.new_page()
    page.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        "return kind === 'webgl2' ? null : get.call(this, kind, ...rest); };"
    )
    page.goto(endpoint)
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    page.get_by_role("button", name="Segment", exact=True).click()
    expect(page.locator("#segment [role=alert]")).to_contain_text("WebGL 2 is off", timeout=WORK_MS)
    assert (
        page.locator("#segment .still").evaluate("image => image.decode().then(() => image.naturalWidth)")
        > 500
    )
    page.close()


def test_work_can_be_stopped(visit: Visit, case: Path) -> None:
    page = visit.page
    held: list[Route] = []
    page.route("**/v1/segment", lambda route: held.append(route))
    page.set_input_files("#segment input.files", sorted(case.iterdir()))
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    visit.expect_state("ready")
    expect(page.locator("#segment [role=alert]")).to_be_empty()
    for route in held:
        route.abort()
