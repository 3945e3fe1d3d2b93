"""A Flask application that sends a job for an order, and tells what became of it."""

from __future__ import annotations

import os

import msgspec
from flask import Flask, request
from jobs import SendReceipt

from runtime import JobDead, JobsError, ResultTimeout, SyncProducer

app = Flask(__name__)
producer = SyncProducer(os.environ["REDIS_URL"], source="shop", check=True)  # it connects with its first send, in each process


@app.post("/orders")
def place() -> tuple[dict[str, str], int]:
    """Send the job, and return its id; a second click sends none."""
    try:
        message = msgspec.json.decode(request.get_data(), type=SendReceipt)
        return {"job": producer.send(message, key=f"receipt-{message.order}").id}, 202
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        return {"error": str(error)}, 422
    except JobsError as error:
        return {"error": str(error)}, 503


@app.get("/jobs/<job>")
def look(job: str) -> dict[str, str]:
    """Return what the job has answered, waiting a second for it."""
    try:
        return {"done": producer.result(job, 1, type=str)}
    except ResultTimeout as error:
        return {"open": str(error)}
    except JobDead as error:
        return {"dead": str(error)}
