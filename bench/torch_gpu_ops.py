#!/usr/bin/env python3
"""Times PyTorch and the official extensions on a GPU, at the shapes and with the method of
bench_dcn --device cuda: two CUDA events around the work, 512 MiB of other data moved before each
timed call so that the L2 cache is cold, medians over --repeat calls.

    torch_gpu_ops.py [--set tiny|small|base|large|paper|all] [--batch 64] [--repeat 15]
                     [--dtype f32|bf16|f16]... [--device cuda|cpu]

JSON lines with the fields of bench_dcn: op, set, shape, dtype, device; fwd_ms, bwd_ms, fwd_bwd_ms and
their least and 90th percentile. Ops: the extensions DCNv3 (with the softmax that the model computes
before it, and without) and DCNv4 when their Python packages import; DCNv3 as grid_sample
(torch_dcnv3.py), as it is and through torch.compile; depthwise convolution (channels last, cuDNN);
for the set tiny linear, GELU and layer norm. What is missing is said in a line "absent: NAME:
reason". --device cpu is for trying the script: its times mean nothing here.

The extensions' calls are those of the official packages: DCNv3 1.0 and 1.1 (OpenGVLab/InternImage,
classification/ops_dcnv3), DCNv4 1.0.0.post2 (OpenGVLab/DCNv4, DCNv4_op).
"""
import argparse
import json
import os
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_dcnv3 import core  # noqa: E402  pylint: disable=wrong-import-position

TYPES = {'f32': torch.float32, 'bf16': torch.bfloat16, 'f16': torch.float16}
# images (None: --batch), height, width, channels, groups: bench/dcn_problem.h
SHAPES = {
    'paper': [(64, 56, 56, 128, 4), (64, 28, 28, 256, 8), (64, 14, 14, 512, 16),
              (64, 7, 7, 1024, 32), (64, 14, 14, 768, 24), (1, 200, 320, 128, 4),
              (1, 100, 160, 256, 8), (1, 50, 80, 512, 16), (1, 25, 40, 1024, 32),
              (1, 64, 64, 768, 24)],
    'tiny': [(None, 56 >> i, 56 >> i, 64 << i, 4 << i) for i in range(4)],
    'small': [(None, 56 >> i, 56 >> i, 80 << i, 5 << i) for i in range(4)],
    'base': [(None, 56 >> i, 56 >> i, 112 << i, 7 << i) for i in range(4)],
    'large': [(None, 96 >> i, 96 >> i, 160 << i, 10 << i) for i in range(4)],
}


