"""The number of threads for training steps on the CPU, chosen by timing."""

from __future__ import annotations

import torch

_TIMED_STEPS = 3


class ThreadChoice:
    """Times 1 thread against `max_threads` in each epoch and keeps the faster.

    On idle cores two threads nearly halve the time of a step. On busy cores each of a step's hundreds of
    parallel sections waits for a thread that is not scheduled, and one thread is up to three times as fast
    (measured on two busy cores: 25 to 37 slices/s against 9 to 12). The number of threads changes results in
    their last bits, so this is only for runs bounded by the clock, which are not reproducible anyway.
    """

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self._times: dict[int, list[float]] = {}

    def start_epoch(self) -> None:
        """Start timing anew, since the load of the machine may have changed."""
        self._times = {1: [], self.max_threads: []}
        torch.set_num_threads(1)

    def after_step(self, seconds: float) -> None:
        """Record the time of a step and set the number of threads for the next one."""
        if all(len(times) == _TIMED_STEPS for times in self._times.values()):
            return
        self._times[torch.get_num_threads()].append(seconds)
        unfinished = [count for count, times in self._times.items() if len(times) < _TIMED_STEPS]
        # Compare the best times, since the first step after a change also starts its threads.
        torch.set_num_threads(
            unfinished[0] if unfinished else min(self._times, key=lambda n: min(self._times[n]))
        )
