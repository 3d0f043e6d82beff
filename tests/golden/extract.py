#!/usr/bin/env python3
"""Makes the small copies in this folder from the full reference files (see README.md): a few cases of
each kind, every value unchanged. Usage: extract.py FOLDER_OF_FULL_FILES  (needs h5py)"""
import gzip
import json
import os
import sys

import h5py

CASES = {
    "dcnv3_op.h5": ["edge_integer_scale2", "k3_1x1_image", "k3_pad1_dil2_stride2",
                    "k3x5_pad1x2_stride2x1"],
    "dcnv4_op.h5": ["k3_c64_g1", "k3_removecenter_softmax_stride2"],
    "modules.h5": ["dcnv3_k5_pad2", "dcnv4_dw5_cfs", "dcnv4_nopointwise"],
    "backbones.h5": ["internimage_s_like"],
    "droppath.h5": ["internimage_t_like"],
    "fullsize.h5": ["h_real_clip_head"],
    "train_curves.h5": ["t_like_accum2"],
}
YAMLS = ["configs/internimage_t_1k_224.yaml", "configs/internimage_h_22kto1k_384.yaml",
         "configs/without_lr_decay/internimage_l_22kto1k_384.yaml",
         "configs/flash_intern_image_l_22kto1k_384.yaml"]


def write_json(path, value):
    with open(path, "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0) as z:
        z.write(json.dumps(value, separators=(",", ":")).encode())


def main(source):
    here = os.path.dirname(os.path.abspath(__file__))
    for name, cases in CASES.items():
        with h5py.File(os.path.join(source, name)) as f, h5py.File(os.path.join(here, name), "w") as g:
            g.attrs["description"] = f.attrs["description"]
            for case in cases:
                f.copy(case, g)
    with gzip.open(os.path.join(source, "param_groups.json.gz")) as f:
        groups = json.load(f)
    groups["configs"] = [c for c in groups["configs"] if c["yaml"] in YAMLS]
    write_json(os.path.join(here, "param_groups.json.gz"), groups)
    with open(os.path.join(source, "lr_schedules.json")) as f:
        rates = json.load(f)
    rates["schedules"] = [c for c in rates["schedules"] if c["yaml"] in YAMLS]
    write_json(os.path.join(here, "lr_schedules.json.gz"), rates)


main(sys.argv[1])
