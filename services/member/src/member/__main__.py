"""`python -m member`."""

import sys

from member.main import main

sys.exit(main(sys.argv[1:]))
