"""The display of a training loop: the published lines in the log, and one live line for a person at a terminal."""

import datetime

from dassl.utils import AverageMeter
from dassl.utils.logger import on_terminal, print_detail, print_on_terminal
from tqdm import tqdm


class EpochDisplay(tqdm):
    """The bar of an epoch, which is drawn on a terminal only.

    Args:
        epoch, max_epoch (int): number of the epoch, from 1, and of the last one.
        num_batches (int): batches of an epoch.
        print_freq (int): the log has a line for every so many batches; in a shorter epoch, for the last one.
    """

    def __init__(self, epoch, max_epoch, num_batches, print_freq):
        self.epoch, self.max_epoch, self.num_batches, self.print_freq = epoch, max_epoch, num_batches, print_freq
        self.batch_time, self.data_time = AverageMeter(), AverageMeter()
        options = {"leave": False, "dynamic_ncols": True, "disable": not on_terminal()}
        super().__init__(desc=f"epoch {epoch}/{max_epoch}", total=num_batches, **options)

    def show(self, losses, lr, data_seconds, seconds):
        """Show one more batch, which is in the MetricMeter `losses`; its data took `data_seconds` of its `seconds`."""
        self.data_time.update(data_seconds)
        self.batch_time.update(seconds)
        number = self.batch_time.count
        left = int(self.batch_time.avg * ((self.max_epoch - self.epoch + 1) * self.num_batches - number))
        eta = datetime.timedelta(seconds=left)
        if number % self.print_freq == 0 or number == self.num_batches < self.print_freq:
            print_detail(
                f"epoch [{self.epoch}/{self.max_epoch}] "
                f"batch [{number}/{self.num_batches}] "
                f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
                f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
                f"{losses} "
                f"lr {lr:.4e} "
                f"eta {eta}"
            )
        if self.disable:
            return
        means = " ".join(f"{name} {meter.avg:.4g}" for name, meter in [*losses.meters.items()][:2])
        self.set_postfix_str(f"{means} lr {lr:.2e} left {eta}", refresh=False)
        self.update()
        if number == self.num_batches:
            took = datetime.timedelta(seconds=round(self.batch_time.sum))
            self.close()
            print_on_terminal(f"epoch {self.epoch}/{self.max_epoch}: {means} lr {lr:.2e}, {took}, left {eta}")


def test_bar(outputs, split, loader):
    """The outputs for a loader's batches; on a terminal with a bar that names the split ("test" or "val")."""
    leave = split == "test"  # validation has a bar for every epoch
    unit = "image" if getattr(loader, "batch_size", None) == 1 else "batch"
    options = {"leave": leave, "unit": unit, "dynamic_ncols": True, "disable": not on_terminal()}
    return tqdm(outputs, f"{split} set", len(loader), **options)
