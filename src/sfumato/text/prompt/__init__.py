"""The grammar of prompts, without torch: from a text to phrases, steps, parts and tags.

In the order in which a prompt passes through: `tags` takes out ``<lora:name:1>``, `composition`
splits at ``AND``, `schedule` reads ``[from:to:when]`` and ``[a|b]``, `attention` or `comfyui` reads
the weights, `chunks` fills the text encoder's windows.
"""

from __future__ import annotations

LITERAL, A1111, A1111_NO_NORM, COMFYUI = "literal", "a1111", "a1111-no-norm", "comfyui"

#: How prompts can be read. In a literal one every letter is text, as in diffusers; those of A1111
#: differ in whether the mean of the embeddings is restored after weighing.
SYNTAX_NAMES = (LITERAL, A1111, A1111_NO_NORM, COMFYUI)
#: Those with tags, parts and changes over the steps.
TAGGED = (A1111, A1111_NO_NORM)
