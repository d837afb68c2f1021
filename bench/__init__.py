"""Measures the service: beside its engine alone, and beside a plain FastAPI server with the same model."""
