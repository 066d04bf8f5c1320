"""The formulas, against what they say written out slowly, and against what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.adapters.families import LayerAdapter
from sfumato.adapters.names import NameTable
from sfumato.adapters.parse import Settings, build_layer, sort_tensors
from sfumato.errors import AdapterError
from tests.adapters.files_like import FAMILIES, Leaves, draw, norm

SHAPES = [torch.Size(s) for s in [(16, 24), (24, 16), (32, 32), (16, 8, 3, 3), (8, 16, 1, 1)]]
RANK = 4


def adapter_of(leaves: Leaves, shape: torch.Size, settings: Settings | None = None) -> LayerAdapter:
    """The adapter of one layer, from tensors under kohya's names."""
    keys = {f"lora_unet_layer.{leaf}": tensor.double() for leaf, tensor in leaves.items()}
    found = sort_tensors(keys, {"unet": NameTable(frozenset({"layer"}), {})})
    assert not found.unknown
    return build_layer("layer", found.networks["unet"]["layer"], shape, settings or Settings())


def random_case(family: str, shape: torch.Size) -> tuple[Leaves, Tensor, LayerAdapter]:
    randn = draw(len(shape) + shape.numel())
    leaves = FAMILIES[family](shape, randn)
    return leaves, randn(*shape).double(), adapter_of(leaves, shape)


def delta(adapter: LayerAdapter, weight: Tensor) -> Tensor:
    change = adapter.weight_delta(weight)
    assert change is not None
    assert change.shape == weight.shape
    assert change.dtype == weight.dtype
    return change


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a.dtype), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["lora", "lora with mid"])
def test_lora_is_the_sum_over_its_ranks(family: str, shape: torch.Size) -> None:
    leaves, weight, adapter = random_case(family, shape)
    up = leaves["lora_up.weight"].flatten(1).double()
    down, mid = leaves["lora_down.weight"].double(), leaves.get("lora_mid.weight")
    expected = torch.zeros_like(weight)
    for m in range(RANK):
        for n in range(RANK) if mid is not None else (m,):
            middle = 1.0 if mid is None else mid[m, n].double()
            row = down[n] if mid is None else down[n][:, 0, 0][:, None, None] * middle
            expected += up[:, m].reshape(-1, *[1] * (weight.ndim - 1)) * row[None]
    assert close(delta(adapter, weight), expected * leaves["alpha"] / RANK)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loha_multiplies_two_low_rank_matrices(shape: torch.Size) -> None:
    leaves, weight, adapter = random_case("loha", shape)
    first = leaves["hada_w1_a"].double() @ leaves["hada_w1_b"].double()
    second = leaves["hada_w2_a"].double() @ leaves["hada_w2_b"].double()
    assert close(delta(adapter, weight), (first * second * 8 / RANK).reshape(shape))


def test_loha_with_cores_contracts_both() -> None:
    shape = SHAPES[3]
    leaves, weight, adapter = random_case("loha tucker", shape)
    halves = []
    for n in (1, 2):
        core, a, b = (leaves[f"hada_{x}"].double() for x in (f"t{n}", f"w{n}_a", f"w{n}_b"))
        half = torch.zeros(shape, dtype=torch.float64)
        for i in range(RANK):
            for j in range(RANK):
                half += a[i][:, None, None, None] * b[j][None, :, None, None] * core[i, j]
        halves.append(half)
    assert close(delta(adapter, weight), halves[0] * halves[1] * 8 / RANK)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["lokr", "lokr full", "lokr both"])
