"""Folders and zip files for tests."""

import io
import zipfile

from PIL import Image


def picture(value=0, size=(4, 4), mode="L"):
    """An image of one colour; the size is width and height."""
    return Image.new(mode, size, (value, 0, 255 - value)[: len(mode)] if mode == "RGB" else value)


def encoded(image, kind="png", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tree(place, files):
    """Files by name, content in bytes or an image, as a folder or (where the place ends with .zip) a zip file."""
    contents = {name: encoded(value) if isinstance(value, Image.Image) else value for name, value in files.items()}
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return place
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (place / name).write_bytes(content)
        else:
            (place / name).mkdir(exist_ok=True)
    return place


def two_classes(top="", count=10):
    return {f"{top}{name}/{i:02}.png": picture(20 * i) for name in ("cat", "ant") for i in range(count)}
