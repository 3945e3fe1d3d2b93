"""A FastAPI service that sends a job for an order, and tells what became of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, HTTPException
from jobs import SendReceipt
from pydantic import BaseModel, Field

from runtime import JobDead, JobsError, Producer, ResultTimeout

producer = Producer(os.environ["REDIS_URL"], source="shop", check=True)


class Order(BaseModel):
    """What a client asks for."""

    order: int = Field(ge=1)
    to: str = Field(min_length=3)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the connection with the service."""
    async with producer:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place(order: Order) -> dict[str, str]:
    """Send the job, and return its id; a second click sends none."""
    message = msgspec.convert(order.model_dump(), SendReceipt)
    try:
        return {"job": (await producer.send(message, key=f"receipt-{order.order}")).id}
    except JobsError as error:
        raise HTTPException(503, str(error)) from error


@app.get("/jobs/{job}")
async def look(job: str) -> dict[str, str]:
    """Return what the job has answered, waiting a second for it."""
    try:
        return {"done": await producer.result(job, 1, type=str)}
    except ResultTimeout as error:
        return {"open": str(error)}
    except JobDead as error:
        return {"dead": str(error)}
