"""`pip install .` ends here: `clip` and `datasets`, whose names CoOp's layout fixes, would hide
other packages.
"""

import sys

sys.exit(
    "This project is used from its folder and is not installed: run `make setup` here, or `pip "
    "install -r "
    "requirements.txt`, and start its commands from this folder (docs/install.md)."
)
