"""What is slow and needed late begins early: threads do it while the main one waits for files."""

import logging
import sys
from importlib import import_module
from threading import Thread

import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)

# Seconds. Python's 5 ms are what the main thread would wait for the interpreter after each call into torch.
_SWITCH_INTERVAL = 2e-4


def preload(*modules: str) -> None:
    """Begin to import modules, in this order. Whoever imports one of them meanwhile waits until it is there."""
    Thread(target=_import, args=modules, daemon=True).start()


def preload_cuda() -> None:
    """Begin to load the libraries for convolutions and products: a GPU's are large, and read at their first use."""
    Thread(target=_use_cuda, daemon=True).start()


def _import(*modules: str) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        for name in modules:
            import_module(name)
    finally:
        sys.setswitchinterval(before)


def _use_cuda() -> None:
    try:
        images = torch.zeros(8, 8, 8, 8, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        filters = torch.zeros(8, 8, 3, 3, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.autograd.grad((F.conv2d(images, filters).flatten(1) @ images.new_zeros(288, 8)).sum(), filters)
    except RuntimeError as error:  # no memory is left, or a GPU without bfloat16; the run says what it needs itself
        log.info("CUDA's libraries are loaded when they are used, not before: %s", error)
