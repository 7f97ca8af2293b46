"""Kill commands at random moments, and run them again: `make kill SEED=1`.

They are runs of three methods, an evaluation with caches, an export, a study and a download.
Each chain is a folder in which a command is killed one to three times, and then finishes.

In the end, prompts (bit for bit), results and tables must be those of an unbroken run, and no temporary file, stale
epoch, lock or staging folder may be left. Folders in which that is not so are kept.
"""

import argparse
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving import serving

from .chains import Tally, kill_at_random, stopping
from .subjects import subjects


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kill", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", type=int, default=100, help="number of SIGKILL")
    parser.add_argument("--term", type=int, default=50, help="number of SIGTERM")
    parser.add_argument("--only", nargs="+", default=[], help="names of subjects")
    parser.add_argument("--keep", type=Path, default=Path("output/kill"))
    args = parser.parse_args()
    place = args.keep.absolute() / f"seed{args.seed}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "shared").mkdir(parents=True)
    begun = time.monotonic()
    with serving({}) as server, ThreadPoolExecutor(2) as pool:
        every = subjects(place / "shared", server)[::-1]  # the study first, as it takes the longest
        chosen = [one for one in every if not args.only or one.name in args.only]
        futures = {}
        for index, one in enumerate(chosen):
            kills = {signal.SIGKILL: args.kill, signal.SIGTERM: args.term}  # nearly equal shares of them
            own = {number: (total + index) // len(chosen) for number, total in kills.items()}
            futures[one.name] = pool.submit(kill_at_random, one, own, place / one.name, args.seed)
        try:
            tallies = {name: future.result() for name, future in futures.items()}
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
    print(table(tallies))
    print(f"{time.monotonic() - begun:.0f} seconds, seed {args.seed}")
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


def table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'command':12}{'SIGKILL':>9}{'SIGTERM':>9}{'chains':>10}{'identical':>11}"]
    total = Tally()
    for tally in tallies.values():
        total.kills += tally.kills
        total.chains += tally.chains
        total.wrong += tally.wrong
    for name, tally in (tallies | {"all": total}).items():
        killed, ended = (tally.kills[number] for number in (signal.SIGKILL, signal.SIGTERM))
        lines.append(f"{name:12}{killed:9}{ended:9}{tally.chains:10}{tally.chains - len(tally.wrong):11}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
