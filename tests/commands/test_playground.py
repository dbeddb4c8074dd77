"""The playground in a real browser: every tab, several pages, bad uploads, no outside request."""

import contextlib
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import pyvips
from helpers import ROOT, Script
from PIL import Image, UnidentifiedImageError

playwright = pytest.importorskip("playwright.sync_api", reason="requires playwright")
CHROMIUM = next(filter(os.path.exists, ("/usr/bin/chromium", "/usr/bin/google-chrome")), None)
CELL = 96  # pixels of an image in a grid of ten
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="requires gradio"),
    pytest.mark.skipif(CHROMIUM is None, reason="requires Chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a running playground, behind proxies and of a user without a name."""
    code = "import getpass, runpy; getpass.getuser = None; "
    code += f"runpy.run_path({str(ROOT / 'scripts' / 'playground.py')!r}, None, '__main__')"
    command = [sys.executable, "-c", code]
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks://127.0.0.1:9/"}
    environment = os.environ | proxies | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("Playground: "))
    yield line.split()[1]
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    arguments = ["--no-sandbox", "--disable-gpu"]
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def new_page(url: str, browser: playwright.Browser) -> Iterator[Callable[[], playwright.Page]]:
    """Opens pages; at the end, there must be no error and no request to another machine."""
    errors: list[str] = []
    hosts: set[str | None] = set()

    def open_page() -> playwright.Page:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.goto(url)
        open_tab(page, "Denoise")
        shown(page, "Clean")
        return page

    yield open_page
    assert errors == []
    assert hosts <= {"127.0.0.1", None, ""}  # None: data and blob addresses


@pytest.fixture(scope="module")
def page(new_page: Callable[[], playwright.Page]) -> playwright.Page:
    return new_page()


