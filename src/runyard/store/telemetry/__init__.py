"""Rows of telemetry: stream offsets, log lines and metric points, numbered per run from 1."""
