"""A page for browsers: the ONNX file, ONNX Runtime Web, and an index.html that classifies an image or the camera."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from limbeck.core import LimbeckError
from limbeck.exports.graph import Graph
from limbeck.exports.onnx import ONNX
from limbeck.exports.onnx import export as export_onnx

PACKAGE = "onnxruntime-web@1.30.0"
"""On npm; the version that is tested."""

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of the package's folder ``dist`` that the page needs."""

PAGE = ("index.html", "page.js", "worker.js")
LICENCE = "onnxruntime-web.txt"
LARGEST = 2**26
"""The most bytes of a file of the package: 64 MiB."""


def export(graph: Graph, path: Path) -> dict[str, int]:
    """Write a file of ONNX, and the page beside it, which needs a server but no other site.

    Raises:
        LimbeckError: the inputs are not grey or RGB images of bytes in ``nhwc``; the runtime cannot be fetched.
    """
    channels = graph.example.shape[-1]
    if graph.example.dim() != 4 or graph.example.dtype.is_floating_point or channels not in (1, 3):
        raise LimbeckError("the page reads grey or RGB images of bytes with the layout nhwc")
    fallbacks = export_onnx(graph, path)
    for name in PAGE:
        shutil.copyfile(Path(__file__).parent / "page" / name, path.parent / name)
    if graph.runtime is not None:
        _copy(graph.runtime, path.parent)
        return fallbacks
    with TemporaryDirectory() as folder:
        _copy(_fetched(Path(folder)), path.parent)
    return fallbacks


def _fetched(folder: Path) -> Path:
    """The package, fetched with npm and unpacked into a folder."""
    try:
        command = ["npm", "pack", PACKAGE, "--silent", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            names = {f"package/{name}" for name in ("package.json", *(f"dist/{one}" for one in RUNTIME))}
            members = [one for one in archive if one.name in names and one.isfile() and one.size <= LARGEST]
            archive.extractall(folder, members, filter="data")
    except (OSError, subprocess.SubprocessError, tarfile.TarError, StopIteration) as error:
        raise LimbeckError(
            f"npm cannot fetch {PACKAGE} ({error}): unpack it from elsewhere, and name its folder with --runtime"
        ) from error
    return folder / "package"


def _copy(package: Path, folder: Path) -> None:
    """Copy what the page needs from a package, with a file that states its version and licence."""
    try:
        about = json.loads((package / "package.json").read_text(encoding="utf-8"))
        for name in RUNTIME:
            shutil.copyfile(package / "dist" / name, folder / name)
        text = f"onnxruntime-web {about['version']}, licence: {about['license']}, {about['repository']['url']}\n"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LimbeckError(f"{package} is not the unpacked package onnxruntime-web: {error}") from error
    (folder / LICENCE).write_text(text, encoding="utf-8")


WEB = replace(ONNX, export=export, beside=(*PAGE, *RUNTIME, LICENCE))
