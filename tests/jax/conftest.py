"""What is not collected here."""

#: It runs in an environment of its own, with packages that this one does not have.
collect_ignore = ["upstream_reference.py"]
