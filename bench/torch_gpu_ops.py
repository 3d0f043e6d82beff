#!/usr/bin/env python3
"""Times PyTorch and the official extensions on a GPU, at the shapes and with the method of
bench_dcn and bench_ops --device cuda: two CUDA events around the work, 512 MiB of other data moved
before each timed call so that the L2 cache is cold, medians over --repeat calls.

    torch_gpu_ops.py [--batch 64] [--repeat 15]

JSON lines with the fields of bench_dcn: op, shape, dtype, device, fwd_ms, fwd_bwd_ms and their
least and 90th percentile. Ops: depthwise convolution, linear, GELU and layer norm of PyTorch; DCNv3 as
grid_sample (torch_dcnv3.py); the extensions DCNv3 and DCNv4 when their Python packages import. What
is missing is said in a line "absent: NAME: reason".
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_dcnv3 import core  # noqa: E402  pylint: disable=wrong-import-position

TYPES = {'f32': torch.float32, 'bf16': torch.bfloat16, 'f16': torch.float16}
DEVICE = 'cuda'


class Clock:
    """Milliseconds of GPU work, median, least and 90th percentile."""

    def __init__(self, repeat):
        self.repeat = repeat
        self.other = torch.zeros(2, 64 << 20, device=DEVICE)  # 512 MiB

    def time(self, work):
        events = []
        for _ in range(self.repeat + 2):
            self.other[0].copy_(self.other[1])
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            events.append((start, stop))
        torch.cuda.synchronize()
        times = sorted(a.elapsed_time(b) for a, b in events[2:])  # two rounds to warm up
        n = len(times)
        median = times[n // 2] if n % 2 else (times[n // 2 - 1] + times[n // 2]) / 2
        return median, times[0], times[n * 9 // 10]


def report(clock, op, shape, dtype, function, inputs, **more):
    """function(*inputs) forward alone, then with the gradients of all inputs."""
    for t in inputs:
        t.requires_grad_(True)
    gy = torch.randn_like(function(*inputs).detach())

    def forward():
        with torch.no_grad():
            function(*inputs)

    def both():
        for t in inputs:
            t.grad = None
        function(*inputs).backward(gy)

    f, b = clock.time(forward), clock.time(both)
    print(json.dumps({
        'op': op, 'shape': shape, **more, 'dtype': dtype, 'device': torch.cuda.get_device_name(),
        'fwd_ms': round(f[0], 4), 'fwd_min_ms': round(f[1], 4), 'fwd_p90_ms': round(f[2], 4),
        'fwd_bwd_ms': round(b[0], 4), 'fwd_bwd_min_ms': round(b[1], 4),
        'fwd_bwd_p90_ms': round(b[2], 4)}), flush=True)


def attempt(absent, name, run):
    """Runs one measurement; the first failure of a name says why it is missing."""
    if name in absent:
        return
    try:
        run()
    except Exception as error:  # pylint: disable=broad-except
        words = ' '.join(str(error).split())[:200]
        absent[name] = f'{type(error).__name__}: {words}'
        torch.cuda.empty_cache()


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
        n, h, w, _ = mask.shape
        if softmax_first:
            mask = F.softmax(mask.reshape(n, h, w, groups, -1), -1).reshape(n, h, w, -1)
            mask = mask.to(x.dtype)
        return Function.apply(x, offset, mask, groups)
    return run


def official_v4():
    from DCNv4.functions import DCNv4Function  # pylint: disable=import-outside-toplevel

    def run(x, packed, groups):
        step = min(256, x.shape[0])
        return DCNv4Function.apply(x, packed, 3, 3, 1, 1, 1, 1, 1, 1, groups,
                                   x.shape[3] // groups, 1.0, step, 0)
    return run


def grid_sample_v3(x, offset, mask, groups):
    n, h, w, _ = mask.shape
    mask = F.softmax(mask.reshape(n, h, w, groups, -1), -1).reshape(n, h, w, -1)
    return core(x, offset, mask, groups)


def deformable(clock, absent, batch, dtype, stage):
    side, c, g = 56 >> stage, 64 << stage, 4 << stage
    shape, kind = f'{batch}x{side}x{side}x{c}', TYPES[dtype]

    def rand(channels, scale=1.0):
        return (scale * torch.randn(batch, side, side, channels, device=DEVICE)).to(kind)

    def v3(name, make):
        function = make()
        inputs = [rand(c), rand(g * 18, 0.5), rand(g * 9)]
        report(clock, name, shape, dtype, lambda x, o, m: function(x, o, m, g), inputs, groups=g)

    def v4():
        function = official_v4()
        inputs = [rand(c), rand((g * 27 + 7) // 8 * 8, 0.5)]
        report(clock, 'official DCNv4', shape, dtype, lambda x, p: function(x, p, g), inputs,
               groups=g)

    if dtype == 'f32':  # grid_sample makes the sampling grid in the type of the offsets
        attempt(absent, 'grid_sample',
                lambda: v3('torch grid_sample dcnv3', lambda: grid_sample_v3))
    attempt(absent, f'DCNv3 {dtype}' if dtype != 'f32' else 'DCNv3',
            lambda: v3('official DCNv3 with softmax', lambda: official_v3(True)))
    attempt(absent, f'DCNv4 {dtype}' if dtype != 'f32' else 'DCNv4', v4)


def plain(clock, absent, batch, dtype, stage):
    side, c = 56 >> stage, 64 << stage
    kind, rows = TYPES[dtype], batch * side * side

    def rand(*shape):
        return torch.randn(*shape, device=DEVICE).to(kind)

    def depthwise(size):
        x = rand(batch, c, side, side).to(memory_format=torch.channels_last)
        report(clock, f'torch dwconv{size}', f'{batch}x{side}x{side}x{c}', dtype,
               lambda a, w, b: F.conv2d(a, w, b, padding=size // 2, groups=c),
               [x, rand(c, 1, size, size), rand(c)])

    for size in (3, 5):
        attempt(absent, f'dwconv{size} {dtype}', lambda size=size: depthwise(size))
    for o, i in ((c, c), (4 * c, c), (c, 4 * c)):
        attempt(absent, 'linear', lambda o=o, i=i: report(
            clock, 'torch linear', f'{rows}x{i} -> {o}', dtype, F.linear,
            [rand(rows, i), rand(o, i), rand(o)]))
    attempt(absent, 'gelu', lambda: report(clock, 'torch gelu', f'{rows}x{4 * c}', dtype, F.gelu,
                                           [rand(rows, 4 * c)]))
    attempt(absent, 'layer_norm', lambda: report(
        clock, 'torch layer_norm', f'{rows}x{c}', dtype,
        lambda x, w, b: F.layer_norm(x, (c,), w, b, 1e-6), [rand(rows, c), rand(c), rand(c)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--repeat', type=int, default=15)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit('torch_gpu_ops: PyTorch sees no GPU here')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    clock, absent = Clock(options.repeat), {}
    for dtype in TYPES:
        for stage in range(4):
            deformable(clock, absent, options.batch, dtype, stage)
            plain(clock, absent, options.batch, dtype, stage)
    for name, reason in absent.items():
        print(f'absent: {name}: {reason}')


if __name__ == '__main__':
    main()
