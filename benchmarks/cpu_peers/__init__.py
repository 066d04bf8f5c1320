"""The contenders of `benchmarks.cpu`, each in a process of its own, and what is told of them.

job.py          what is asked of every contender, and the numbers that all are fed
contenders.py   the table of contenders: what each needs and can do
ours.py, with_diffusers.py, with_openvino.py, with_onnx.py, with_genai.py, with_sdcpp.py
                how to load each, and how to take a step with it
ceiling.py      the best rate of matrix products that any library here reaches
worker.py       a process that loads one contender and then does as it is told
pool.py         starts workers, as many as fit into memory, and asks them in random order
work.py         operations counted from the networks' configurations
report.py       medians, paired ratios, tables
plots.py        the same as pictures
"""
