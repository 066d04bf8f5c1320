"""CLIP's rules for splitting text, set up in the `tokenizers` library.

``tokenizer.py`` wraps what is built here in the interface that users know.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sfumato.text.vocabulary import Vocabulary

#: Contractions, words, single digits, and runs of anything else that is not space.
_PIECE = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_backend(vocabulary: Vocabulary, unk_token: str) -> Tokenizer:
    """A byte-pair tokenizer with CLIP's clean-up, splitting and merges, without special tokens.

    Text is composed (NFC), white space becomes single spaces, letters become small; then it is
    split into pieces, each a word, and the bytes of each are merged.
    """
    unknown = unk_token if unk_token in vocabulary.tokens else None
    model = vocabulary.models.get(unknown)
    if model is None:  # all tokenizers of a vocabulary share it; added tokens are not part of it
        model = vocabulary.models[unknown] = BPE(
            vocab=vocabulary.tokens,
            merges=vocabulary.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=unknown,
            fuse_unk=False,
        )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def without_surrogates(text: str) -> str:
    """The text with pairs of surrogates joined and lone ones, which are no characters, left out.

    Python strings can hold them (from JSON or file names); UTF-8 and the tokenizer cannot.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return text
