#!/usr/bin/env python3
"""Makes mix.txt, mix_images.f32 and erase_input.f32: mixup, CutMix, soft targets and random erasing
of timm 0.6.11 in float32.  usage: make_mix_cases.py FOLDER_OF_AUGMENT_H5   (needs numpy, h5py)

mix NAME cutmix lam_drawn cy cx y0 y1 x0 x1 lam crc_of_output crc_of_targets
erase MODE top left h w crc_of_output
quantiles NAME samples value at 5 %, 10 %, ... 95 %"""
import json, os, sys, zlib
import h5py, numpy as np

golden = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
h5 = h5py.File(os.path.join(golden, "augment.h5"), "r")
drawn = json.load(open(os.path.join(golden, "distributions.json")))
out = []


def crc(a):
    return zlib.crc32(np.ascontiguousarray(a).tobytes())


mix = h5["mixup"]
mix["images"][()].astype("<f4").tofile(f"{here}/mix_images.f32")
out.append("labels " + " ".join(str(v) for v in mix["labels"][()]))
for name, g in mix.items():
    if name in ("images", "labels") or g.attrs["mode"] != "batch":
        continue
    lam = float(np.atleast_1d(g.attrs["lam_input"])[0])
    cy, cx = g.attrs["cutmix_center_yx"]
    box = np.atleast_2d(g.attrs["boxes_yl_yh_xl_xh_lam"])
    box = box[0] if g.attrs["use_cutmix"] else [0, 0, 0, 0, lam]
    out.append(f"mix {name} {int(np.atleast_1d(g.attrs['use_cutmix'])[0])} {lam!r} {cy} {cx} "
               + " ".join(str(int(v)) for v in box[:4])
               + f" {float(box[4])!r} {crc(g['output'][()])} {crc(g['soft_targets'][()])}")

erasing = h5["random_erasing"]
erasing["input"][()].astype("<f4").tofile(f"{here}/erase_input.f32")
for name, g in erasing.items():
    if name != "input" and g.attrs["mode"] == "const":  # the others hold noise
        a = g.attrs
        where = f"{a['top']} {a['left']} {a['h']} {a['w']}"
        out.append(f"erase {a['mode']} {where} {crc(g['output'][()])}")


def quantiles(name, values):
    q = np.quantile(values, np.arange(1, 20) / 20, method="inverted_cdf")
    out.append(f"quantiles {name} {len(values)} " + " ".join(f"{v:.6g}" for v in q))


lam = np.array(drawn["mixup_lam"])
quantiles("mixup", lam[lam[:, 1] == 0, 0])
quantiles("cutmix", lam[lam[:, 1] == 1, 0])
erased = drawn["random_erasing"]
out.append(f"erased {erased['image']} {erased['trials']} {len(erased['boxes_top_left_h_w'])}")
for i, name in enumerate(("top", "left", "height", "width")):
    quantiles(name, np.array(erased["boxes_top_left_h_w"])[:, i])
open(f"{here}/mix.txt", "w").write("\n".join(out) + "\n")
