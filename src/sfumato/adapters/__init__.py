"""LoRA and its kin: small files that change a network's layers, loaded, mixed, fused and taken off.

Read in this order: ``families`` (the formulas), ``keys`` and ``names`` (what a file calls things),
``parse`` (from a file's tensors to one adapter per layer), ``layer`` (how a layer computes with
adapters), ``network`` (which adapters act on a network, and how strongly), ``loading`` and
``saving`` (files), ``pipeline_methods`` and ``network_methods`` (diffusers' names for all of it).
"""
