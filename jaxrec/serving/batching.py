"""Micro-batching: requests that arrive while the model works are answered together in its next call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class Overloaded(Exception):
    """The queue is full."""


class MicroBatcher(Generic[Input, Output]):
    """A queue in front of a function of batches.

    The function runs in one thread; meanwhile the queue fills. No request waits for others while the model is idle.

    Args:
      function: one output per input, in order.
      most: inputs of a batch.
      queue_size: inputs waiting at most.
      observe: called with the size of each batch.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Input]], Sequence[Output]],
        most: int,
        queue_size: int,
        observe: Callable[[int], object] = lambda size: None,
    ):
        self._function, self._most, self._observe = function, most, observe
        self._queue: asyncio.Queue[tuple[Input, asyncio.Future[Output]]] = asyncio.Queue(queue_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._alone, self._calls = asyncio.Lock(), 0
        self._task: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Inputs in the queue, and calls that wait for the thread or are in it."""
        return self._queue.qsize() + self._calls

    def start(self) -> None:
        """Begin to answer; call inside the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the worker; inputs that still wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        self._thread.shutdown(wait=False)

    async def submit(self, value: Input) -> Output:
        """Answer one input.

        Raises:
          Overloaded: the queue is full.
        """
        future: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((value, future))
        except asyncio.QueueFull:
            raise Overloaded from None
        return await future

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the model's thread, between two batches; of several calls, a batch waits for one at most.

        Raises:
          Overloaded: as many calls wait as the queue is long.
        """
        if self._calls >= self._queue.maxsize:
            raise Overloaded
        self._calls += 1
        try:
            async with self._alone:
                return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        finally:
            self._calls -= 1

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # Whoever gave up waiting needs no answer.
            batch = [(value, future) for value, future in batch if not future.done()]
            if not batch:
                continue
            self._observe(len(batch))
            try:
                outputs = await loop.run_in_executor(
                    self._thread, self._function, [value for value, _ in batch]
                )
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), output in zip(batch, outputs, strict=True):
                if not future.done():
                    future.set_result(output)