def shown(page: playwright.Page, title: str, other_than: np.ndarray | None = None) -> np.ndarray:
    """Waits for an image whose title starts so, and that differs from another one."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        block = page.locator(".titled:visible").filter(has_text=re.compile(f"^\\s*{title}"))
        image = block.first.locator("img")
        if image.count():
            response = page.request.get(image.first.get_attribute("src"))
            with contextlib.suppress(UnidentifiedImageError):  # being written
                pixels = np.array(Image.open(io.BytesIO(response.body())).convert("L"))
                if other_than is None or not np.array_equal(pixels, other_than):
                    return pixels
        time.sleep(0.05)
    raise AssertionError(f"{title}: no other image")


def difference(image: np.ndarray, grid: np.ndarray, position: int) -> float:
    """Mean difference of an image and the first (2) or last (-CELL - 2) of a grid."""
    small = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
    cell = grid[position:, position:][:CELL, :CELL]
    return float(np.abs(cell - np.array(small, dtype=float)).mean())


def open_tab(page: playwright.Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def set_number(page: playwright.Page, label: str, value: float) -> None:
    field = page.locator("input[type=number]:visible").and_(page.get_by_label(label))
    field.first.fill(str(value))
    field.first.blur()


def psnr(page: playwright.Page) -> list[float]:
    """PSNR of the noisy image and of the two denoised images."""
    text = " ".join(page.locator(".titled:visible label").all_inner_texts())
    return [float(each) for each in re.findall(r"PSNR ([\d.]+)", text)]


def test_port_in_use_is_reported(script: Script):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, _, err = script("playground", f"port={port}")
    assert (status, err) == (
        2,
        f"error: port={port}: in use or reserved. Use another from 1024 to 65535.\n",
    )


def test_denoised_images_follow_the_noise_level(page: playwright.Page):
    noisy = shown(page, "Noisy")
    before = psnr(page)
    set_number(page, "Noise level t", 0.2)
    shown(page, "Noisy", noisy)
    shown(page, "08_one_step")
    page.wait_for_timeout(500)
    after = psnr(page)
    assert after[0] > before[0]  # less noise
    assert min(before[1:]) > before[0]  # both networks denoise the lesson's noise level
    assert after[1] > after[2]  # the lesson's network is trained at 0.5 only


def test_drawing_is_denoised(page: playwright.Page):
    first = shown(page, "Clean")
    box = page.locator("canvas:visible").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    drawn = shown(page, "Clean", first)
    assert drawn[: len(drawn) // 4].max() == 0  # black above the line
    assert drawn[len(drawn) // 2].max() > 200


def test_bad_upload_is_reported_and_transparent_one_is_white(page: playwright.Page, tmp_path: Path):
    (tmp_path / "text.png").write_text("not an image")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload an image").first.click()
    first = shown(page, "Clean")
    chooser.value.set_files(tmp_path / "text.png")
    page.get_by_text("cannot identify image file 'text.png'").first.wait_for(timeout=20_000)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload an image").first.click()
    chooser.value.set_files(tmp_path / "transparent.png")
    assert shown(page, "Clean", first).min() > 250


def test_photo_is_cleaned_and_keeps_its_depth(new_page, tmp_path: Path):
    page = new_page()
    open_tab(page, "Photo")
    clean = np.linspace(10_000, 50_000, 200 * 300 * 3).reshape(200, 300, 3)
    noise = np.random.default_rng(0).normal(0, 25 / 255 * 65_535, clean.shape)
    noisy = (clean + noise).clip(0, 65_535).astype(np.uint16)
    pyvips.Image.new_from_array(noisy, interpretation="rgb16").write_to_file(
        str(tmp_path / "photo.png")
    )
    page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
    level = page.locator("input[type=number]:visible").and_(page.get_by_label("Noise, of 255"))
    playwright.expect(level.first).to_have_value(re.compile(r"^2[456]"), timeout=20_000)
    shown(page, "Noisy and denoised")
    page.get_by_role("button", name="Denoise the whole photo").click()
    download_button = page.get_by_role("button", name="Download the photo")
    playwright.expect(download_button).to_be_enabled(timeout=60_000)
    with page.expect_download() as download:
        download_button.click()
    download.value.save_as(tmp_path / "denoised.png")
    assert download.value.suggested_filename == "photo.png"
    denoised = pyvips.Image.new_from_file(str(tmp_path / "denoised.png")).numpy()
    assert denoised.dtype == np.uint16
    assert (denoised - clean).std() < 0.4 * (noisy - clean).std()


def test_photo_is_filled_where_it_is_painted_and_enlarged(new_page, tmp_path: Path):
    page = new_page()
    open_tab(page, "Restore")
    image = np.linspace(40, 200, 96)[:, None].repeat(120, axis=1).astype(np.uint8)
    image[40:56, 50:70] = 0  # a spot
    Image.fromarray(image).convert("RGB").save(tmp_path / "photo.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Upload").locator("visible=true").last.click()
    chooser.value.set_files(tmp_path / "photo.png")
    canvas = page.locator("canvas:visible").first
    box = canvas.bounding_box()
    assert box is not None
    page.wait_for_timeout(1000)  # the photo is placed on the canvas
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 60, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=5)
    page.mouse.up()

    def restored() -> np.ndarray:
        button = page.get_by_role("button", name="Download the result")
        page.get_by_role("button", name="Restore", exact=True).click()
        playwright.expect(button).to_be_disabled()
        playwright.expect(button).to_be_enabled(timeout=60_000)
        with page.expect_download() as download:
            button.click()
        download.value.save_as(tmp_path / "restored.png")
        return np.asarray(Image.open(tmp_path / "restored.png").convert("L"), int)

    filled = restored()
    changed = filled != image
    assert 20 < changed.sum() < 3000
    assert (filled[changed] > 60).mean() > 0.9  # like its surroundings
    page.get_by_label("Enlarge").check()
    page.get_by_label("Factor").first.wait_for()
    assert restored().shape == (192, 240)


def test_generated_images_depend_on_seed_and_steps(page: playwright.Page, tmp_path: Path):
    open_tab(page, "Generate")
    button = page.get_by_role("button", name="Generate", exact=True)
    page.get_by_text("NFE 20").wait_for(timeout=20_000)
    one, many = shown(page, "NFE 1,"), shown(page, "NFE 20")
    assert one.shape == many.shape
    set_number(page, "Seed", 5)
    button.click()
    shown(page, "NFE 1,", one)
    set_number(page, "Steps", 6)
    button.click()
    page.get_by_text("NFE 6,").wait_for(timeout=20_000)
    for kind in ("PNG", "GIF"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {kind}").click()
        file = tmp_path / f"image.{kind.lower()}"
        download.value.save_as(file)
        assert getattr(Image.open(file), "n_frames", 1) == (7 if kind == "GIF" else 1)


def test_image_to_image_changes_more_with_more_strength(page: playwright.Page):
    open_tab(page, "Image to image")
    image, half = shown(page, "Image"), shown(page, "Generated from it")
    set_number(page, "Strength (noise level)", 0.05)
    little = shown(page, "Generated from it", half)
    assert difference(image, little, 2) < difference(image, half, 2)


def test_interpolation_ends_at_the_images_of_the_seeds(page: playwright.Page):
    open_tab(page, "Interpolate")
    middle = shown(page, "At this position")
    set_number(page, "Position between the seeds", 0)
    start = shown(page, "At this position", middle)
    set_number(page, "Position between the seeds", 1)
    end = shown(page, "At this position", start)
    grid = shown(page, "From seed to seed")
    assert difference(start, grid, 2) < 0.3 * difference(end, grid, 2)
    assert difference(end, grid, -CELL - 2) < 0.3 * difference(start, grid, -CELL - 2)


def test_pages_do_not_mix(page: playwright.Page, new_page: Callable[[], playwright.Page]):
    open_tab(page, "Denoise")
    second = new_page()
    image, before = shown(second, "Clean"), shown(page, "Clean")
    page.get_by_label("Thumbnail 3 of 10").first.click()
    changed = shown(page, "Clean", before)
    set_number(second, "Noise level t", 0.1)
    second.get_by_text(re.compile(r"Noisy, PSNR 2\d")).wait_for(timeout=20_000)
    np.testing.assert_array_equal(shown(second, "Clean"), image)
    np.testing.assert_array_equal(shown(page, "Clean"), changed)


def test_page_fits_a_phone(page: playwright.Page):
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("Photo", "Denoise", "Generate", "Image to image", "Interpolate"):
        if page.get_by_role("tab", name=name).count():
            open_tab(page, name)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, name
