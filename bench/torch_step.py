#!/usr/bin/env python3
"""Training steps of the official InternImage in PyTorch on the CPU, to set beside bench_step.

    python3 bench/torch_step.py --official DIR [--timm DIR] [--model t] [--batch 8] [--size 224]
                                [--steps 3] [--threads 2]

--official is the `classification` folder of a checkout of OpenGVLab/InternImage (commit 31c962d was
used). core_op DCNv3_pytorch is its own fallback for machines without its CUDA extension, whose
module only has to exist. --timm is the folder that holds timm 0.6.11, when it is not installed.
A step is forward, loss, backward, clipping, AdamW and the moving average, as in the official
main.py, in fp32: under torch.autocast this model does not run on the CPU with torch 1.13 (its layer
norm refuses bf16 input with fp32 weights). Prints one JSON line: seconds of the steps (the first,
which warms up, is not counted), images/s, peak resident memory.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
import types

MODELS = {
    "t": dict(channels=64, depths=[4, 4, 18, 4], groups=[4, 8, 16, 32], drop_path_rate=0.1),
    "s": dict(channels=80, depths=[4, 4, 21, 4], groups=[5, 10, 20, 40], drop_path_rate=0.4,
              layer_scale=1e-5, post_norm=True),
    "b": dict(channels=112, depths=[4, 4, 21, 4], groups=[7, 14, 28, 56], drop_path_rate=0.5,
              layer_scale=1e-5, post_norm=True),
    "l": dict(channels=160, depths=[5, 5, 22, 5], groups=[10, 20, 40, 80], drop_path_rate=0.1,
              layer_scale=1e-5, offset_scale=2.0, post_norm=True),
}


def parse():
    ap = argparse.ArgumentParser()
    ap.add_argument("--official", required=True)
    ap.add_argument("--timm")
    ap.add_argument("--model", default="t", choices=MODELS)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--size", type=int, default=224)
    ap.add_argument("--steps", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--label", default="", help="added to the name of the result")
    return ap.parse_args()


def bare_package(name, folder):
    """A package whose __init__.py is not run: all of timm.models does not import under Python 3.11,
    while timm.models.layers, the only part that is used, does."""
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def official_module(args, name="intern_image"):
    """The file models/NAME.py of --official."""
    if args.timm:
        sys.path.insert(0, args.timm)
    timm = importlib.util.find_spec("timm")
    if timm is None:
        sys.exit("torch_step: timm is not installed: --timm DIR names the folder that holds it")
    bare_package("timm", timm.submodule_search_locations[0])
    bare_package("timm.models", os.path.join(timm.submodule_search_locations[0], "models"))
    if importlib.util.find_spec("DCNv3") is None:  # the CUDA extension, and its version
        sys.modules["DCNv3"] = types.ModuleType("DCNv3")
        pkg_resources = types.ModuleType("pkg_resources")
        pkg_resources.get_distribution = lambda name: types.SimpleNamespace(version="1.1")
        sys.modules["pkg_resources"] = pkg_resources
    sys.path.insert(0, args.official)
    path = os.path.join(args.official, "models", name + ".py")
    if not os.path.exists(path):
        sys.exit("torch_step: --official: there is no " + path)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)
    return module


def make_optimizer(torch, model):
    decay, rest = [], []
    for name, p in model.named_parameters():
        (rest if p.ndim == 1 or name.endswith(".bias") else decay).append(p)
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.05},
                              {"params": rest, "weight_decay": 0.0}], lr=1e-4)


def blas_in_use():
    """Debian's PyTorch takes whatever libblas.so.3 is: with the reference one it is ten times slower."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        text = maps.read()
    return next((n for n in ("openblas", "mkl", "blis", "atlas") if n in text), "reference")


def main():
    args = parse()
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit("torch_step: %s has no torch: use Debian's /usr/bin/python3 with python3-torch"
                 % sys.executable)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    module = official_module(args)
    with contextlib.redirect_stdout(sys.stderr):
        model = module.InternImage(core_op="DCNv3_pytorch", num_classes=1000, **MODELS[args.model])
    optimizer = make_optimizer(torch, model)
    ema = [p.detach().clone() for p in model.state_dict().values()]
    images = torch.randn(args.batch, 3, args.size, args.size)
    labels = torch.arange(args.batch) % 1000
    model.train()
    seconds = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            for e, v in zip(ema, model.state_dict().values()):
                e.copy_(0.9999 * e + 0.0001 * v)
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    print(json.dumps({
        "name": "official step internimage_%s %dx%d f32%s" % (
            args.model, args.batch, args.size, args.label and ", " + args.label),
        "dtype": "f32", "threads": args.threads, "steps": args.steps, "torch": torch.__version__,
        "step_s": step, "step_min_s": min(seconds[1:]), "step_max_s": max(seconds[1:]),
        "first_step_s": seconds[0], "images_per_s": args.batch / step, "loss": float(loss),
        "grad_norm": float(norm), "blas": blas_in_use(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
