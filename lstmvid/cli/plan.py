"""``lstmvid plan``: which backend and kernels an LSTM would run on, and how fast, on a GPU that needn't be here."""

from __future__ import annotations

import argparse
import json

import torch

import lstmvid
from lstmvid.backends import NAMES, RECOMPUTE
from lstmvid.backends.plan import DEVICES

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lstmvid plan",
        description="Show which backend an LSTM would run on and why, how the CUDA kernels would divide its work, and "
        "the predicted time beside the device's limit.",
    )
    parser.add_argument("--steps", type=int, default=20, metavar="T", help="frames of a sequence (default: 20)")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="sequences (default: 16)")
    parser.add_argument("--input", type=int, default=4096, metavar="D", help="values a frame; 0: no input (4096)")
    parser.add_argument("--hidden", type=int, default=2048, metavar="H", help="hidden units (default: 2048)")
    parser.add_argument("--layers", type=int, default=1, metavar="L", help="layers (default: 1)")
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32", help="of the operands (default: fp32)")
    parser.add_argument("--composite", action="store_true", help="the whole composite model instead of one LSTM")
    parser.add_argument(
        "--predict", choices=("conditional", "unconditional"), default="conditional", help="its predictor"
    )
    parser.add_argument("--bidirectional", action="store_true", help="both directions, with D features in")
    parser.add_argument("--peephole", action="store_true", help="with peepholes")
    parser.add_argument("--inference", action="store_true", help="without gradients")
    parser.add_argument("--recompute", choices=RECOMPUTE, default="auto", help="gates in backward (default: auto)")
    parser.add_argument("--backend", choices=NAMES, default="auto", help="default: auto")
    parser.add_argument(
        "--device",
        help=f"cpu, cuda, or a GPU that needn't be here: {', '.join(DEVICES)} (default: the GPU here, else cpu)",
    )
    parser.add_argument("--json", action="store_true", help="print numbers for programs; times in microseconds")
    return parser


def _module(args: argparse.Namespace) -> torch.nn.Module:
    """On the meta device: sizes without memory."""
    options = {"peephole": args.peephole, "backend": args.backend, "recompute": args.recompute, "device": "meta"}
    if args.composite:
        if args.input < 1:
            raise ValueError("--composite needs frames: --input must be at least 1")
        return lstmvid.FusedComposite(args.input, args.hidden, args.layers, predict=args.predict, **options)
    if args.input == 0:
        if args.bidirectional:
            raise ValueError("--bidirectional needs an input: --input must be at least 1")
        return lstmvid.nn.LSTMStack(None, args.hidden, args.layers, **options)
    return lstmvid.LSTM(args.input, args.hidden, args.layers, bidirectional=args.bidirectional, **options)


def main(arguments: list[str]) -> int:
    """Print the plan."""
    args = _parser().parse_args(arguments)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = lstmvid.explain(
        _module(args),
        device=device,
        steps=args.steps,
        batch=args.batch,
        dtype=_DTYPES[args.dtype],
        training=not args.inference,
    )
    print(json.dumps(plan.as_dict(), indent=1) if args.json else plan)
    return 0 if all(call.backend for call in plan.calls) else 1
