"""Picture files: their headers, and their pixels as arrays of one size and number of channels."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxkd.errors import ConfigError, needed_by, one_line

if TYPE_CHECKING:
  from PIL import Image

# Suffixes of the files that are read as pictures. The content decides the format.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is at least this multiple of the size
# wanted. Against resizing from the full size, photographs differ by less than 0.5 of 255 levels on
# average and by 8 at most (tests/data/test_folders.py); at 1 by more than twice that.
_REDUCING_GAP = 2.0
# EXIF's tag of the orientation, and its values that exchange width and height.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
# Aspect ratio from which a picture is cropped before it is resized.
_NARROW = 16
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class Header(NamedTuple):
  """Size and number of channels, from a picture's header.

  Attributes:
    size: (height, width) of the upright picture.
    channels: 1 for a greyscale picture, 3 for any other.
  """

  size: tuple[int, int]
  channels: int


def read_header(picture: Path | bytes | Any, where: str) -> Header:
  """Read the header of a picture, without decoding its pixels.

  Args:
    picture: a file, the content of one, or a Pillow image.
    where: name of the picture in errors.

  Raises:
    ConfigError: naming the picture, if it is none, or has pixels of more than 8 bits.
  """
  with _reading(where), _opened(picture) as image:
    _check_mode(image, where)
    width, height = image.size
    if _orientation(image) in _TURNED:
      width, height = height, width
    return Header((height, width), 1 if image.mode in _GREY else 3)


def decode(
  picture: Path | bytes | Any, *, channels: int, side: int = 0, where: str = "the picture"
) -> np.ndarray:
  """Return the pixels of a picture, (H, W, channels) uint8.

  A picture is turned upright as EXIF says. Transparent pixels are laid over white. Palettes, CMYK
  and greyscale become RGB, or grey if there is one channel.

  Args:
    picture: a file, the content of one, or a Pillow image.
    channels: 1 or 3.
    side: resize the shorter side to this number and return the central square, as
      `jaxkd.data.imagenet.shrink` does; 0 keeps the size. A JPEG much larger than that is decoded
      at a fraction of its size.
    where: name of the picture in errors.

  Raises:
    ConfigError: naming the picture, if it cannot be decoded, or has pixels of more than 8 bits.
  """
  with _reading(where), _opened(picture) as opened:
    with needed_by("reading pictures"):
      from PIL import ImageOps

    _check_mode(opened, where)
    image: Any = opened
    mode = "L" if channels == 1 else "RGB"
    if side:
      image = _resized(image, side, mode)
    if _orientation(opened) not in (None, 1):
      image = ImageOps.exif_transpose(image)
    image = _middle(image, side) if side else _converted(image, mode)
    pixels = np.asarray(image)
  return pixels.reshape(*pixels.shape[:2], channels)


def square(pixels: np.ndarray, side: int) -> np.ndarray:
  """Resize the shorter side of an image (H, W, C) uint8, return the centre (side, side, C)."""
  with needed_by("image_size"):
    from PIL import Image

  planes = [
    _middle(_resized(Image.fromarray(plane), side), side) for plane in np.moveaxis(pixels, -1, 0)
  ]
  return np.stack([np.asarray(plane) for plane in planes], axis=-1)


class Pictures:
  """Random access to pictures, decoded by several threads on access.

  Attributes:
    pictures: files, or functions that return a file's content.
    names: name of each in errors.
    channels: 1 or 3.
    side: as for `decode`.
  """

  def __init__(
    self, pictures: Sequence[Any], names: Sequence[str], *, channels: int, side: int
  ) -> None:
    self.pictures, self.names = pictures, names
    self.channels, self.side = channels, side

  def __len__(self) -> int:
    return len(self.pictures)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return records {"image": (H, W, C) uint8}."""
    return list(in_threads(self._record, keys))

  def _record(self, key: int) -> dict[str, Any]:
    picture, where = self.pictures[key], self.names[key]
    return {"image": decode(picture, channels=self.channels, side=self.side, where=where)}


