"""`python -m server` is `fedserver`."""

import sys

from server.cli import main

sys.exit(main())
