"""Weights in files: tensors and their names, Hugging Face, Meta, .pth and GGUF, and where files
come from.
"""
