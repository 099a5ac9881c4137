"""The commands of `minillama`, in one module each or a family in one: `add` makes the parser, `run`
does the work.
"""
