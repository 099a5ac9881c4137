"""The course kit: export the package from the notebooks, check exercises."""

import sys


# nbformat's validator would build grammars of internet addresses at its import, which takes
# seconds: it does without
sys.modules.setdefault("rfc3987_syntax", None)
