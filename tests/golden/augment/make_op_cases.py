#!/usr/bin/env python3
"""Makes ops.txt and the images ops_*.png: what RandAugment's operations and colour jitter make of
small images, and how often timm drew which operation, from the reference data (needs numpy, h5py,
Pillow).  usage: make_op_cases.py FOLDER_OF_AUGMENT_H5
image NAME w h crc
randaug IMAGE OP magnitude sign argument crc     bicubic, fill 124 116 104
op IMAGE OP argument filter crc
jitter IMAGE OP factor [OP factor ...] crc
drawn OP times sum_of_magnitudes sum_of_squares negative     of so many images: images N"""
import json, os, sys, zlib
import h5py, numpy as np
from PIL import Image

golden = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
h5 = h5py.File(os.path.join(golden, "augment.h5"), "r")
JITTER = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color", "hue": "Hue"}
out = []


def crc(a):
    return zlib.crc32(np.ascontiguousarray(a).tobytes())


for image, group in h5["randaug"].items():
    pixels = group["input"][()]
    Image.fromarray(pixels).save(f"{here}/ops_{image}.png")
    out.append(f"image {image} {pixels.shape[1]} {pixels.shape[0]} {crc(pixels)}")
    for name, d in group.items():
        a = d.attrs
        if "magnitude" in a:
            out.append(f"randaug {image} {a['op']} {float(a['magnitude'])!r} {a['sign']} "
                       f"{float(a['level_arg'])!r} {crc(d[()])}")
        elif name != "input":
            out.append(f"op {image} {a['op']} {float(a['level_arg'])!r} "
                       f"{a.get('interpolation', 'bicubic')} {crc(d[()])}")
for image, group in h5["color_jitter"].items():
    assert (group["input"][()] == h5[f"randaug/{image}/input"][()]).all()
    for name, d in group.items():
        if name.startswith("chain"):
            assert name == "chain_b1.2_c0.8_s1.3"
            out.append(f"jitter {image} Brightness 1.2 Contrast 0.8 Color 1.3 {crc(d[()])}")
        elif name != "input":
            a = d.attrs
            out.append(f"jitter {image} {JITTER[a['op']]} {float(a['factor'])!r} {crc(d[()])}")

drawn = json.load(open(os.path.join(golden, "distributions.json")))["randaugment"]
assert drawn["config"] == "rand-m9-mstd0.5-inc1"
out.append(f"images {len(drawn['applied'])} {sum(len(i) for i in drawn['applied'])}")
values = {}
for image in drawn["applied"]:
    for op, *arg in image:
        values.setdefault(op, []).append(arg[0] if arg else 0.0)
for op, v in sorted(values.items()):
    v = np.array(v)
    out.append(f"drawn {op} {len(v)} {float(v.sum())!r} {float((v * v).sum())!r} {int((v < 0).sum())}")
open(f"{here}/ops.txt", "w").write("\n".join(out) + "\n")
