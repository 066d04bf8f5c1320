"""A class as the one token that the UNet attends to: how the ImageNet models are steered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.condition import Condition
from sfumato.config import Config
from sfumato.errors import ConfigError, InputError, did_you_mean, printable
from sfumato.models.base import ModelMixin
from sfumato.models.checks import MAX_CHANNELS, check_ints, check_size, label


@dataclass(frozen=True, kw_only=True)
class ClassEmbedderConfig(Config):
    """Shape of the table.

    Attributes:
        embed_dim: width of a token.
        n_classes: how many there are, the unconditional one included.
        key: under which name the training data had the class.
        unconditional_class: the one that stands for no class, against which guidance goes; -1 is
            the last. None: the model was trained without, and cannot be guided.
        class_names: of the classes by number, as far as they have any; pictures can be asked for
            by these.
    """

    embed_dim: int = 512
    n_classes: int = 1001
    key: str = "class_label"
    unconditional_class: int | None = -1
    class_names: tuple[str, ...] = ()

    def validate(self) -> None:
        check_ints(self, ("embed_dim",), 1, MAX_CHANNELS)
        check_ints(self, ("n_classes",), 1, 10_000_000)
        check_size(self, self.embed_dim * self.n_classes)
        if not isinstance(self.key, str):
            raise ConfigError(f"`{label(self, 'key')}` has to be text.")
        if self.unconditional_class is not None:
            check_ints(self, ("unconditional_class",), -1, self.n_classes - 1)
        names = self.class_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"`{label(self, 'class_names')}` has to be a list of names.")
        if len(names) > self.n_classes or len(set(names)) < len(names):
            raise ConfigError(
                f"`{label(self, 'class_names')}` has {len(names)} names for {self.n_classes} "
                "classes; each can have one of its own."
            )


class ClassEmbedder(ModelMixin[ClassEmbedderConfig]):
    """A table with one vector per class (``embedding.weight``, as in the original files)."""

    config_class = ClassEmbedderConfig

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.embedding = nn.Embedding(self.config.n_classes, self.config.embed_dim)

    @property
    def unconditional_class(self) -> int | None:
        """The number of the class that stands for none; None if the model has no such class."""
        given = self.config.unconditional_class
        return self.config.n_classes - 1 if given == -1 else given

    def forward(self, class_labels: Tensor) -> Tensor:
        """Class numbers ``(batch,)`` to tokens ``(batch, 1, embed_dim)``.

        Raises:
            InputError: a number is not one of a class.
        """
        if class_labels.ndim != 1 or class_labels.dtype not in (torch.int64, torch.int32):
            raise InputError("Class labels have to be a list of whole numbers, one per picture.")
        for number in class_labels.tolist():
            if not 0 <= number < self.config.n_classes:
                raise InputError(
                    f"A class label has to be a number from 0 to {self.config.n_classes - 1} but "
                    f"is {number}."
                )
        return self.embedding(class_labels)[:, None]

    # As a conditioner

    def count(self, condition: Any) -> int:
        """How many classes are listed: a number or name, or several in a list or tensor."""
        return len(self._numbers(condition))

    def encode(self, condition: Any, device: torch.device, dtype: torch.dtype) -> Condition:
        """A token for each class."""
        labels = torch.tensor(self._numbers(condition), device=device)
        return Condition(tokens=self(labels).to(dtype))

    def encode_negative(
        self, count: int, negative: Any, device: torch.device, dtype: torch.dtype
    ) -> Condition:
        """Tokens of classes to go away from; by default of the class that stands for none.

        Raises:
            InputError: the model has no such class, or there are more or less than pictures.
        """
        if negative is None and self.unconditional_class is None:
            raise InputError(
                "This model was trained with classes alone, so there is nothing to guide it away "
                "from.",
                hint="Leave `guidance_scale` at 1, or pass another class as the negative one.",
            )
        labels = self._numbers(self.unconditional_class if negative is None else negative)
        labels = labels * count if len(labels) == 1 else labels
        if len(labels) != count:
            raise InputError(f"There are {len(labels)} negative classes for {count} classes.")
        return self.encode(labels, device, dtype)

    def _numbers(self, condition: Any) -> list[int]:
        """Class numbers from numbers and names."""
        names = self.config.class_names
        listed = _listed(condition)
        for name in listed:
            if isinstance(name, str) and names and name not in names:
                shown = printable(name)
                raise InputError(
                    f"The model's {len(names)} classes have no {shown!r}."
                    f"{did_you_mean(name[:80], names)}"
                )
        return _checked([names.index(one) if one in names else one for one in listed])


def _listed(condition: Any) -> list[Any]:
    """One or several, from a list, an array or a tensor."""
    plain = condition.tolist() if hasattr(condition, "tolist") else condition
    return list(plain) if isinstance(plain, list | tuple | range) else [plain]


def _checked(listed: list[Any]) -> list[int]:
    for number in listed:
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**31:
            raise InputError(f"A class has to be given as a whole number, not {number!r:.80}.")
    if not listed:
        raise InputError("There are no classes in the list.")
    return listed
