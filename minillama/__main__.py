"""`python -m minillama` is the command `minillama`."""

import sys

from minillama.cli import main


sys.exit(main())
