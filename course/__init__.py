"""The course kit: export the package from the notebooks, check exercises."""
