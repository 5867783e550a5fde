"""``python -m cryonb``: the same as ``cryonb``, where scripts are not on the path."""

import sys

from cryonb.cli import main

if __name__ == "__main__":
    sys.exit(main())
