"""Choices about the machine: device, precision, threads."""
