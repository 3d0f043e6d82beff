#!/usr/bin/env python3
"""Training steps of the official InternImage in PyTorch on a GPU, to set beside bench_step --device
cuda: same model, batch, loss, clipping, AdamW and moving average.

    torch_gpu_step.py --official DIR [--timm DIR] [--model t] [--batch 128] [--size 224]
                      [--steps 10] [--amp none|bf16|fp16]

--official is the `classification` folder of a checkout of OpenGVLab/InternImage. With the
extension DCNv3 installed the model uses it, otherwise its own fallback in PyTorch (core_op
DCNv3_pytorch); the line says which. As in the official main.py: autocast, a loss scale with fp16. Two steps warm up;
events on the GPU give the time of the whole run of --steps steps, without waiting in between.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_step  # noqa: E402  pylint: disable=wrong-import-position


def parse():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--official', required=True)
    ap.add_argument('--timm')
    ap.add_argument('--model', default='t', choices=torch_step.MODELS)
    ap.add_argument('--batch', type=int, default=128)
    ap.add_argument('--size', type=int, default=224)
    ap.add_argument('--steps', type=int, default=10)
    ap.add_argument('--amp', default='none', choices=['none', 'bf16', 'fp16'])
    return ap.parse_args()


def main():
    args = parse()
    import torch  # pylint: disable=import-outside-toplevel
    if not torch.cuda.is_available():
        raise SystemExit('torch_gpu_step: PyTorch sees no GPU here')
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    extension = importlib.util.find_spec('DCNv3') is not None
    module = torch_step.official_module(args)
    with contextlib.redirect_stdout(sys.stderr):
        model = module.InternImage(core_op='DCNv3' if extension else 'DCNv3_pytorch',
                                   num_classes=1000, **torch_step.MODELS[args.model]).cuda()
    optimizer = torch_step.make_optimizer(torch, model)
    scaler = torch.amp.GradScaler('cuda', enabled=args.amp == 'fp16')
    kind = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(args.amp)
    ema = [p.detach().clone() for p in model.state_dict().values()]
    images = torch.randn(args.batch, 3, args.size, args.size, device='cuda')
    labels = torch.arange(args.batch, device='cuda') % 1000
    model.train()

    def step():
        with torch.autocast('cuda', dtype=kind, enabled=kind is not None):
            loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
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

    for _ in range(2):
        step()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(args.steps):
        loss = step()
    stop.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(stop) / 1e3 / args.steps
    print(json.dumps({
        'name': f'official step internimage_{args.model} {args.batch}x{args.size} {args.amp}, '
                + ('extension' if extension else 'PyTorch operator'),
        'batch': args.batch, 'size': args.size, 'dtype': args.amp, 'steps': args.steps,
        'device': torch.cuda.get_device_name(), 'torch': torch.__version__, 'step_s': seconds,
        'images_per_s': args.batch / seconds, 'loss': float(loss),
        'peak_mib': torch.cuda.max_memory_allocated() / 2**20}))


if __name__ == '__main__':
    main()
