"""Ballast: robust, multimodal and generative recommenders under one protocol.

The library holds the mathematics and no paths; `stages/` holds the pipeline's entry points.
"""
