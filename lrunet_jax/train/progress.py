"""The progress of an epoch, shown while it goes on."""

import sys
import time

from tqdm import tqdm

from lrunet_jax.train.state import Metrics

SECONDS_BETWEEN_LINES = 30  # without a terminal


class Progress:
    """A bar over an epoch's images in a terminal, else a plain line now and then."""

    def __init__(self, epoch: int, epochs: int, metrics: Metrics, num_images: int):
        """Starts the progress of an epoch.

        Args:
          epoch: its number, from 1.
          epochs: of the whole run.
          metrics: of the images already seen, if the epoch is resumed.
          num_images: in an epoch.
        """
        self._title = f"epoch {epoch}/{epochs}"
        self._images_to_come = (epochs - epoch) * num_images
        self._num_images = num_images
        self._resumed_at = int(metrics.count)
        self._began = self._printed = time.monotonic()
        self._bar = tqdm(
            desc=self._title,
            total=num_images,
            initial=self._resumed_at,
            leave=False,
            disable=not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix}",
        )
        self.images_per_second = 0.0

    def update(self, metrics: Metrics) -> None:
        """Shows the epoch's metrics so far, the speed and the time left of the run."""
        now, done = time.monotonic(), int(metrics.count)
        self.images_per_second = (done - self._resumed_at) / (now - self._began)
        left = self._num_images - done + self._images_to_come
        means = metrics.means()
        text = (
            f"loss {means['loss']:.4f}, accuracy {means['accuracy']:.2%}, "
            f"{self.images_per_second:,.0f} images/s, "
            f"{duration(left / self.images_per_second)} left"
        )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._bar.disable and now - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = now
            print(f"{self._title}: {done:,}/{self._num_images:,}, {text}", flush=True)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as 2:03, or as 1:02:03 from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