class Resized:
  """Random access to the records of another source, with images resized as by `square`.

  Attributes:
    source: `source.__getitems__(list of int)` returns records with an "image" (H, W, C) uint8.
    side: side of the squares.
  """

  def __init__(self, source: Any, side: int) -> None:
    self.source, self.side = source, side

  def __len__(self) -> int:
    return len(self.source)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return the records {"image": (side, side, C) uint8, ...}."""
    records = self.source.__getitems__(keys)
    return [{**record, "image": square(record["image"], self.side)} for record in records]


def common_header(pictures: Sequence[Any], names: Sequence[str], side: int) -> Header:
  """Return the size and channels that pictures have in common; all headers are read.

  Args:
    pictures: as for `read_header`.
    names: name of each in errors.
    side: side of the squares to which they will be resized; 0 if they keep their sizes.

  Raises:
    ConfigError: naming two pictures of different sizes, if side is 0; or as `read_header`.
  """
  headers = list(in_threads(lambda key: read_header(pictures[key], names[key]), range(len(names))))
  channels = max(header.channels for header in headers)
  if side:
    return Header((side, side), channels)
  first = headers[0].size
  for header, name in zip(headers, names, strict=True):
    if header.size != first:
      raise ConfigError(
        f"pictures differ in size: {names[0]} is {_size(first)}, {name} is {_size(header.size)}; "
        "image_size (data.image_size) brings all to squares of one size"
      )
  return Header(first, channels)


def in_threads(function: Callable[[int], Any], keys: Iterable[int]) -> Iterator[Any]:
  """Call a function for every key in several threads; yield the results in order."""
  return _pool().map(function, keys)


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  # Pillow decodes and resizes without Python's lock.
  return concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1), "jaxkd-pictures")


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
  """Turn what Pillow raises for a damaged picture into a ConfigError that names the picture."""
  with needed_by("reading pictures"):
    from PIL import Image, UnidentifiedImageError

  try:
    yield
  except ConfigError:
    raise
  except UnidentifiedImageError as error:
    raise ConfigError(f"{where} is no picture that Pillow can read") from error
  except (
    OSError,
    SyntaxError,  # damaged PNG
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
  ) as error:
    raise ConfigError(f"{where} cannot be read: {one_line(error)}") from error


def _opened(picture: Any) -> Any:
  """Return a context manager of the Pillow image."""
  with needed_by("reading pictures"):
    from PIL import Image

  if isinstance(picture, Image.Image):
    return contextlib.nullcontext(picture)
  return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _check_mode(image: Image.Image, where: str) -> None:
  if image.mode not in (*_GREY, *_COLOUR):
    raise ConfigError(
      f"{where} has pixels of Pillow's mode {image.mode!r}, expected 8 bits per channel: "
      "greyscale, RGB, CMYK or a palette"
    )


def _orientation(image: Image.Image) -> int | None:
  # For other formats, getexif decodes the picture if its header has no EXIF.
  if getattr(image, "format", None) in ("JPEG", "MPO") or "exif" in image.info:
    return image.getexif().get(_ORIENTATION)
  return None


def _converted(image: Image.Image, mode: str) -> Image.Image:
  with needed_by("reading pictures"):
    from PIL import Image

  if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
    if image.mode in ("La", "RGBa"):
      image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert(mode)


def _resized(image: Image.Image, side: int, mode: str = "") -> Image.Image:
  """Resize the shorter side of an image to `side`, as `jaxkd.data.imagenet.shrink` does.

  Args:
    image: an image, which may not be decoded yet.
    side: length of the shorter side of the result.
    mode: mode to which the image is converted before; "" keeps its own.
  """
  with needed_by("reading pictures"):
    from PIL import Image

  width, height = image.size
  shorter, box = min(width, height), None
  exif = image.info.get("exif")
  if max(width, height) > _NARROW * shorter:
    # Cut first: the resized strip would be large, and little more than its middle is used.
    left, top = max(0, (width - 3 * shorter) // 2), max(0, (height - 3 * shorter) // 2)
    image = image.crop((left, top, width - left, height - top))
    width, height = image.size
  else:
    wanted = [max(1, int(_REDUCING_GAP * side * length / shorter)) for length in image.size]
    # The part of the reduced picture that the original covers: sides are rounded up.
    drafted = image.draft(None, (wanted[0], wanted[1]))
    box = drafted[1] if drafted else None
  image = _converted(image, mode) if mode else image
  size = (width * side // shorter, height * side // shorter)
  image = image.resize(size, Image.Resampling.BILINEAR, box=box)
  if exif:
    image.info["exif"] = exif
  return image


def _middle(image: Image.Image, side: int) -> Image.Image:
  """Return the central square of an image; rounded as in torchvision."""
  left, top = round((image.width - side) / 2), round((image.height - side) / 2)
  return image.crop((left, top, left + side, top + side))


def _size(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"
