#!/usr/bin/env python3
"""Training steps and forward passes of the official models in PyTorch on a GPU, to set beside
bench_step --device cuda: same model, batch, loss, clipping, AdamW and moving average.

    torch_gpu_step.py --official DIR [--family internimage|flash] [--model t|s|b|l] [--timm DIR]
                      [--batch 128] [--size 224] [--steps 10] [--amp none|bf16|fp16]
                      [--channels-last] [--compile] [--latency [--graph]]

--official is the `classification` folder of a checkout: of OpenGVLab/InternImage for the family
internimage, of OpenGVLab/DCNv4 for flash. InternImage uses the extension DCNv3 where it is
installed, otherwise its own fallback in PyTorch (core_op DCNv3_pytorch); the line says which.
FlashInternImage has no fallback: without the extension DCNv4 nothing is measured. As in the official main.py:
autocast, a loss scale with fp16. Two steps warm up; events on the GPU give the time of the whole
run of --steps steps, without waiting in between.

--channels-last puts weights and images into that format, --compile goes through torch.compile.
--latency: the forward pass alone, in evaluation mode (--batch 1 for latency); --graph replays it as
a CUDA graph.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_step  # noqa: E402  pylint: disable=wrong-import-position

# What FlashInternImage has beside InternImage's numbers.
FLASH = {
    't': {'offset_scale': 1.0},
    's': {'offset_scale': 1.0, 'dw_kernel_size': 3},
    'b': {'offset_scale': 0.5, 'dw_kernel_size': 3},
    'l': {'offset_scale': 2.0, 'dw_kernel_size': 3, 'dcn_output_bias': True, 'mlp_fc2_bias': True},
}


def parse():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--official', required=True)
    ap.add_argument('--family', default='internimage', choices=['internimage', 'flash'])
    ap.add_argument('--timm')
    ap.add_argument('--model', default='t', choices=torch_step.MODELS)
    ap.add_argument('--batch', type=int, default=128)
    ap.add_argument('--size', type=int, default=224)
    ap.add_argument('--steps', type=int, default=10)
    ap.add_argument('--amp', default='none', choices=['none', 'bf16', 'fp16'])
    for flag in ('--channels-last', '--compile', '--latency', '--graph'):
        ap.add_argument(flag, action='store_true')
    args = ap.parse_args()
    if args.graph and not args.latency:
        ap.error('--graph needs --latency')
    return args


def make_model(args):
    """The official model, and which operator it uses."""
    if args.family == 'flash':
        if importlib.util.find_spec('DCNv4') is None:
            raise SystemExit('torch_gpu_step: absent: the extension DCNv4 is not installed')
        module = torch_step.official_module(args, 'flash_intern_image')
        with contextlib.redirect_stdout(sys.stderr):
            return module.FlashInternImage(core_op='DCNv4', num_classes=1000,
                                           **{**torch_step.MODELS[args.model],
                                              **FLASH[args.model]}), 'extension'
    extension = importlib.util.find_spec('DCNv3') is not None
    module = torch_step.official_module(args)
    with contextlib.redirect_stdout(sys.stderr):
        return module.InternImage(core_op='DCNv3' if extension else 'DCNv3_pytorch',
                                  num_classes=1000, **torch_step.MODELS[args.model]), \
            'extension' if extension else 'PyTorch operator'


def training_step(torch, args, model, images, autocast):
    optimizer = torch_step.make_optimizer(torch, model)
    scaler = torch.amp.GradScaler('cuda', enabled=args.amp == 'fp16')
    ema = [p.detach().clone() for p in model.state_dict().values()]
    labels = torch.arange(args.batch, device='cuda') % 1000
    model.train()
    run = torch.compile(model) if args.compile else model

    def step():
        with autocast():
            loss = torch.nn.functional.cross_entropy(run(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for e, v in zip(ema, model.state_dict().values()):
                e.copy_(0.9999 * e + 0.0001 * v)
        return loss
    return step


def forward_pass(torch, args, model, images, autocast):
    model.eval()
    run = torch.compile(model) if args.compile else model

    def step():
        with torch.no_grad(), autocast():
            return run(images).float().mean()
    if not args.graph:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay():
        graph.replay()
        return result
    return replay


def main():
    args = parse()
    import torch  # pylint: disable=import-outside-toplevel
    if not torch.cuda.is_available():
        raise SystemExit('torch_gpu_step: PyTorch sees no GPU here')
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model, operator = make_model(args)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.cuda().to(memory_format=layout)
    images = torch.randn(args.batch, 3, args.size, args.size, device='cuda')
    images = images.to(memory_format=layout)
    kind = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(args.amp)

    def autocast():
        return torch.autocast('cuda', dtype=kind, enabled=kind is not None)

    make = forward_pass if args.latency else training_step
    step = make(torch, args, model, images, autocast)
    for _ in range(2):
        step()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(args.steps):
        loss = step()
    stop.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(stop) / 1e3 / args.steps
    family = 'flash_internimage' if args.family == 'flash' else 'internimage'
    ways = [operator] + [w for w in ('channels_last', 'compile', 'graph') if getattr(args, w)]
    print(json.dumps({
        'name': f'official {"forward" if args.latency else "step"} {family}_{args.model} '
                f'{args.batch}x{args.size} {args.amp}, ' + ', '.join(ways),
        'batch': args.batch, 'size': args.size, 'dtype': args.amp, 'steps': args.steps,
        'device': torch.cuda.get_device_name(), 'torch': torch.__version__, 'step_s': seconds,
        'images_per_s': args.batch / seconds, 'loss': float(loss),
        'peak_mib': torch.cuda.max_memory_allocated() / 2**20}))


if __name__ == '__main__':
    main()
