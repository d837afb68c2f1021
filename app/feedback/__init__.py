"""Feedback: pictures that were classified, kept with their right labels so that a model can learn from them."""
