"""What the builders here share: uint8 images stored as they are, in the order they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


@dataclasses.dataclass
class FilesConfig(tfds.core.BuilderConfig):
  """A data set that comes as files.

  Attributes:
    files: their names as downloaded, packed.
    url: the address that the names are appended to.
    num_classes: how many.
    image_shape: (H, W, C).
  """

  files: tuple[str, ...] = ()
  url: str = ""
  num_classes: int = 10
  image_shape: tuple[int, int, int] = (28, 28, 1)


class FilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A builder that reads files from a folder, or downloads them.

  Args:
    folder: where the files are; None to download them. Of no consequence once prepared.
    **kwargs: as every TFDS builder takes: `config` (a name or a FilesConfig), `data_dir`.
  """

  VERSION = tfds.core.Version("1.0.0")
  builder_config: FilesConfig

  def __init__(self, *, folder: Path | None = None, **kwargs: Any) -> None:
    self._folder = folder
    super().__init__(**kwargs)

  @property
  def url_infos(self) -> Any:
    """The stock builder's checksums. Only downloads are held against them: Debian packs anew."""
    return tfds.builder_cls(self.builder_config.name).url_infos

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    return image_info(
      self,
      image_shape=config.image_shape,
      num_classes=config.num_classes,
      description=f"{config.name}, from the authors' files.",
      homepage=config.url,
    )

  def _files(self, dl_manager: tfds.download.DownloadManager) -> list[Path]:
    config = self.builder_config
    if self._folder is not None:
      found = {name: in_folder(self._folder, name) for name in config.files}
      missing = [name for name, file in found.items() if file is None]
      if missing:
        raise FileNotFoundError(f"{self._folder} has no {', '.join(missing)}")
      return [file for file in found.values() if file is not None]
    # Not unpacked here: tfds would need TensorFlow for it.
    files = dl_manager.download({name: config.url + name for name in config.files})
    return [Path(files[name]) for name in config.files]


def in_folder(folder: Path, name: str) -> Path | None:
  """The file in the folder, packed or not; None if there is neither."""
  candidates = (folder / name, folder / name.removesuffix(".gz"))
  return next((file for file in candidates if file.is_file()), None)


def image_info(
  builder: tfds.core.DatasetBuilder,
  *,
  image_shape: tuple[int, ...],
  num_classes: int,
  description: str,
  homepage: str,
) -> tfds.core.DatasetInfo:
  """Records {"image": uint8 tensor, "label"}, unshuffled: an index is a place in the source."""
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    homepage=homepage,
    features=tfds.features.FeaturesDict(
      {
        # Image features would need TensorFlow to encode.
        "image": tfds.features.Tensor(shape=image_shape, dtype=np.uint8),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
      }
    ),
    supervised_keys=("image", "label"),
    disable_shuffling=True,
  )


def records(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
  """The examples as `_generate_examples` is to yield them."""
  for key, (image, label) in enumerate(zip(images, labels, strict=True)):
    yield key, {"image": image, "label": int(label)}
