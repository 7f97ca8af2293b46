"""Imported once by the process from which the workers of a study are forked.

The main process may end while a worker starts: its semaphores are then gone, or the pipe that it reads its task from.
"""

import sys

from dassl.data.loader import report_unless_alone

sys.excepthook = report_unless_alone
