#!/usr/bin/env python3
"""One training step of the official InternImage in PyTorch on the CPU, to set beside bench_step.

    python3 bench/torch_step.py --official DIR [--timm DIR] [--model t] [--batch 8] [--steps 3]

DIR is the `classification` folder of a checkout of OpenGVLab/InternImage (commit 31c962d was used);
its CUDA extension is replaced by an empty module, and core_op DCNv3_pytorch is its own fallback for
machines without one. --timm is a folder that holds timm 0.6.11 when it is not installed. Prints one
JSON line: seconds per step (each), images/s, peak resident memory.
"""
import argparse
import json
import resource
import sys
import time
import types

ap = argparse.ArgumentParser()
ap.add_argument("--official", required=True)
ap.add_argument("--timm")
ap.add_argument("--model", default="t", choices=["t", "s", "b"])
ap.add_argument("--batch", type=int, default=8)
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--steps", type=int, default=3)
ap.add_argument("--threads", type=int, default=2)
args = ap.parse_args()

sys.path.insert(0, args.official)
if args.timm:
    sys.path.insert(0, args.timm)
stub = types.ModuleType("DCNv3")  # the CUDA extension; its version is asked for at import
sys.modules["DCNv3"] = stub
import pkg_resources  # noqa: E402

real_distribution = pkg_resources.get_distribution
pkg_resources.get_distribution = lambda n: (
    types.SimpleNamespace(version="1.1") if n == "DCNv3" else real_distribution(n))

import torch  # noqa: E402
import importlib.util  # noqa: E402

torch.set_num_threads(args.threads)
spec = importlib.util.spec_from_file_location(
    "intern_image", args.official + "/models/intern_image.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

sizes = {"t": dict(channels=64, depths=[4, 4, 18, 4], groups=[4, 8, 16, 32]),
         "s": dict(channels=80, depths=[4, 4, 21, 4], groups=[5, 10, 20, 40], layer_scale=1e-5,
                   post_norm=True),
         "b": dict(channels=112, depths=[4, 4, 21, 4], groups=[7, 14, 28, 56], layer_scale=1e-5,
                   post_norm=True)}
model = module.InternImage(core_op="DCNv3_pytorch", num_classes=1000, drop_path_rate=0.1,
                           **sizes[args.model])
decay, no_decay = [], []
for name, p in model.named_parameters():
    (no_decay if p.ndim == 1 or name.endswith(".bias") else decay).append(p)
optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05},
                               {"params": no_decay, "weight_decay": 0.0}], lr=1e-4)
ema = [p.detach().clone() for p in model.state_dict().values()]
images = torch.randn(args.batch, 3, args.size, args.size)
labels = torch.arange(args.batch)
model.train()
seconds = []
for step in range(args.steps + 1):  # the first one warms up
    start = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    with torch.no_grad():
        for e, v in zip(ema, model.state_dict().values()):
            e.copy_(0.9999 * e + 0.0001 * v)
    if step:
        seconds.append(time.perf_counter() - start)
print(json.dumps({
    "what": "torch_step", "model": "internimage_" + args.model, "batch": args.batch,
    "type": "fp32", "threads": args.threads, "seconds": seconds,
    "images_per_s": args.batch * len(seconds) / sum(seconds), "loss": float(loss),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
