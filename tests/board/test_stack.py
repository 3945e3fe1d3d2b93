"""Frames out of a stack as a letter keeps it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from board.stack import MAX_FRAMES, frames_of

STACK = """  File "/opt/app/runtime/worker/lanes.py", line 9, in run
    outcome = await handler(job)
  File "/srv/app/shop/crm.py", line 214, in fetch_page
    raise Broken(
    ^^^^^^^^^^^^^
  File "/srv/.venv/lib/python3.11/site-packages/httpx/_client.py", line 3, in send
  File "<frozen importlib._bootstrap>", line 1, in x
"""


def test_frames_are_told_from_the_outermost_on() -> None:
    told = [(frame.function, frame.file, frame.line, frame.code, frame.is_own) for frame in frames_of(STACK)]
    assert told == [
        ("run", "runtime/worker/lanes.py", 9, "outcome = await handler(job)", False),
        ("fetch_page", "app/shop/crm.py", 214, "raise Broken(", True),
        ("send", "httpx/_client.py", 3, "", False),
        ("x", "<frozen importlib._bootstrap>", 1, "", False),
    ]


@given(st.text(max_size=5000) | st.text(alphabet='File "x", line 1, in\n').map(lambda text: STACK + text))
def test_any_text_has_frames_or_none(text: str) -> None:
    assert len(frames_of(text * 3)) <= MAX_FRAMES
