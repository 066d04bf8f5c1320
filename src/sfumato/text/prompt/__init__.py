"""The grammar of prompts, without torch: from a text to phrases, steps, parts and tags.

In the order in which a prompt passes through: `tags` takes out ``<lora:name:1>``, `composition`
splits at ``AND``, `schedule` reads ``[from:to:when]`` and ``[a|b]``, `attention` or `comfyui` reads
the weights, `chunks` fills the text encoder's windows.
"""
