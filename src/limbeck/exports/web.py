"""A page for browsers: the ONNX file, ONNX Runtime Web, and an index.html that classifies an image or the camera."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from limbeck.core import LimbeckError
from limbeck.exports.graph import Graph
from limbeck.exports.onnx import ONNX
from limbeck.files.atomic import read

PACKAGE = "onnxruntime-web@1.30.0"
"""On npm; the version that is tested."""

RUNTIME = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files of the package's folder ``dist`` that the page needs, and their SHA-256."""

PAGE = ("index.html", "page.js", "worker.js")
LICENCE = "onnxruntime-web.txt"
LARGEST = 2**26
"""The most bytes of a file of the package: 64 MiB."""


def add_page(graph: Graph, folder: Path) -> None:
    """Write the page, which needs a server but no other site.

    Raises:
        LimbeckError: the student does not classify grey or RGB images of bytes; the runtime cannot be fetched, or is
            not the one that was tested.
    """
    example, task = graph.example, json.loads(graph.card)["task"]
    images = example.dim() == 4 and example.shape[-1] in (1, 3) and not example.is_floating_point()
    if task != "classification" or not images:
        raise LimbeckError("the page classifies grey or RGB images of bytes")
    for name in PAGE:
        shutil.copyfile(Path(__file__).parent / "page" / name, folder / name)
    with TemporaryDirectory() as temporary:
        package = graph.runtime or _fetched(Path(temporary))
        for name, digest in RUNTIME.items():
            data = read(package / "dist" / name, LARGEST) or b""
            if sha256(data).hexdigest() != digest:
                raise LimbeckError(f"{package} is not {PACKAGE}, unpacked: dist/{name} is missing or differs")
            (folder / name).write_bytes(data)
    text = f"{PACKAGE}, licence: MIT, https://github.com/Microsoft/onnxruntime\n"
    (folder / LICENCE).write_text(text, encoding="utf-8")


def _fetched(folder: Path) -> Path:
    """The package, fetched with npm and unpacked into a folder."""
    try:
        command = ["npm", "pack", PACKAGE, "--silent", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            names = {f"package/dist/{name}" for name in RUNTIME}
            members = [one for one in archive if one.name in names and one.isfile() and one.size <= LARGEST]
            archive.extractall(folder, members, filter="data")
    except (OSError, subprocess.SubprocessError, tarfile.TarError, StopIteration) as error:
        raise LimbeckError(
            f"npm cannot fetch {PACKAGE} ({error}): unpack it from elsewhere, and name its folder with --runtime"
        ) from error
    return folder / "package"


WEB = replace(ONNX, add=add_page, beside=(*PAGE, *RUNTIME, LICENCE))
