"""Backbones, losses, methods and the one training loop."""
