"""All drawing code of the series, a file per chapter, so that the notebooks' cells show ideas and
not matplotlib.
"""
