"""`python -m estl.commands` is `estl`."""

import sys

from estl.commands import main

if __name__ == "__main__":  # and not where a process of `ddp_spawn` imports it again
    sys.exit(main())
