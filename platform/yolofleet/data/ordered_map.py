"""A map in threads that keeps the order, works a bounded way ahead, and never holds up the end of the program."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int, name: str
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item, in order.

    The threads are daemons: one that waits for an object store must not keep an interrupted program alive, as the
    threads of an executor would.

    Args:
        function: What to do; it must be safe among threads.
        items: What to do it to; read in the caller's thread, and only as far ahead as is worked.
        num_threads: Threads that work; 0 works in the caller's.
        ahead: Results that are made before they are asked for.
        name: Name of the threads.

    Raises:
        Exception: Whatever ``function`` raises, in the place of its result.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
    for number in range(num_threads):
        threading.Thread(target=_work, args=(function, tasks), name=f"{name}-{number}", daemon=True).start()
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            future: Future[Result] = Future()
            waiting.append(future)
            tasks.put((item, future))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(num_threads):
            tasks.put(None)


def _work(function: Callable[[Item], Result], tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None]) -> None:
    while (task := tasks.get()) is not None:
        item, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:  # handed to whoever waits for the result
            future.set_exception(error)
        del task, item, future  # nothing is kept while waiting for the next one
