"""Ways to run a model faster: attention backends, speculation, quantized layers, compiled and
recorded steps.
"""
