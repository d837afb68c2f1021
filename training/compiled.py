"""The modules that are compiled when the package is installed, where there is a C compiler."""

try:
    from training import rows, scan, winograd
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True

__all__ = ["AVAILABLE", "rows", "scan", "winograd"]
