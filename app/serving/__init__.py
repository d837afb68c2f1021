"""The way a picture takes: bytes to pixels, pixels to a batch, a batch to probabilities."""
