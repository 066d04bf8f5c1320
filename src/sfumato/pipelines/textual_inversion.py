"""diffusers' methods for textual inversion: thin ones over a pipeline's tokenizer and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sfumato.text import textual_inversion
from sfumato.text.conditioning import maybe_convert_prompt


class TextualInversionLoaderMixin:
    """Methods of a pipeline to whose prompts words can be added."""

    tokenizer: Any
    text_encoder: Any

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: textual_inversion.Source
        | Sequence[textual_inversion.Source],
        token: str | Sequence[str | None] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add words with embeddings of their own; nothing is changed when anything is wrong.

        Args:
            pretrained_model_name_or_path: a file, a folder, a name on the hub (such as
                ``sd-concepts-library/cat-toy``), a dictionary, a tensor, or a list of these.
            token: the word in prompts, in place of the one in the file; a list for a list.
            tokenizer, text_encoder: in place of the pipeline's.
            kwargs: ``weight_name``, ``subfolder``, ``use_safetensors``; and for the hub
                ``hf_token``, ``revision``, ``cache_dir``, ``proxies``, ``force_download``,
                ``local_files_only``.

        Raises:
            InputError, CheckpointError: see `sfumato.text.textual_inversion`.
        """
        textual_inversion.load_textual_inversion(
            *self._text_pair(tokenizer, text_encoder),
            pretrained_model_name_or_path,
            token,
            **kwargs,
        )

    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
    ) -> None:
        """Take words away again: these, or all that were added.

        Raises:
            InputError: when there is no such word.
        """
        textual_inversion.unload_textual_inversion(
            *self._text_pair(tokenizer, text_encoder), tokens
        )

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> Any:
        """Prompts with the tokens of several vectors written out."""
        return maybe_convert_prompt(prompt, tokenizer)

    def _text_pair(self, tokenizer: Any, text_encoder: Any) -> tuple[Any, Any]:
        return (
            self.tokenizer if tokenizer is None else tokenizer,
            self.text_encoder if text_encoder is None else text_encoder,
        )
