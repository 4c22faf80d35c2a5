"""`python -m reporting`."""

import sys

from reporting.main import main

sys.exit(main(sys.argv[1:]))
