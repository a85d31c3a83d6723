"""How long the rest of a stage will take, from its reports of progress."""

from __future__ import annotations


class TimeLeft:
    """Seconds that are left of one stage.

    The rate counts from the second report on: until then the first batch warms up, and kernels are compiled, which may
    take longer than all the rest. What was done before, such as the steps of a resumed training, took no time here.
    """

    def __init__(self) -> None:
        self._reports = 0
        self._since = (0.0, 0.0)  # when the second report came, and how much was done by then

    def after(self, now: float, done: float, total: float) -> float | None:
        """Take one report.

        Args:
            now: seconds of a monotonic clock.
            done: how much is done, in any unit.
            total: how much there is to do, in the same unit.

        Returns:
            The seconds that are left; None before the third report, and while nothing has been done since the second.
        """
        self._reports += 1
        if self._reports <= 2:
            self._since = now, done
            return None
        began, before = self._since
        return (now - began) * (total - done) / (done - before) if done > before else None
