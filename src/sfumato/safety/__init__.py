"""Judging finished pictures: the image processor, the checker, and what is done on a finding."""