def test_lokr_puts_the_second_matrix_into_every_entry_of_the_first(
    family: str, shape: torch.Size
) -> None:
    leaves, weight, adapter = random_case(family, shape)
    got = {name: tensor.double() for name, tensor in leaves.items()}
    first = got.get("lokr_w1")
    if first is None:
        first = got["lokr_w1_a"] @ got["lokr_w1_b"]
    second = got.get("lokr_w2")
    if second is None and "lokr_t2" in got:
        parts = (got["lokr_t2"], got["lokr_w2_a"], got["lokr_w2_b"])
        second = torch.einsum("ijkl,ip,jr->prkl", *parts)
    elif second is None:
        second = got["lokr_w2_a"] @ got["lokr_w2_b"]
    second = second.reshape(shape[0] // first.shape[0], shape[1] // first.shape[1], *shape[2:])
    scale = 1.0 if family == "lokr full" else 2 / RANK
    change = delta(adapter, weight)
    rows, columns = second.shape[:2]
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            block = change[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            assert close(block, first[i, j] * second * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["dora", "dora per input"])
def test_dora_gives_every_channel_its_magnitude(family: str, shape: torch.Size) -> None:
    leaves, weight, adapter = random_case(family, shape)
    changed = weight + delta(adapter, weight)
    axis = 0 if family == "dora" else 1
    norms = changed.transpose(0, axis).flatten(1).norm(dim=1)
    assert close(norms, leaves["dora_scale"].flatten())
    plain = adapter_of({k: v for k, v in leaves.items() if k != "dora_scale"}, shape)
    merged = (weight + delta(plain, weight)).transpose(0, axis).flatten(1)
    cosine = torch.cosine_similarity(merged, changed.transpose(0, axis).flatten(1))
    assert close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ia3_scales_channels(shape: torch.Size) -> None:
    leaves, weight, adapter = random_case("ia3 output", shape)
    for channel, factor in enumerate(leaves["weight"].flatten()):
        assert close(delta(adapter, weight)[channel], weight[channel] * factor)
    leaves, weight, adapter = random_case("ia3 input", shape)
    for channel, factor in enumerate(leaves["weight"].flatten()):
        assert close(delta(adapter, weight)[:, channel], weight[:, channel] * factor)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_glora_multiplies_the_weight_and_adds(shape: torch.Size) -> None:
    leaves, weight, adapter = random_case("glora", shape)
    a1, a2, b1, b2 = (leaves[f"{n}.weight"].flatten(1).double() for n in ("a1", "a2", "b1", "b2"))
    through = (weight.flatten(2).movedim(1, -1) if weight.ndim > 2 else weight) @ a1 @ a2
    if weight.ndim > 2:
        through = through.movedim(-1, 1).reshape(shape)
    assert close(delta(adapter, weight), (through + (b1 @ b2).reshape(shape)) * 2 / RANK)


def test_glora_of_the_first_version_has_its_factors_the_other_way_round() -> None:
    shape = SHAPES[0]
    new, weight, adapter = random_case("glora", shape)
    old = {
        "a1.weight": new["a2.weight"],
        "a2.weight": new["a1.weight"],
        "b1.weight": new["b2.weight"],
        "b2.weight": new["b1.weight"],
        "alpha": new["alpha"],
    }
    assert close(delta(adapter_of(old, shape), weight), delta(adapter, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_changes_are_added_as_they_are(shape: torch.Size) -> None:
    leaves, weight, adapter = random_case("full", shape)
    assert torch.equal(delta(adapter, weight), leaves["diff"].double())
    assert torch.equal(adapter.bias_delta(None), leaves["diff_b"].double())  # type: ignore[arg-type]


def test_norms_change_weight_and_bias() -> None:
    shape = torch.Size([16])
    leaves = norm(shape, draw(1))
    adapter = adapter_of(leaves, shape)
    assert torch.equal(delta(adapter, torch.ones(16).double()), leaves["w_norm"].double())
    assert torch.equal(adapter.bias_delta(None), leaves["b_norm"].double())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["oft", "oft rescaled", "boft"])
def test_rotations_of_outputs_keep_the_angles_between_inputs(
    family: str, shape: torch.Size
) -> None:
    leaves, weight, adapter = random_case(family, shape)
    changed = (weight + delta(adapter, weight)).flatten(1)
    if "rescale" in leaves:
        changed = changed / leaves["rescale"].double().reshape(-1, 1)
    before = weight.flatten(1)
    assert close(changed.T @ changed, before.T @ before)
    assert not torch.allclose(changed, before, atol=1e-3)


def test_a_rotation_is_cayleys_map_of_each_block() -> None:
    shape = torch.Size((8, 4))
    leaves, weight, _ = random_case("oft", shape)
    blocks = leaves["oft_blocks"].double()
    q = torch.block_diag(*(blocks - blocks.mT))
    eye = torch.eye(8, dtype=torch.float64)
    turn = (eye + q) @ torch.linalg.inv(eye - q)
    for alpha in (0.0, 0.01):
        if limit := alpha * 8:
            q = q * limit / (q.norm() + 1e-8)
            turn = (eye + q) @ torch.linalg.inv(eye - q)
        adapter = adapter_of({**leaves, "alpha": torch.tensor(alpha)}, shape)
        assert close(weight + delta(adapter, weight), turn.T @ weight)
    finished = torch.stack([turn[i : i + 2, i : i + 2] for i in range(0, 8, 2)])
    old = adapter_of({"oft_diag": finished}, shape)
    assert close(weight + delta(old, weight), turn.T @ weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_without_an_alpha_the_scale_is_one(family: str, shape: torch.Size) -> None:
    leaves, weight, adapter = random_case(family, shape)
    bare = {k: v for k, v in leaves.items() if k != "alpha"}
    unscaled = adapter_of(bare, shape)
    if family.startswith(("lora", "loha", "glora")) or family in ("lokr", "lokr both"):
        factor = float(leaves["alpha"]) / RANK
        assert close(delta(adapter, weight), delta(unscaled, weight) * factor)
    ranked = adapter_of(bare, shape, Settings(alpha=RANK))
    if family not in ("oft", "oft rescaled", "boft"):
        assert close(delta(ranked, weight), delta(unscaled, weight))


def test_settings_scale_where_tensors_do_not() -> None:
    shape = SHAPES[0]
    leaves, weight, _ = random_case("lora", shape)
    bare = {k: v for k, v in leaves.items() if k != "alpha"}
    plain = delta(adapter_of(bare, shape), weight)
    by_alpha = Settings.from_metadata({"lora_alpha": 2, "r": 4})
    assert close(delta(adapter_of(bare, shape, by_alpha), weight), plain / 2)
    by_root = Settings.from_metadata({"lora_alpha": 2, "use_rslora": True})
    assert close(delta(adapter_of(bare, shape, by_root), weight), plain)
    by_layer = Settings.from_metadata({"lora_alpha": 2, "alpha_pattern": {"layer": 8}})
    assert close(delta(adapter_of(bare, shape, by_layer), weight), plain * 2)
    assert by_layer.alpha_of("a.layer") == 8
    assert by_layer.alpha_of("player") == 2
    nonsense = Settings.from_metadata({"lora_alpha": "much", "alpha_pattern": [1]})
    assert nonsense == Settings()


def test_a_scalar_multiplies() -> None:
    shape = SHAPES[0]
    leaves, weight, adapter = random_case("lora", shape)
    scaled = adapter_of({**leaves, "scalar": torch.tensor(0.5)}, shape)
    assert close(delta(scaled, weight), delta(adapter, weight) / 2)


def test_biases_of_lora_reach_the_output() -> None:
    shape = torch.Size((6, 5))
    randn = draw(3)
    leaves = FAMILIES["lora"](shape, randn)
    biases = {"lora_down.bias": randn(RANK), "lora_up.bias": randn(6)}
    adapter = adapter_of({**leaves, **biases}, shape)
    through = leaves["lora_up.weight"] @ biases["lora_down.bias"] + biases["lora_up.bias"]
    bias = adapter.bias_delta(None)
    assert bias is not None
    assert torch.allclose(bias.float(), through * 2 / RANK, atol=1e-6)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_tensors_that_do_not_fit_the_layer_are_refused(family: str) -> None:
    shape = torch.Size((16, 24))
    leaves = FAMILIES[family](shape, draw(1))
    for wrong in (torch.Size((16, 25)), torch.Size((17, 24)), torch.Size((8, 24, 3, 3))):
        if "output" in family or "oft" in family:
            wrong = torch.Size((18, *wrong[1:]))  # the inputs do not matter to these
        if "input" in family and "ia3" in family:
            wrong = torch.Size((wrong[0], 26))
        with pytest.raises(AdapterError):
            adapter_of(leaves, wrong)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_missing_tensor_is_named(family: str) -> None:
    shape = torch.Size((16, 24))
    leaves = FAMILIES[family](shape, draw(1))
    needed = [n for n in leaves if n not in ("alpha", "rescale", "dora_scale", "diff", "diff_b")]
    for name in needed if len(needed) > 1 else ():
        rest = {k: v for k, v in leaves.items() if k != name}
        if name == "on_input":  # then the other is just a network's weight
            continue
        with pytest.raises(AdapterError, match=r"missing|no known kind"):
            adapter_of(rest, shape)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (
            {"lora_up.weight": torch.ones(16, 3), "lora_down.weight": torch.ones(4, 24)},
            "rank",
        ),
        ({"lora_up.weight": torch.ones(16, 0), "lora_down.weight": torch.ones(0, 24)}, "shape"),
        ({"lora_up.weight": torch.ones(16), "lora_down.weight": torch.ones(4, 24)}, "shape"),
        ({"lora_up.weight": torch.tensor(1.0), "lora_down.weight": torch.tensor(1.0)}, "shape"),
        ({"alpha": torch.tensor(1.0)}, "no known kind"),
        ({"alpha": torch.tensor([1.0, 2.0])}, "no known kind"),
        ({"diff": torch.ones(16, 24), "w_norm": torch.ones(16)}, "2 kinds"),
        ({"diff": torch.ones(16, 24), "dora_scale": torch.ones(16)}, "do not go with"),
        ({"diff": torch.ones(16, 24), "rescale": torch.ones(16)}, "left over"),
        ({"diff": torch.full((16, 24), torch.nan)}, "NaN"),
        ({"oft_blocks": torch.ones(4, 4, 3)}, "do not fit"),
        ({"oft_blocks": torch.ones(4)}, "do not fit"),
        ({"lokr_w1": torch.ones(4), "lokr_w2": torch.ones(4, 6)}, "shape"),
        ({"lokr_w1": torch.ones(4, 4)}, "lokr_w2 is missing"),
        (
            {"lora_up.weight": torch.ones(16, 4), "lora_down.weight": torch.ones(4, 24)}
            | {"alpha": torch.tensor(0.0)},
            "alpha is 0",
        ),
        (
            {"lora_up.weight": torch.ones(16, 4), "lora_down.weight": torch.ones(4, 24)}
            | {"alpha": torch.ones(3)},
            "not one number",
        ),
    ],
)
def test_what_is_wrong_with_a_layer_is_said(leaves: Leaves, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        adapter_of(leaves, torch.Size((16, 24)))


def test_a_norm_takes_no_lora() -> None:
    leaves = FAMILIES["lora"](torch.Size((16, 1)), draw(1))
    with pytest.raises(AdapterError, match="norm"):
        adapter_of(leaves, torch.Size((16,)))
