"""The engine OpenVINO: the networks of `sfumato.graph` as graphs that its CPU plugin compiles.

    early.py      numbers that are known before a graph runs, which NumPy computes
    constants.py  weights as constants of a graph, on the memory that they are in
    ops.py        the operations of `sfumato.graph.ops` as nodes
    compiled.py   graphs compiled for the shapes that are asked for, and their settings
    networks.py   the UNet, the autoencoder and the text encoder, as functions of arrays

Of these none imports torch. In the place of torch's networks:

    modules.py        the engine that a network asks before it computes
    torch_weights.py  its weights, on the memory that they are in
    adapters.py       LoRAs and their kin as inputs of the graph, or merged

When torch has to compute after all, `sfumato.runtime.hindrances` says.
"""
