#!/usr/bin/env python3
"""Makes the files of this folder: a small part of the image reference data and, from Pillow, cases
it has not.  usage: make_cases.py FOLDER_OF_AUGMENT_H5   (needs numpy, h5py, Pillow)"""
import io, os, shutil, struct, sys, zlib
import h5py, numpy as np
from PIL import Image, ImageFile, ImageOps

golden = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
h5 = h5py.File(os.path.join(golden, "augment.h5"), "r")
photos = ["photo_spaniel", "photo_gray_nail", "photo_exif6", "photo_sloth"]
names = sorted(n for n in h5["decode"] if "__" not in n and (n.startswith("made") or n in photos))
out = []


def crc(a):
    return zlib.crc32(np.ascontiguousarray(a).tobytes())


# reference data: decode NAME w h crc; oriented NAME w h crc; eval SIZE NAME crc
for n in names:
    shutil.copyfile(f"{golden}/images/{n}.JPEG", f"{here}/{n}.JPEG")
    os.chmod(f"{here}/{n}.JPEG", 0o644)
    a = h5["decode"][n][()]
    assert crc(a) == h5["decode"][n].attrs["crc32"]
    out.append(f"decode {n}.JPEG {a.shape[1]} {a.shape[0]} {crc(a)}")
    if h5["decode"][n].attrs["cv2_equals_pil_rotated_90_clockwise"]:
        a = np.rot90(a, -1)
        out.append(f"oriented {n}.JPEG {a.shape[1]} {a.shape[0]} {crc(a)}")
    for size in (224, 384):
        if f"{n}__crc32" in h5[f"eval/{size}"].attrs:
            out.append(f"eval {size} {n}.JPEG {h5[f'eval/{size}'].attrs[f'{n}__crc32']}")
h5["eval/224/photo_sloth__normalized_chw"][()].astype("<f4").tofile(f"{here}/photo_sloth_224.f32")

# resize SOURCE top left h w out_h out_w filter crc
for n, d in h5["resize"].items():
    if "box_h" not in d.attrs:
        continue
    a, src = d.attrs, d.attrs["source"]
    if f"source_{src}" in h5["resize"]:
        file = f"{src}.png"
        Image.fromarray(h5["resize"][f"source_{src}"][()]).save(f"{here}/{file}")
    elif src in names:
        file = f"{src}.JPEG"
    else:
        continue
    out.append(f"resize {file} {a['box_top']} {a['box_left']} {a['box_h']} {a['box_w']} "
               f"{a['out_h']} {a['out_w']} {a['interpolation']} {crc(d[()])}")

# All EXIF orientations, by ImageOps.exif_transpose: exif ORIENTATION NAME w h crc. The test puts the
# same APP1 segment in.
jpeg = open(f"{here}/made_444_odd.JPEG", "rb").read()
for o in range(1, 9):
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, o, 0, 0)
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + jpeg[2:]
    a = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    out.append(f"exif {o} made_444_odd.JPEG {a.shape[1]} {a.shape[0]} {crc(a)}")


# PNG kinds, written by hand since Pillow cannot write them all; expected by Pillow's convert("RGB")
def png(name, kind, depth, rows, extra=b"", interlace=False):
    h, w = rows.shape[:2]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    px = rows.reshape(h, w, channels)

    def pack(block):
        if depth == 16:
            return block.astype(">u2").tobytes()
        if depth == 8:
            return block.astype("u1").tobytes()
        bits = [int(v) for v in block.reshape(-1)]
        text = "".join(format(v, f"0{depth}b") for v in bits)
        text += "0" * (-len(text) % 8)
        return bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8))

    raw = b""
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                  (0, 1, 1, 2)]
    for x0, y0, dx, dy in passes:
        for row in px[y0::dy, x0::dx]:
            if row.size:
                raw += b"\0" + pack(row)

    def chunk(t, d):
        return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))

    head = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, int(interlace))
    data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw, 9))
            + chunk(b"IEND", b""))
    open(f"{here}/{name}.png", "wb").write(data)
    if kind == 0 and depth == 16:  # the exception named in decode_png.c: the high byte
        a = np.repeat((px >> 8).astype("u1"), 3, axis=2)
    else:
        a = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    out.append(f"decode {name}.png {w} {h} {crc(a)}")


def chunk(t, d):
    return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))


rng = np.random.default_rng(5)
h, w = 11, 13
for kind, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (4, (8, 16)), (6, (8, 16))):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    for depth in depths:
        label = {0: "grey", 2: "rgb", 4: "greya", 6: "rgba"}[kind]
        png(f"png_{label}{depth}", kind, depth, rng.integers(0, 1 << depth, (h, w, channels)))
palette = chunk(b"PLTE", rng.integers(0, 256, 48, dtype=np.uint8).tobytes())
alpha = chunk(b"tRNS", bytes(range(0, 160, 10)))
png("png_palette4", 3, 4, rng.integers(0, 16, (h, w)), palette)
png("png_palette8_alpha", 3, 8, rng.integers(0, 16, (h, w)), palette + alpha)
png("png_rgb8_interlaced", 2, 8, rng.integers(0, 256, (h, w, 3)), interlace=True)
png("png_rgb8_key", 2, 8, rng.integers(0, 256, (h, w, 3)), chunk(b"tRNS", b"\0\1\0\2\0\3"))

open(f"{here}/expected.txt", "w").write("\n".join(out) + "\n")
