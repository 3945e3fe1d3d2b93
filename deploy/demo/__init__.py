"""Traces, looked at in a real Jaeger."""
