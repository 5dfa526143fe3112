"""`--to web`: the page in a browser gives the student's logits, also without a network."""

import http.server
import os
import threading
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limbeck
from limbeck.exports import EXPORTERS
from limbeck.exports.base import missing_of
from limbeck.exports.web import RUNTIME
from limbeck.models import build

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(path).exists()), None)
pytestmark = pytest.mark.skipif(bool(missing_of(EXPORTERS["web"].modules)), reason="needs limbeck[export]")


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (60, 3, 6, 8), dtype=torch.uint8, generator=generator)
    return limbeck.arrays(inputs, torch.arange(60) % 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("mlp", classes=3, shape=(3, 6, 8), hidden=(9,)).eval()


def folder_of(path: Path) -> Path:
    (path / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (path / "dist" / name).write_text(name)
    return path


def test_the_runtime_may_be_given(network, data, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.web.RUNTIME", {name: sha256(name.encode()).hexdigest() for name in RUNTIME})
    done = limbeck.export(network, data, tmp_path / "out", to="web", runtime=folder_of(tmp_path / "package"))
    assert {one.name for one in done.folder.iterdir()} == {
        "card.json",
        "index.html",
        "onnxruntime-web.txt",
        "page.js",
        "student.onnx",
        "worker.js",
        *RUNTIME,
    }
    assert (done.folder / "onnxruntime-web.txt").read_text().startswith("onnxruntime-web@1.30.0, licence: MIT")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(network, data, tmp_path):
    """The folder of a page on a server on this machine, and what stops the server."""
    package = Path(os.environ.get("LIMBECK_ORT_WEB", "node_modules/onnxruntime-web"))
    try:
        given = package if package.is_dir() else None
        done = limbeck.export(network, data, tmp_path / "out", to="web", runtime=given)
    except limbeck.LimbeckError as error:
        if "npm cannot fetch" not in str(error):
            raise
        pytest.skip(str(error))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=done.folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", server
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.timeout(120)
def test_the_page_answers_as_the_student_also_without_a_network(served, network, data, tmp_path):
    address, server = served
    raw = data.test.inputs[:4]
    with torch.no_grad():
        expected = network(limbeck.data.normalise(raw, data.mean, data.std))
    images = [one.permute(1, 2, 0).contiguous() for one in raw]
    errors, strange = [], []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda one: strange.append(one.url) if not one.url.startswith((address, "blob:")) else None)
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        run = "async (bytes) => (await import('./page.js')).run(Uint8Array.from(bytes))"
        for image, logits in zip(images, expected, strict=True):
            found = page.evaluate(run, image.flatten().tolist())
            np.testing.assert_allclose(found, logits.numpy(), rtol=1e-4, atol=1e-5)
        page.evaluate("() => navigator.serviceWorker.ready")
        page.reload()  # the worker now sees every request
        page.wait_for_selector("body[data-ready]")
        server.shutdown()
        server.server_close()
        page.reload()
        page.wait_for_selector("body[data-ready]")
        written = BytesIO()
        Image.fromarray(images[0].numpy()).save(written, "PNG")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": written.getvalue()})
        page.wait_for_selector("#classes li")
        shown = [row.inner_text() for row in page.locator("#classes li span:first-child").all()]
        assert shown == [str(place) for place in expected[0].argsort(descending=True).tolist()]
        empty = BytesIO()
        Image.new("RGBA", (8, 6)).save(empty, "PNG")
        page.set_input_files("#file", {"name": "empty.png", "mimeType": "image/png", "buffer": empty.getvalue()})
        canvas = "document.getElementById('canvas').getContext('2d')"
        page.wait_for_function(f"() => {canvas}.getImageData(0, 0, 8, 6).data.every((value) => value === 0)")
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("text=b.png is not an image")
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
    assert errors == strange == []
