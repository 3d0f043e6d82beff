#!/usr/bin/env python3
"""Times the DCNv3 core in plain PyTorch, for comparison with bench_dcn; same shapes, same fields.

    torch_dcnv3.py [--threads N] [--repeat R] [--batch B] [--official PATH]

The grid_sample formulation: pad the input with zeros, turn the sampling positions into coordinates
normalised to (-1, 1), let torch.nn.functional.grid_sample gather every tap of every group, and sum
the taps with their modulations. This is how the operator is written without a kernel of its own, as
in the official code. With --official PATH the official function dcnv3_core_pytorch is also timed;
PATH is its file ops_dcnv3/functions/dcnv3_func.py in a checkout of OpenGVLab/InternImage.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F


def core(x, offset, mask, groups, k=3, pad=1, scale=1.0):
    """x [N,H,W,C], offset [N,H,W,G*K*2] as (x,y), mask [N,H,W,G*K]; stride 1, dilation 1."""
    n, h, w, c = x.shape
    d, taps, half = c // groups, k * k, (k - 1) // 2
    hp, wp = h + 2 * pad, w + 2 * pad
    ho, wo = hp - 2 * half, wp - 2 * half
    like = {'dtype': x.dtype, 'device': x.device}
    step = torch.arange(k, **like) - half
    # Taps run over x first: tap = i*k + j is at (x, y) = (step[i], step[j]).
    tap_x, tap_y = step.repeat_interleave(k) * scale, step.repeat(k) * scale
    off = offset.reshape(n, ho, wo, groups, taps, 2) * scale
    px = torch.arange(wo, **like).view(1, 1, wo, 1, 1) + half + tap_x + off[..., 0]
    py = torch.arange(ho, **like).view(1, ho, 1, 1, 1) + half + tap_y + off[..., 1]
    grid = torch.stack(((2 * px + 1) / wp - 1, (2 * py + 1) / hp - 1), -1)
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(n * groups, ho * wo, taps, 2)
    padded = F.pad(x, (0, 0, pad, pad, pad, pad)).reshape(n, hp, wp, groups, d)
    padded = padded.permute(0, 3, 4, 1, 2).reshape(n * groups, d, hp, wp)
    sampled = F.grid_sample(padded, grid, mode='bilinear', padding_mode='zeros',
                            align_corners=False)
    m = mask.reshape(n, ho * wo, groups, taps).permute(0, 2, 1, 3).reshape(n * groups, 1, -1, taps)
    y = (sampled * m).sum(-1)
    return y.view(n, groups, d, ho, wo).permute(0, 3, 4, 1, 2).reshape(n, ho, wo, c).contiguous()


def load_official(path):
    """dcnv3_core_pytorch and the two helpers it uses, without importing the CUDA extension."""
    source = open(path, encoding='utf-8').read()
    start = source.index('def _get_reference_points')
    scope = {'torch': torch, 'F': F}
    exec(compile(source[start:], path, 'exec'), scope)  # pylint: disable=exec-used
    function = scope['dcnv3_core_pytorch']

    def official(x, offset, mask, groups):
        args = (x, offset, mask, 3, 3, 1, 1, 1, 1, 1, 1, groups, x.shape[3] // groups, 1.0)
        try:
            return function(*args, False)  # remove_center, where the version has it
        except TypeError:
            return function(*args)
    return official


def milliseconds(repeat, function):
    times = []
    for i in range(-1, repeat):
        start = time.perf_counter()
        function()
        if i >= 0:
            times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return statistics.median(times), times[0], times[len(times) * 9 // 10]


def measure(name, function, options):
    for i in range(4):
        side, c, g = 56 >> i, 64 << i, 4 << i
        torch.manual_seed(0)
        x = torch.randn(options.batch, side, side, c)
        offset = 0.5 * torch.randn(options.batch, side, side, g * 18)
        mask = torch.randn(options.batch, side, side, g * 9)
        gy = torch.randn_like(x)

        def forward():
            with torch.no_grad():
                function(x, offset, mask, g)

        inputs = [t.clone().requires_grad_() for t in (x, offset, mask)]

        def both():
            for t in inputs:
                t.grad = None
            function(*inputs, g).backward(gy)

        f, b = milliseconds(options.repeat, forward), milliseconds(options.repeat, both)
        print(json.dumps({
            'op': name, 'shape': f'{options.batch}x{side}x{side}x{c}', 'groups': g, 'dtype': 'f32',
            'threads': options.threads, 'fwd_ms': round(f[0], 3), 'fwd_min_ms': round(f[1], 3),
            'fwd_p90_ms': round(f[2], 3), 'fwd_bwd_ms': round(b[0], 3),
            'fwd_bwd_min_ms': round(b[1], 3), 'fwd_bwd_p90_ms': round(b[2], 3)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=5)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--official', metavar='PATH')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure('torch grid_sample', core, options)
    if options.official:
        official = load_official(options.official)
        x, o, m = torch.randn(1, 6, 5, 8), torch.randn(1, 6, 5, 36), torch.randn(1, 6, 5, 18)
        difference = (official(x, o, m, 2) - core(x, o, m, 2)).abs().max().item()
        if not difference < 1e-4:
            raise SystemExit(f'the two formulations differ by {difference}')
        measure('torch official', official, options)


if __name__ == '__main__':
    main()
