"""Imports that are slow and needed late: a thread makes them while the main one waits for files and for the device."""

from importlib import import_module
from threading import Thread


def preload(*modules: str) -> None:
    """Begin to import modules, in this order. Whoever imports one of them meanwhile waits until it is there."""
    Thread(target=lambda: [import_module(name) for name in modules], daemon=True).start()
