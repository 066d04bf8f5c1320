"""k-diffusion's samplers by their names there, and those that ComfyUI and A1111 added to them:
what each of them is among the tables here.

All work over sigma. They differ from diffusers' schedulers of similar names in the steps they
take (each to the next sigma, the last to none) and in what they do at the ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_cfg_pp,
    euler_cfg_pp,
    gradient_estimation_cfg_pp,
    res_multistep_cfg_pp,
)
from sfumato.diffusion.samplers.consistency import renoised
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.samplers.dpm import dpm_multistep
from sfumato.diffusion.samplers.lms import lms
from sfumato.diffusion.samplers.pndm import ipndm
from sfumato.diffusion.samplers.refined import er_sde, res_multistep
from sfumato.diffusion.samplers.singlestep import orders_in_thirds, singlestep, two_calls
from sfumato.diffusion.samplers.slopes import gradient_estimation, heun_pp, ipndm_v, restart

Make = Callable[[Frame, float, float], Plan]


@dataclass(frozen=True)
class Named:
    """A sampler.

    Attributes:
        make: from a frame over sigma, the share of noise (``eta``) and the factor on it
            (``s_noise``), the table.
        calls: where the network is asked in a step: at its start, at both its ``ends``, at its
            start and in its ``middle`` (in log sigma; ``lowered``: of the way that an ancestral
            step goes down), at its ``thirds``, at both ends and a step ``ahead``, or at both ends
            of steps that are taken again (``restarts``).
        noisy: whether it adds noise, with ``eta`` above 0.
        wants_negative: whether it has to know the network's answer to the negative prompt.
    """

    make: Make
    calls: Literal["start", "ends", "middle", "lowered", "thirds", "ahead", "restarts"] = "start"
    noisy: bool = False
    wants_negative: bool = False


def _plain(sampler: Callable[[Frame], Plan]) -> Make:
    return lambda frame, eta, s_noise: sampler(frame)


def _two_calls(frame: Frame, eta: float, s_noise: float, *, image: bool, noisy: bool) -> Plan:
    orders = two_calls(len(frame))
    share = eta if noisy else 0.0
    return singlestep(frame, orders, image=image, ancestral=share, s_noise=s_noise)


def _dpmpp_sde(frame: Frame, eta: float, s_noise: float) -> Plan:
    return singlestep(frame, two_calls(len(frame)), eta=eta, brownian=True, s_noise=s_noise)


def _sde(frame: Frame, eta: float, s_noise: float, *, order: int, solver_type: str) -> Plan:
    return dpm_multistep(
        frame,
        order=order,
        eta=eta,
        s_noise=s_noise,
        solver_type=solver_type,
        lower_order_final=False,
    )


def _dpm_fast(frame: Frame, eta: float, s_noise: float) -> Plan:
    orders = orders_in_thirds(len(frame))
    inner = [order == 2 and after == 3 for order, after in pairwise([*orders, 1])]
    types = ["heun" if this else "midpoint" for this in inner]
    return singlestep(frame, orders, image=False, solver_types=types)


def _lcm(frame: Frame, eta: float, s_noise: float) -> Plan:
    return renoised(frame, frame.next, frame.next.sigma > 0)


def _er_sde(frame: Frame, eta: float, s_noise: float) -> Plan:
    return er_sde(frame, s_noise=s_noise)


def _restart(frame: Frame, eta: float, s_noise: float) -> Plan:
    return restart(frame, s_noise=s_noise)


def _noisy(sampler: Callable[..., Plan]) -> Make:
    return lambda frame, eta, s_noise: sampler(frame, eta=eta, s_noise=s_noise)


_with_negative = partial(Named, wants_negative=True)
NAMED: dict[str, Named] = {
    "euler": Named(_plain(ddim)),
    "euler_ancestral": Named(_noisy(ddim), noisy=True),
    "heun": Named(partial(_two_calls, image=False, noisy=False), "ends"),
    "dpm_2": Named(partial(_two_calls, image=False, noisy=False), "middle"),
    "dpm_2_ancestral": Named(partial(_two_calls, image=False, noisy=True), "lowered", noisy=True),
    "lms": Named(_plain(lms)),
    "ipndm": Named(_plain(ipndm)),
    "dpm_fast": Named(_dpm_fast, "thirds"),
    "dpmpp_2s_ancestral": Named(partial(_two_calls, image=True, noisy=True), "lowered", noisy=True),
    "dpmpp_sde": Named(_dpmpp_sde, "middle", noisy=True),
    "dpmpp_2m": Named(_plain(partial(dpm_multistep, lower_order_final=False))),
    "dpmpp_2m_sde": Named(partial(_sde, order=2, solver_type="midpoint"), noisy=True),
    "dpmpp_2m_sde_heun": Named(partial(_sde, order=2, solver_type="heun"), noisy=True),
    "dpmpp_3m_sde": Named(partial(_sde, order=3, solver_type="heun"), noisy=True),
    "lcm": Named(_lcm, noisy=True),
    "heunpp2": Named(_plain(heun_pp), "ahead"),
    "ipndm_v": Named(_plain(ipndm_v)),
    "gradient_estimation": Named(_plain(gradient_estimation)),
    "res_multistep": Named(_plain(res_multistep)),
    "res_multistep_ancestral": Named(_noisy(res_multistep), noisy=True),
    "er_sde": Named(_er_sde, noisy=True),
    "restart": Named(_restart, "restarts", noisy=True),
    "ddim_cfg_pp": _with_negative(_plain(euler_cfg_pp)),  # DDIM is Euler's method
    "euler_cfg_pp": _with_negative(_plain(euler_cfg_pp)),
    "euler_ancestral_cfg_pp": _with_negative(_noisy(euler_cfg_pp), noisy=True),
    "dpmpp_2m_cfg_pp": _with_negative(_plain(dpmpp_2m_cfg_pp)),
    "dpmpp_2s_ancestral_cfg_pp": _with_negative(_noisy(dpmpp_2s_cfg_pp), "lowered", noisy=True),
    "res_multistep_cfg_pp": _with_negative(_plain(res_multistep_cfg_pp)),
    "res_multistep_ancestral_cfg_pp": _with_negative(_noisy(res_multistep_cfg_pp), noisy=True),
    "gradient_estimation_cfg_pp": _with_negative(_plain(gradient_estimation_cfg_pp)),
}
