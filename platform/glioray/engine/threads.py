"""How many threads a step on the CPU should use, found by trying."""

from __future__ import annotations

import torch

_TRIED_STEPS = 3


class ThreadChoice:
    """Times one thread against `most`, anew in each epoch, on steps that train all the same.

    On idle cores two threads nearly halve a step. Where other processes run, each of a step's hundreds of
    parallel sections waits for the thread that was put aside, and one thread is up to three times as fast
    (measured: 25 to 37 slices/s against 9 to 12 on two busy cores). Results depend on the number of threads in
    their last bits, so this is for runs that the clock bounds anyhow.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._times: dict[int, list[float]] = {}

    def start_epoch(self) -> None:
        """Forget what was found: machines become busy and idle again."""
        self._times = {1: [], self.most: []}
        torch.set_num_threads(1)

    def after_step(self, seconds: float) -> None:
        """Take in a step's time; sets the threads of the next one."""
        if all(len(times) == _TRIED_STEPS for times in self._times.values()):
            return
        self._times[torch.get_num_threads()].append(seconds)
        unfinished = [count for count, times in self._times.items() if len(times) < _TRIED_STEPS]
        # The best time: the first step after a change makes its threads.
        torch.set_num_threads(
            unfinished[0] if unfinished else min(self._times, key=lambda n: min(self._times[n]))
        )
