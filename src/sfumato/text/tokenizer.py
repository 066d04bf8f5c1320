"""The CLIP tokenizer: text to token ids and back.

``conditioning.py`` calls it before the text encoder. The work is done by the `tokenizers` library;
interface and ids are those of transformers' ``CLIPTokenizerFast``. Its slow twin ``CLIPTokenizer``
cleans text in another way before splitting it, so these two differ, there and from here, for

- control, unassigned and replacement characters, which the slow one deletes,
- Chinese characters, of which it makes each a word of its own,
- the Greek final sigma, and the long s after an apostrophe,
- tokens that were added with capital letters, which are found in any case here.

For other text all three agree. Lone surrogates, over which the fast one stumbles, are left out.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

from sfumato.text import tokenizer_folder
from sfumato.text.text_to_ids import TextToIds
from sfumato.text.token_table import TokenTable


class CLIPTokenizer(TokenTable, TextToIds):
    """Byte-pair tokenizer with CLIP's rules; callable. For its arguments see `TokenTable`.

    Without arguments it has the vocabulary of Stable Diffusion 1.x, which ships with the package;
    Stable Diffusion 2.x differs in ``pad_token="!"``.
    """

    model_input_names = ("input_ids", "attention_mask")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load from a folder that transformers or diffusers wrote.

        Read are ``vocab.json`` and ``merges.txt``, or ``tokenizer.json`` where those are missing,
        and ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            subfolder: a folder in it, such as ``tokenizer``.
            kwargs: arguments of the constructor that go before what the files say; and how to ask
                the hub, see `sfumato.checkpoints.hub_names.HubOptions`.

        Raises:
            ModelNotFoundError: when the folder or the vocabulary in it is missing.
            TokenizerError: when the vocabulary cannot be used.
            UnknownKeywordError: when there is no such argument.
        """
        return cls(**tokenizer_folder.read(pretrained_model_name_or_path, subfolder, kwargs))

    def save_pretrained(self, save_directory: str | PathLike[str]) -> tuple[str, ...]:
        """Write a folder that transformers' two CLIP tokenizers load.

        Returns:
            The paths of the files.
        """
        return tokenizer_folder.write(self, save_directory)

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text as strings."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=add_special_tokens))

    def _special_ids(self) -> tuple[int, int, int]:
        return self.bos_token_id, self.eos_token_id, self.pad_token_id
