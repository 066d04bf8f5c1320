"""Several networks in the place of one, such as the ControlNets of one UNet."""

from __future__ import annotations

from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import nn

from sfumato.models.base import ModelMixin


class SeveralNetworks(nn.Module):
    """Networks of one class that are used, saved and loaded together.

    A subclass says of which class they are and keeps them in a list. Saved, each has a folder of
    its own: ``path``, ``path_1``, ``path_2`` and so on.
    """

    member_class: ClassVar[type[ModelMixin[Any]]]

    @property
    def members(self) -> nn.ModuleList:
        """The networks."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the first network's weights."""
        return next(self.parameters()).dtype

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Write the networks; the arguments are those of `ModelMixin.save_pretrained`.

        Networks that lie there beyond their number are no longer found by `from_pretrained`.
        """
        from sfumato.checkpoints import several

        several.save_several(
            self,
            save_directory,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote; the keywords are those of the networks' own loader.

        Raises:
            ModelNotFoundError: there is no such folder.
            SfumatoError: as when one of them is loaded.
        """
        from sfumato.checkpoints import several

        return several.load_several(cls, pretrained_model_path, **kwargs)
