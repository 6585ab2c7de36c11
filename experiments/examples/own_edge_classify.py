"""Classify pictures by an exported model: python own_edge_classify.py MODEL.onnx PICTURE.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
height, width, channels = session.get_inputs()[0].shape[1:]
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
for path in sys.argv[2:]:
  picture = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
  picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
  images = np.asarray(picture, np.uint8).reshape(1, height, width, channels)
  (logits,) = session.run(None, {"images": images})[0]
  shares = np.exp(logits - logits.max())
  best = shares.argmax()
  print(f"{path}: {names[best]} {shares[best] / shares.sum():.1%}")
