"""Sort pictures with a model.onnx of stdac and nothing of stdac: python bare_onnxruntime.py model.onnx *.png

Needs numpy, onnxruntime and pillow. The file itself says what it takes; scaling is inside it.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
size, mode = (int(meta["width"]), int(meta["height"])), meta["colour_mode"]  # mode: "L" (gray) or "RGB"
names = json.loads(meta["cluster_names"]) or [str(k) for k in range(int(meta["k"]))]

for path in sys.argv[2:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    smaller = picture.width >= size[0] and picture.height >= size[1]
    picture = picture.resize(size, Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(*size[::-1], -1).transpose(2, 0, 1)  # (C, H, W) uint8
    cluster, confidence = session.run(["cluster", "confidence"], {"images": pixels[None]})
    print(path, names[cluster[0]], f"{confidence[0]:.6f}", sep="\t")