class Clock:
    """Milliseconds of work on the device, median, least and 90th percentile."""

    def __init__(self, device, repeat):
        self.device, self.repeat = device, repeat
        self.other = torch.zeros(2, (64 << 20) if device == 'cuda' else 1, device=device)  # 512 MiB
        self.name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'

    def events(self, prepare, work):
        pairs = []
        for _ in range(self.repeat + 2):
            prepare()
            self.other[0].copy_(self.other[1])
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in pairs]

    def seconds(self, prepare, work):
        times = []
        for _ in range(self.repeat + 2):
            prepare()
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def time(self, work, prepare=lambda: None):
        run = self.events if self.device == 'cuda' else self.seconds
        times = sorted(run(prepare, work)[2:])  # two rounds to warm up
        n = len(times)
        median = times[n // 2] if n % 2 else (times[n // 2 - 1] + times[n // 2]) / 2
        return median, times[0], times[n * 9 // 10]


def report(clock, op, shape, dtype, function, inputs, **more):
    """function(*inputs) forward alone, the gradients of all inputs alone, and both."""
    for t in inputs:
        t.requires_grad_(True)
    kept = function(*inputs)
    gy = torch.randn_like(kept.detach())

    def forward():
        with torch.no_grad():
            function(*inputs)

    def backward():
        torch.autograd.grad(kept, inputs, gy, retain_graph=True)

    def both():
        torch.autograd.grad(function(*inputs), inputs, gy)

    result = {'op': op, 'shape': shape, **more, 'dtype': dtype, 'device': clock.name}
    for name, work in (('fwd', forward), ('bwd', backward), ('fwd_bwd', both)):
        median, least, p90 = clock.time(work)
        result.update({f'{name}_ms': round(median, 4), f'{name}_min_ms': round(least, 4),
                       f'{name}_p90_ms': round(p90, 4)})
    if clock.device == 'cuda':
        result['peak_mib'] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(result), flush=True)


def attempt(absent, name, run):
    """Runs one measurement; the first failure of a name says why it is missing."""
    if name in absent:
        return
    try:
        run()
    except Exception as error:  # pylint: disable=broad-except
        words = ' '.join(str(error).split())[:200]
        absent[name] = f'{type(error).__name__}: {words}'
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def softmax(mask, groups, like):
    n, h, w, _ = mask.shape
    mask = F.softmax(mask.reshape(n, h, w, groups, -1), -1).reshape(n, h, w, -1)
    return mask.to(like.dtype)


def official_v3(softmax_first):
    """The official forward pass: softmax over the taps by PyTorch, then the extension."""
    import DCNv3  # pylint: disable=import-outside-toplevel

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, offset, mask, groups):
            geometry = (3, 3, 1, 1, 1, 1, 1, 1, groups, x.shape[3] // groups, 1.0)
            ctx.save_for_backward(x, offset, mask)
            ctx.geometry = geometry
            step = min(256, x.shape[0])
            try:
                y = DCNv3.dcnv3_forward(x, offset, mask, *geometry, step, False)
                ctx.tail = (step, False)
            except TypeError:  # version 1.0 has no remove_center
                y = DCNv3.dcnv3_forward(x, offset, mask, *geometry, step)
                ctx.tail = (step,)
            return y

        @staticmethod
        def backward(ctx, gy):
            return (*DCNv3.dcnv3_backward(*ctx.saved_tensors, *ctx.geometry, gy.contiguous(),
                                          *ctx.tail), None)

    def run(x, offset, mask, groups):
        return Function.apply(x, offset, softmax(mask, groups, x) if softmax_first else mask, groups)
    return run


def official_v4():
    from DCNv4.functions import DCNv4Function  # pylint: disable=import-outside-toplevel

    def run(x, packed, groups):
        step = min(256, x.shape[0])
        return DCNv4Function.apply(x, packed, 3, 3, 1, 1, 1, 1, 1, 1, groups,
                                   x.shape[3] // groups, 1.0, step, 0)
    return run


def grid_sample_v3(x, offset, mask, groups):
    return core(x, offset, softmax(mask, groups, x), groups)


def compiled_v3():
    if not hasattr(torch, 'compile'):
        raise RuntimeError(f'PyTorch {torch.__version__} has no torch.compile')
    return torch.compile(grid_sample_v3)


def rand(clock, dtype, *shape, scale=1.0):
    return (scale * torch.randn(*shape, device=clock.device)).to(TYPES[dtype])


def deformable(clock, absent, dtype, name, shape):
    n, h, w, c, g = shape
    more = {'set': name, 'groups': g}
    text = f'{n}x{h}x{w}x{c}'

    def v3(op, make):
        function = make()
        inputs = [rand(clock, dtype, n, h, w, c), rand(clock, dtype, n, h, w, g * 18, scale=0.5),
                  rand(clock, dtype, n, h, w, g * 9)]
        report(clock, op, text, dtype, lambda x, o, m: function(x, o, m, g), inputs, **more)

    def v4():
        function = official_v4()
        inputs = [rand(clock, dtype, n, h, w, c),
                  rand(clock, dtype, n, h, w, (g * 27 + 7) // 8 * 8, scale=0.5)]
        report(clock, 'official DCNv4', text, dtype, lambda x, p: function(x, p, g), inputs, **more)

    if dtype == 'f32':  # grid_sample makes the sampling grid in the type of the offsets
        attempt(absent, 'grid_sample', lambda: v3('torch grid_sample dcnv3', lambda: grid_sample_v3))
        attempt(absent, 'torch.compile', lambda: v3('torch.compile grid_sample dcnv3', compiled_v3))
    kind = '' if dtype == 'f32' else f' {dtype}'
    attempt(absent, 'DCNv3' + kind, lambda: v3('official DCNv3', lambda: official_v3(False)))
    attempt(absent, 'DCNv3' + kind, lambda: v3('official DCNv3 with softmax',
                                               lambda: official_v3(True)))
    attempt(absent, 'DCNv4' + kind, v4)


def depthwise(clock, absent, dtype, name, shape):
    n, h, w, c, _ = shape

    def run(size):
        x = rand(clock, dtype, n, c, h, w).to(memory_format=torch.channels_last)
        inputs = [x, rand(clock, dtype, c, 1, size, size), rand(clock, dtype, c)]
        report(clock, f'torch dwconv{size}', f'{n}x{h}x{w}x{c}', dtype,
               lambda a, k, b: F.conv2d(a, k, b, padding=size // 2, groups=c), inputs, set=name)

    for size in (3, 5):
        attempt(absent, f'dwconv{size} {dtype}', lambda size=size: run(size))


def plain(clock, absent, dtype, shape):
    n, h, w, c, _ = shape
    rows = n * h * w
    for o, i in ((c, c), (4 * c, c), (c, 4 * c)):
        attempt(absent, f'linear {dtype}', lambda o=o, i=i: report(
            clock, 'torch linear', f'{rows}x{i} -> {o}', dtype, F.linear,
            [rand(clock, dtype, rows, i), rand(clock, dtype, o, i), rand(clock, dtype, o)]))
    attempt(absent, f'gelu {dtype}', lambda: report(
        clock, 'torch gelu', f'{rows}x{4 * c}', dtype, F.gelu, [rand(clock, dtype, rows, 4 * c)]))
    attempt(absent, f'layer_norm {dtype}', lambda: report(
        clock, 'torch layer_norm', f'{rows}x{c}', dtype,
        lambda x, k, b: F.layer_norm(x, (c,), k, b, 1e-6),
        [rand(clock, dtype, rows, c), rand(clock, dtype, c), rand(clock, dtype, c)]))


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--set', default='all', choices=[*SHAPES, 'all'])
    parser.add_argument('--shape', type=int, default=-1, help='number N of the set alone')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--repeat', type=int, default=15)
    parser.add_argument('--dtype', action='append', choices=TYPES)
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    return parser.parse_args()


def main():
    options = parse()
    if options.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('torch_gpu_ops: PyTorch sees no GPU here')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    clock, absent = Clock(options.device, options.repeat), {}
    for name, shapes in SHAPES.items():
        if options.set not in (name, 'all'):
            continue
        for number, (n, *rest) in enumerate(shapes):
            if options.shape not in (-1, number):
                continue
            for dtype in options.dtype or TYPES:
                shape = (n or options.batch, *rest)
                deformable(clock, absent, dtype, name, shape)
                depthwise(clock, absent, dtype, name, shape)
                if name == 'tiny':
                    plain(clock, absent, dtype, shape)
    for name, reason in absent.items():
        print(f'absent: {name}: {reason}')


if __name__ == '__main__':
    main()
