"""What every scheduler class is: a configuration, a training table, and a plan under way.

The classes bear diffusers' names and methods. They hold no arithmetic of their own:
``set_timesteps`` chooses a way (`sfumato.diffusion.ways`), `Scheduler.plan` makes the table of the
sampler (`sfumato.diffusion.samplers`), and ``step`` applies its rows one by one, as
`sfumato.diffusion.denoise` does in one go.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.config import FrozenDict
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import alphas_cumprod, betas
from sfumato.errors import InputError
from sfumato.outputs import BaseOutput
from sfumato.schedulers import storage
from sfumato.schedulers.arguments import by_name, signature_of
from sfumato.schedulers.config import SchedulerConfig
from sfumato.schedulers.tables import Table, array_of

if TYPE_CHECKING:  # a scheduler serves paths without torch too; see `sfumato.schedulers.tables`
    import torch

    from sfumato.diffusion.noise import Generators
    from sfumato.diffusion.run import PlanRun


@dataclass
class SchedulerOutput(BaseOutput):
    """What ``step`` returns.

    Attributes:
        prev_sample: the picture in progress, one step less noisy.
        pred_original_sample: the finished picture as the network sees it now, where the method
            has one.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


C = TypeVar("C", bound=SchedulerConfig)


class Scheduler(Generic[C]):
    """Base of all schedulers; construct with the fields of ``config_class`` as keywords.

    Attributes:
        timesteps: what the network is told, call by call; set by ``set_timesteps``.
        num_inference_steps: number of steps, None before ``set_timesteps``.
        order: calls of the network per step.
        init_noise_sigma: standard deviation of the noise to start from.
    """

    config_name: ClassVar[str] = "scheduler_config.json"
    config_class: ClassVar[type[SchedulerConfig]]
    order: int = 1
    has_compatibles: ClassVar[bool] = True
    #: Whether the classes of `KarrasDiffusionSchedulers` can take this one's place.
    swappable: ClassVar[bool] = True

    timesteps: Table = Table()
    betas: Table = Table()
    alphas: Table = Table()
    alphas_cumprod: Table = Table()
    num_inference_steps: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = by_name(type(self), args, kwargs)
        self._settings = cast(C, self.config_class.from_values(kwargs))
        self._extras: dict[str, Any] = {}
        self._prepare()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in vars(cls):
            cls.__signature__ = signature_of(cls.config_class)

    def _prepare(self) -> None:
        """Make the training table, and forget any run."""
        self.num_inference_steps = None
        self._run: PlanRun | None = None
        noise = self._settings.noise
        if noise is None:
            return
        self._acp = alphas_cumprod(noise)
        added = betas(noise)
        self.betas, self.alphas = added, 1.0 - added
        self.alphas_cumprod = acp = self._acp.astype(np.float32)
        with np.errstate(divide="ignore"):  # without any signal at the end, the last is infinite
            self._sigma_table = _root((1 - acp) / acp).astype(np.float64)

    # --- Configuration ---

    @property
    def config(self) -> FrozenDict:
        """All settings; see `sfumato.schedulers.config`."""
        names = set(self._settings)
        values = {name: storage.listed(value) for name, value in self._settings.items()}
        unset = sorted(names - self._settings.explicit)
        return FrozenDict({**self._extras, **values, "_use_default_values": unset})

    @property
    def _internal_dict(self) -> FrozenDict:
        """The same under diffusers' private name, which its pipelines set to change settings."""
        return self.config

    @_internal_dict.setter
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        old = self.config
        changed = {k: v for k, v in config.items() if not k.startswith("_") and old.get(k) != v}
        self.register_to_config(**changed)

    if not TYPE_CHECKING:  # a checker shall know the attributes that there are

        def __getattr__(self, name: str) -> Any:
            """Deprecated: a setting as an attribute of the scheduler itself."""
            if name in vars(self).get("_settings", ()):
                warnings.warn(
                    f"`{type(self).__name__}.{name}` is deprecated. Use"
                    f" `{type(self).__name__}.config.{name}` instead.",
                    FutureWarning,
                    stacklevel=2,
                )
                return self.config[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def register_to_config(self, **changes: Any) -> None:
        """Change settings; the table is made anew, and ``set_timesteps`` has to be called again.

        A setting that nobody had set still counts as such when classes are swapped.
        """
        known = set(self._settings)
        fitting = {name: value for name, value in changes.items() if name in known}
        self._settings = replace(self._settings, **fitting)
        self._extras |= {name: value for name, value in changes.items() if name not in known}
        self._prepare()

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | PathLike[str] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A scheduler of this class with another's settings.

        Settings that the other left at its default take the default of this class. Settings that
        this class does not have are kept, for a later swap back.

        Args:
            config: another scheduler's ``config`` (of this library or of diffusers), or the
                content of a ``scheduler_config.json``.
            return_unused_kwargs: return ``(scheduler, unused)``.
            kwargs: settings that replace those of ``config``.

        Raises:
            InputError: without ``config``.
            ConfigError: when a value is out of range.
        """
        if config is None:
            raise InputError(
                "Please make sure to provide a config as the first positional argument."
            )
        if isinstance(config, str | PathLike):
            config = storage.read_config(config, cls.config_name)
        values, extras, unused = storage.split_config(cls, config, kwargs)
        if unused and not return_unused_kwargs:
            storage.report_unused(cls, unused)
        scheduler = cls(**values)
        scheduler._extras |= extras
        return (scheduler, {**unused, **extras}) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A scheduler from a folder with a ``scheduler_config.json``, of whichever class.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            subfolder: a folder in it, such as ``scheduler``.
            return_unused_kwargs: return ``(scheduler, unused)``.
            kwargs: settings that replace those of the file; and how to ask the hub, see
                `sfumato.checkpoints.hub_names.HubOptions`.

        Raises:
            CheckpointError: when there is no such file.
            ConfigError: when its content is wrong.
        """
        config, kwargs = cls.load_config(
            pretrained_model_name_or_path, True, subfolder=subfolder, **kwargs
        )
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        return_unused_kwargs: bool = False,
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The content of a folder's ``scheduler_config.json``, for `from_config`.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            return_unused_kwargs: return ``(config, unused)``.
            subfolder: a folder in it, such as ``scheduler``.
            kwargs: how to ask the hub; others are left.

        Raises:
            CheckpointError: when there is no such file.
            ConfigError: when it is not a JSON object.
        """
        hub = take_hub_options(kwargs)
        config = storage.read_config(pretrained_model_name_or_path, cls.config_name, subfolder, hub)
        unused = {k: v for k, v in kwargs.items() if k not in storage.LOADING_OPTIONS}
        return (config, unused) if return_unused_kwargs else config

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` into a folder, which is made if needed.

        Args:
            save_directory: the folder.
            push_to_hub: has to stay False; sfumato uploads nothing.
            kwargs: of an upload, and without effect.

        Raises:
            InputError: with ``push_to_hub``.
            ConfigError: when ``save_directory`` is a file.
        """
        if push_to_hub:
            raise InputError(
                "`push_to_hub` has to be False: sfumato uploads nothing.",
                hint="Upload the folder with huggingface_hub.",
            )
        storage.write_config(save_directory, self.config_name, type(self).__name__, self.config)

    save_config = save_pretrained

    def to_json_string(self) -> str:
        """What `save_pretrained` writes."""
        return storage.config_text(type(self).__name__, self.config) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str]) -> None:
        """Write what `to_json_string` gives into a file, whole or not at all."""
        from sfumato.checkpoints.atomic import write_file_atomically

        write_file_atomically(json_file_path, self.to_json_string().encode())

    @property
    def compatibles(self) -> list[type[Scheduler[Any]]]:
        """Classes that a pipeline can use in this one's place."""
        return storage.compatible_classes(type(self))

    def __len__(self) -> int:
        return self._settings["num_train_timesteps"]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {storage.config_text(type(self).__name__, self.config)}"

    # --- Sampling ---

    @property
    def init_noise_sigma(self) -> Any:
        """Standard deviation of the noise to start from."""
        return 1.0

    def plan(self, start: int = 0) -> Plan:
        """The sampler's table for ``timesteps[start:]``, after ``set_timesteps``."""
        raise NotImplementedError

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the network is to see for ``sample``."""
        return sample

    def _told(self) -> np.ndarray[Any, Any]:
        """The timesteps as an array."""
        return array_of(self, "timesteps")

    def _require_timesteps(self) -> None:
        if self.num_inference_steps is None:
            raise InputError(
                "Number of inference steps is 'None', you need to run 'set_timesteps' after"
                " creating the scheduler"
            )

    @staticmethod
    def _index(timestep: float, listed: list[Any]) -> int:
        """Position of a timestep; the second of two alike, unless the first leads the list.

        A run that begins in the middle (image-to-image) would otherwise take a step twice.
        """
        places = [i for i, t in enumerate(listed) if t == timestep]
        if not places:
            raise InputError(
                f"{timestep:g} is not one of the scheduler's timesteps.",
                hint="Pass one of `scheduler.timesteps`.",
            )
        return places[1] if len(places) > 1 and places[0] > 0 else places[0]

    def _apply(
        self,
        plan: Plan,
        row: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One row of a plan; earlier calls are remembered from row to row.

        Returns:
            The next sample and the denoised one.
        """
        from sfumato.diffusion.noise import randn_tensor
        from sfumato.diffusion.run import PlanRun

        run = self._run
        if run is None or plan.depth == 0:  # without a memory, runs need not be kept apart
            run = self._run = PlanRun(plan, self.timesteps.device)
        run.plan = plan

        def draw(dtype: torch.dtype) -> torch.Tensor:
            if noise is not None:
                return noise.to(sample.device, dtype)
            return randn_tensor(sample.shape, generator, sample.device, dtype)

        return run.step(row, sample, output, draw)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noise pictures as in training, each at its own timestep.

        Args:
            original_samples: ``(n, ...)``.
            noise: standard normal, same shape.
            timesteps: ``(n,)``.
        """
        alpha, sigma = self._training_levels(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def _training_levels(
        self, like: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma at whole timesteps, shaped to be multiplied with ``like``."""
        acp = self.alphas_cumprod.to(like.device, like.dtype)[timesteps.to(like.device)]
        acp = acp.flatten().view(-1, *[1] * (like.ndim - 1))
        return acp**0.5, (1 - acp) ** 0.5


def _root(squares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The root in float32; torch's, where torch is there.

    As `schedule.training_sigmas`, but torch's root has another last bit on some processors: a
    sigma at a whole timestep is then found there, and not just below.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "from_numpy"):
        return np.sqrt(squares)
    return (torch.from_numpy(squares) ** 0.5).numpy()
