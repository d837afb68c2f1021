"""Trains ResNet image classifiers and writes them as artifacts that the service can load."""
