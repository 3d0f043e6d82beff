#!/usr/bin/env python3
"""The peer of bench_data: the official input pipeline with Pillow, torchvision and the definitions of
timm 0.6.11 (restated below: RandomResizedCropAndInterpolation and RandAugment in plain Python calls
of Pillow), one process, one thread. Prints one JSON line per transform, as bench_data does: all from
memory but "read_train", which reads the files as well.

usage: torch_data.py FOLDER_OF_IMAGES [seconds per transform]   (needs torch, torchvision, Pillow)"""
import glob
import io
import json
import math
import os
import random
import sys
import time

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision import transforms
from torchvision.transforms import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = tuple(round(255 * m) for m in MEAN)


class Crop:
    """Random resized crop: area 8 to 100 %, ratio 3/4 to 4/3, ten tries, bicubic."""

    def __call__(self, img):
        w, h = img.size
        for _ in range(10):
            area = random.uniform(0.08, 1.0) * w * h
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if cw <= w and ch <= h:
                top, left = random.randint(0, h - ch), random.randint(0, w - cw)
                return self.cut(img, top, left, ch, cw)
        cw, ch = min(w, round(h * 4 / 3)), min(h, round(w * 4 / 3))
        return self.cut(img, (h - ch) // 2, (w - cw) // 2, ch, cw)

    @staticmethod
    def cut(img, top, left, h, w):
        return functional.resized_crop(img, top, left, h, w, (224, 224),
                                       transforms.InterpolationMode.BICUBIC)


def either(v):
    return -v if random.random() > 0.5 else v


def affine(*m):
    return lambda img: img.transform(img.size, Image.AFFINE, m, Image.BICUBIC, fillcolor=FILL)


def add(img, amount):
    return img.point([min(255, v + amount) if v < 128 else v for v in range(256)] * 3)


def enhance(kind):
    return lambda m: lambda img: kind(img).enhance(max(0.1, 1 + either(m * 0.09)))


OPS = [
    lambda m: ImageOps.autocontrast,
    lambda m: ImageOps.equalize,
    lambda m: ImageOps.invert,
    lambda m: lambda img: img.rotate(either(3 * m), Image.BICUBIC, fillcolor=FILL),
    lambda m: lambda img: ImageOps.posterize(img, 4 - int(0.4 * m)),
    lambda m: lambda img: ImageOps.solarize(img, 256 - int(25.6 * m)),
    lambda m: lambda img: add(img, int(11 * m)),
    enhance(ImageEnhance.Color),
    enhance(ImageEnhance.Contrast),
    enhance(ImageEnhance.Brightness),
    enhance(ImageEnhance.Sharpness),
    lambda m: affine(1, either(0.03 * m), 0, 0, 1, 0),
    lambda m: affine(1, 0, 0, either(0.03 * m), 1, 0),
    lambda m: affine(1, 0, either(0.045 * m) * 224, 0, 1, 0),
    lambda m: affine(1, 0, 0, 0, 1, either(0.045 * m) * 224),
]


class RandAugment:
    """rand-m9-mstd0.5-inc1"""

    def __call__(self, img):
        for op in np.random.choice(OPS, 2):
            if random.random() > 0.5:
                continue
            img = op(max(0.0, min(random.gauss(9, 0.5), 10.0)))(img)
        return img


def pipeline(name):
    last = [transforms.ToTensor(), transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD))]
    if name == "decode":
        return lambda img: img
    if name in ("train", "read_train"):
        return transforms.Compose([Crop(), transforms.RandomHorizontalFlip(0.5), RandAugment()] + last)
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose([transforms.Resize(224, bicubic), transforms.CenterCrop(224)] + last)


def main():
    torch.set_num_threads(1)
    random.seed(1)
    np.random.seed(1)
    folder, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    names = sorted(n for n in glob.glob(os.path.join(folder, "**", "*"), recursive=True)
                   if os.path.isfile(n))
    files = [open(n, "rb").read() for n in names]
    for name in ("decode", "train", "eval", "read_train"):
        run, images, rounds = pipeline(name), 0, 0
        begin, cpu = time.perf_counter(), time.process_time()
        while rounds == 0 or time.perf_counter() - begin < seconds:
            for path, data in zip(names, files):
                if name == "read_train":
                    data = open(path, "rb").read()
                run(Image.open(io.BytesIO(data)).convert("RGB"))
            images += len(files)
            rounds += 1
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(json.dumps({"bench": "data", "engine": "python", "transform": name, "threads": 1,
                          "images": images, "images_per_second": round(images / wall, 1),
                          "images_per_core_second": round(images / cpu, 1)}), flush=True)


main()
