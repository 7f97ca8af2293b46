"""Processes that do not outlive the one that has started them."""

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """Start a thread that ends this process when the one that has started it ends."""

    def wait_for_parent() -> None:
        parent = parent_process()
        assert parent
        parent.join()
        os._exit(1)

    Thread(target=wait_for_parent, daemon=True).start()
