"""Tests of the board's pages, in a real browser."""
