"""CUDA C++: source text, compilation, launch and registration."""
