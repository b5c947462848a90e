"""The queue in front of the model."""

import asyncio
import threading

import pytest

from jaxrec.serving.batching import MicroBatcher, Overloaded


def test_what_arrives_while_the_model_works_is_one_batch():
    release, sizes = threading.Event(), []

    def work(values):
        if values == [0]:
            release.wait(10)
        return [value * 10 for value in values]

    async def main():
        batcher = MicroBatcher(work, 4, 100, sizes.append)
        batcher.start()
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher.submit(value)) for value in range(1, 8)]
        await asyncio.sleep(0.05)
        others[2].cancel()  # whoever left is not computed
        release.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.stop()
        return results

    results = asyncio.run(main())
    assert [value for value in results if isinstance(value, int)] == [0, 10, 20, 40, 50, 60, 70]
    assert sizes == [1, 3, 3]


def test_a_full_queue_and_a_failing_model():
    release = threading.Event()

    def work(values):
        release.wait(10)
        raise ValueError("broken")

    async def main():
        batcher = MicroBatcher(work, 1, 2)
        batcher.start()
        tasks = [asyncio.create_task(batcher.submit(0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(value)) for value in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit(3)
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.stop()
        return results

    assert [str(result) for result in asyncio.run(main())] == ["broken"] * 3


def test_a_batch_waits_for_one_call_at_most():
    """Explanations take long, and must not hold up the lists."""
    release, order = threading.Event(), []

    def call(number):
        release.wait(10)
        order.append(number)

    async def main():
        batcher = MicroBatcher(lambda values: order.extend(values) or values, 4, 3)
        batcher.start()
        tasks = [asyncio.create_task(batcher.in_thread(call, number)) for number in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            await batcher.in_thread(call, 3)
        tasks.append(asyncio.create_task(batcher.submit("batch")))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 3
        release.set()
        await asyncio.gather(*tasks)
        await batcher.stop()

    asyncio.run(main())
    assert order == [0, "batch", 1, 2]
