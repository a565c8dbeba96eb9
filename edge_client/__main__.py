"""`python -m edge_client` is `fedclient`."""

import sys

from edge_client.cli import main

sys.exit(main())
