"""A script that sends a job for each line of standard input, `ORDER ADDRESS`, and prints what the last one has answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from jobs import SendReceipt

from runtime import SyncProducer


def receipts() -> Iterator[SendReceipt]:
    """Read as the jobs are sent: the input may be long."""
    for line in sys.stdin:
        order, to = line.split()
        yield SendReceipt(order=int(order), to=to)


with SyncProducer(os.environ["REDIS_URL"], source="script") as producer:
    sent = producer.send_many(receipts())
    print(f"{len(sent)} sent")
    if sent:
        print(producer.result(sent[-1], type=str))
