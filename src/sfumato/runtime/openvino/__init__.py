"""The engine OpenVINO: the networks of `sfumato.graph` as graphs that its CPU plugin compiles.

    early.py      numbers that are known before a graph runs, which NumPy computes
    constants.py  weights as constants of a graph, on the memory that they are in
    ops.py        the operations of `sfumato.graph.ops` as nodes
    compiled.py   graphs compiled for the shapes that are asked for, and their settings
    networks.py   the UNet, the autoencoder and the text encoder, as functions of arrays
    modules.py    the same in the place of torch's networks

Nothing here imports torch. OpenVINO itself is imported with the first network.
"""
