"""ControlNets under the name of diffusers' Flax class; see `sfumato.jax.models`.

controlnet, control_params = FlaxControlNetModel.from_pretrained("folder")
control = controlnet.apply({"params": control_params}, latents, timestep, text, picture)
noise = unet.apply(
    {"params": params}, latents, timestep, text,
    down_block_additional_residuals=control.down_block_res_samples,
    mid_block_additional_residual=control.mid_block_res_sample,
).sample
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from sfumato.graph.controlnet import controlnet
from sfumato.graph.unet_shapes import controlnet_shapes
from sfumato.jax.mixin import FlaxModelMixin, refuse_training, scope
from sfumato.models.controlnet_config import ControlNetConfig
from sfumato.outputs import BaseOutput


@dataclass
class FlaxControlNetOutput(BaseOutput):
    """What to add to a UNet's skips, one array each, and to its middle."""

    down_block_res_samples: tuple[Array, ...]
    mid_block_res_sample: Array


class FlaxControlNetModel(FlaxModelMixin[ControlNetConfig]):
    """A ControlNet; its configuration is that of `ControlNetModel`."""

    config_class = ControlNetConfig
    class_name = "ControlNetModel"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        return controlnet_shapes(self.config)

    def apply(
        self,
        variables: Mapping[str, Any],
        sample: Array,
        timesteps: Array | float,
        encoder_hidden_states: Array,
        controlnet_cond: Array,
        conditioning_scale: Array | float = 1.0,
        return_dict: bool = True,
        train: bool = False,
        *,
        class_labels: Array | None = None,
        added_cond_kwargs: Mapping[str, Array] | None = None,
    ) -> FlaxControlNetOutput | tuple[tuple[Array, ...], Array]:
        """What to add to a UNet that is given the same input.

        Args:
            variables: ``{"params": params}`` or the parameters.
            sample, timesteps, encoder_hidden_states, class_labels, added_cond_kwargs: see
                `FlaxUNet2DConditionModel.apply`.
            controlnet_cond: the picture ``(N, conditioning_channels, 8 H, 8 W)`` in 0..1.
            conditioning_scale: strength of the result.
            return_dict: return an output object rather than a tuple.
            train: has to be False: nothing here has dropout.

        Raises:
            InputError: the picture is not of the size of what is drawn.
        """
        refuse_training(train)
        times = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32).reshape(-1), sample.shape[:1])
        bgr = self.config.controlnet_conditioning_channel_order == "bgr"
        found = controlnet(
            self.ops,
            scope(variables),
            self.config,
            sample,
            times,
            encoder_hidden_states,
            controlnet_cond[:, ::-1] if bgr else controlnet_cond,
            class_labels=class_labels,
            added=added_cond_kwargs,
        )
        assert found.down is not None and found.mid is not None
        *down, mid = (
            (array.mean((2, 3), keepdims=True) if self.config.global_pool_conditions else array)
            * jnp.asarray(conditioning_scale, array.dtype)
            for array in (*found.down, found.mid)
        )
        return FlaxControlNetOutput(tuple(down), mid) if return_dict else (tuple(down), mid)
