"""`python -m estl.commands` is `estl`."""

import sys

from estl.commands import main

sys.exit(main())
