"""What happens to adapters in memory, and the proof that the base is unharmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fitune.adapters import in_memory
from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.base_snapshot import copy_layers, digests
from fitune.adapters.combine import KINDS, combine
from fitune.adapters.inject import attach, lora_config
from fitune.errors import ModelError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import NO_QUANTIZATION, QuantizationConfig
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

# Name → type of the base, its quantization, largest logit difference of the merged model and of an unmerge by
# arithmetic. Logits of the tiny model are about 1; measured here, rounded up.
KINDS_OF_BASE: dict[str, tuple[torch.dtype, QuantizationConfig, float, float]] = {
    "fp32": (torch.float32, NO_QUANTIZATION, 1e-5, 1e-6),
    "bf16": (torch.bfloat16, NO_QUANTIZATION, 0.05, 0.02),
    "int8": (torch.bfloat16, QuantizationConfig("int8"), 0.1, 0.1),
    "nf4": (torch.bfloat16, QuantizationConfig("nf4"), 1.0, 0.5),
}
IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)


def open_base(folder: Path, kind: str = "fp32") -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    dtype, quantization, *_ = KINDS_OF_BASE[kind]
    rest = resolve_template(tokenizer), detect("cpu"), Precision(dtype, "test")
    return load_base(source, tokenizer, *rest, quantization=quantization)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def write(folder: Path, out: Path, seed: int, **options: Any) -> Path:
    """An adapter that changes something: random A and B (and whatever else is trained, moved a little)."""
    base = open_base(folder)
    torch.manual_seed(seed)
    model = attach(base.model, lora_config(base.model, **{"rank": 4, "alpha": 8, **options}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    save_adapter(model, base.tokenizer, base.template, out, base_facts(base))
    return out


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def make(seed: int = 1, **options: Any) -> Path:
        key = f"{seed} {options}"
        if key not in made:
            made[key] = write(folder, tmp_path_factory.mktemp("adapters") / "a", seed, **options)
        return made[key]

    return make


def both(folder: Path, saved: Callable[..., Path], kind: str = "fp32", **second: Any) -> PeftModel:
    """Two adapters in memory, "default" answers."""
    model = load_adapter(open_base(folder, kind).model, saved(1))
    in_memory.add(model, saved(2, **second), "second")
    return model


# ---- merge, unmerge, unload


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", KINDS_OF_BASE)
def test_merge_and_unmerge(folder: Path, saved: Callable[..., Path], kind: str, keep: bool):
    base = open_base(folder, kind).model
    bare, before = logits(base), digests(base)
    model = load_adapter(base, saved())
    adapted = logits(model)
    reference = copy_layers(model)
    merge_error, unmerge_error = KINDS_OF_BASE[kind][2:]
    report = in_memory.merge(model, keep=keep)
    assert in_memory.merged(model) == ("default",) and report.layers == 14 and (report.kept_bytes > 0) == keep
    assert ("rounding the sum to their few bits" in str(report)) == (kind in ("int8", "nf4"))
    assert (logits(model) - adapted).abs().max() <= merge_error
    restored = in_memory.unmerge(model, reference)
    assert not in_memory.merged(model)
    if keep:
        assert restored.exact and "bit for bit" in str(restored)
        assert digests(model) == before
        torch.testing.assert_close(logits(model), adapted, atol=0, rtol=0)
    else:
        assert not restored.exact and restored.bits is not None
        assert restored.bits > {"fp32": 20, "bf16": 6, "int8": 4, "nf4": 0.5}[kind]
        assert (logits(model) - adapted).abs().max() <= unmerge_error
    in_memory.use(model, in_memory.BASE)
    assert (logits(model) - bare).abs().max() <= (0 if keep else unmerge_error)


@pytest.mark.parametrize("option", [{}, {"train_norms": True}, {"bias": "all"}, {"dora": True}])
@pytest.mark.parametrize("kind", KINDS_OF_BASE)
@pytest.mark.parametrize("merges", [True, False])
def test_unload_is_exact(folder: Path, saved: Callable[..., Path], kind: str, option: dict[str, Any], merges: bool):
    """Also from a merged model, and with biases and norms that were trained in full."""
    base = open_base(folder, kind).model
    if kind == "int8" and option.get("dora"):
        with pytest.raises(ModelError, match="DoRA over an int8 base does not work on a CPU"):
            load_adapter(base, saved(**option))
        return
    bare, before = logits(base), digests(base)
    model = load_adapter(base, saved(**option))
    assert (logits(model) - bare).abs().max() > 0.01
    if merges:
        in_memory.merge(model)
    again, different = in_memory.unload(model, before)
    assert different == [] and not isinstance(again, PeftModel)
    torch.testing.assert_close(logits(again), bare, atol=0, rtol=0)


# ---- several in memory


def test_use_and_delete(folder: Path, saved: Callable[..., Path]):
    base = open_base(folder).model
    bare = logits(base)
    alone = [logits(load_adapter(open_base(folder).model, saved(seed))) for seed in (1, 2)]
    model = load_adapter(base, saved(1))
    in_memory.add(model, saved(2), "second")
    assert in_memory.names(model) == ("default", "second") and in_memory.active(model) == ("default",)
    for name, wanted in (("second", alone[1]), ("base", bare), ("default", alone[0]), ("second", alone[1])):
        in_memory.use(model, name)
        torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    assert not any(weight.requires_grad for weight in model.parameters())
    # The one that answers is deleted: the base answers, not whichever comes next.
    assert in_memory.delete(model, "second") == "base"
    torch.testing.assert_close(logits(model), bare, atol=0, rtol=0)
    assert in_memory.names(model) == ("default",) and in_memory.active(model) == ()
    assert not [name for name, _ in model.named_parameters() if "second" in name]
    in_memory.use(model, "default")
    torch.testing.assert_close(logits(model), alone[0], atol=0, rtol=0)


def test_delete_of_another_leaves_the_active_one(folder: Path, saved: Callable[..., Path]):
    model = both(folder, saved)
    wanted = logits(model)
    assert in_memory.delete(model, "second") == "default"
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("option", [{}, {"train_norms": True}, {"dora": True}])
def test_rename(folder: Path, saved: Callable[..., Path], tmp_path: Path, option: dict[str, Any]):
    model = load_adapter(open_base(folder).model, saved(**option))
    wanted = logits(model)
    in_memory.rename(model, "default", "pig")
    assert in_memory.names(model) == in_memory.active(model) == ("pig",)
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    in_memory.merge(model)
    in_memory.unmerge(model)
    in_memory.use(model, "base")
    in_memory.use(model, "pig")
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    base = open_base(folder)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base), name="pig")
    assert not (tmp_path / "a" / "pig").exists()
    torch.testing.assert_close(logits(load_adapter(base.model, tmp_path / "a")), wanted, atol=0, rtol=0)


def test_refusals(folder: Path, saved: Callable[..., Path]):
    model = both(folder, saved)
    for attempt, reason in [
        (lambda: in_memory.use(model, "secnd"), r'no adapter "secnd" \(did you mean "second"\?\)'),
        (lambda: in_memory.add(model, saved(2), "second"), 'already an adapter "second"'),
        (lambda: in_memory.rename(model, "second", "default"), "taken"),
        (lambda: in_memory.unmerge(model), "no adapter is merged"),
    ]:
        with pytest.raises(ModelError, match=reason):
            attempt()
    in_memory.merge(model)
    for attempt in (
        lambda: in_memory.use(model, "second"),
        lambda: in_memory.merge(model),
        lambda: in_memory.delete(model, "default"),
        lambda: in_memory.rename(model, "default", "x"),
        lambda: in_memory.add(model, saved(2), "third"),
        lambda: combine(model, [("default", 1), ("second", 1)], "third"),
    ):
        with pytest.raises(ModelError, match="merged"):
            attempt()
    in_memory.unmerge(model)
    in_memory.delete(model, "second")
    with pytest.raises(ModelError, match="only adapter in memory"):
        in_memory.delete(model, "default")
    with pytest.raises(ModelError, match="nothing to merge"):
        in_memory.use(model, "base")
        in_memory.merge(model)


# ---- combine


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_one_and_zero_give_the_first(folder: Path, saved: Callable[..., Path], kind: str, rslora: bool):
    """With every value kept; svd decomposes and multiplies again, so up to fp32's rounding."""
    model = load_adapter(open_base(folder).model, saved(1, rslora=rslora))
    in_memory.add(model, saved(2), "second")
    first = logits(model)
    density = 1.0 if any(word in kind for word in ("ties", "dare", "magnitude")) else None
    report = combine(model, [("default", 1.0), ("second", 0.0)], "new", kind, density=density)
    assert report.rank == 4 and in_memory.active(model) == ("default",)
    in_memory.use(model, "new")
    torch.testing.assert_close(logits(model), first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_makes_an_adapter_that_answers(folder: Path, saved: Callable[..., Path], kind: str):
    model = both(folder, saved)
    torch.manual_seed(0)
    combine(model, [("default", 0.6), ("second", 0.4)], "new", kind)
    both_sides = [logits(model)]
    for name in ("second", "new"):
        in_memory.use(model, name)
        both_sides.append(logits(model))
    assert torch.isfinite(both_sides[2]).all()
    assert all((both_sides[2] - side).abs().max() > 0.01 for side in both_sides[:2])


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4"])
def test_a_sum_of_different_ranks(folder: Path, saved: Callable[..., Path], base: str, kind: str):
    """cat is exact, svd of the whole rank too: their ΔW is the weighed sum of the parts' (fp32 adapters)."""
    model = both(folder, saved, base, rank=6, alpha=6)
    combine(model, [("default", 0.7), ("second", -0.4)], "new", kind, rank=10 if kind == "svd" else None)
    layer: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    wanted = 0.7 * layer.get_delta_weight("default") - 0.4 * layer.get_delta_weight("second")
    torch.testing.assert_close(layer.get_delta_weight("new"), wanted, atol=1e-6, rtol=0)
    assert layer.lora_A["new"].weight.dtype == torch.float32


def test_ranks_that_differ_are_explained(folder: Path, saved: Callable[..., Path]):
    model = both(folder, saved, rank=6, alpha=6)
    parts = [("default", 1.0), ("second", 1.0)]
    with pytest.raises(ModelError, match=r"ranks must be equal, and default has 4, second has 6; use cat or svd"):
        combine(model, parts, "new", "linear")
    with pytest.raises(ModelError, match="use ties_svd"):
        combine(model, parts, "new", "ties")
    for options, reason in [
        ({"kind": "tie"}, 'did you mean "ties"'),
        ({"kind": "cat", "rank": 3}, "--rank goes with svd"),
        ({"kind": "cat", "density": 0.5}, "--density goes with"),
        ({"kind": "ties_svd", "density": 1.5}, "density is 1.5"),
    ]:
        with pytest.raises(ModelError, match=reason):
            combine(model, parts, "new", **options)
    with pytest.raises(ModelError, match="every weight is 0"):
        combine(model, [("default", 0.0), ("second", 0.0)], "new")
    with pytest.raises(ModelError, match="two different adapters"):
        combine(model, [("default", 1.0), ("default", 1.0)], "new")
    assert in_memory.names(model) == ("default", "second")


def test_norms_of_one_part_are_weighed_and_of_two_refused(folder: Path, saved: Callable[..., Path]):
    model = both(folder, saved, train_norms=True)
    in_memory.use(model, "second")
    second = logits(model)
    combine(model, [("default", 0.0), ("second", 1.0)], "new")
    in_memory.use(model, "new")
    torch.testing.assert_close(logits(model), second, atol=1e-5, rtol=0)
    model = load_adapter(open_base(folder).model, saved(1, train_norms=True))
    in_memory.add(model, saved(2, train_norms=True), "second")
    with pytest.raises(ModelError, match="both train modules in full"):
        combine(model, [("default", 1.0), ("second", 1.0)], "new")
    model = load_adapter(open_base(folder).model, saved(1, dora=True))
    in_memory.add(model, saved(2), "second")
    with pytest.raises(ModelError, match="DoRA"):
        combine(model, [("default", 1.0), ("second", 1.0)], "new")


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_a_combination_of_more_directions_than_a_layer_has_is_opened_again(
    folder: Path, saved: Callable[..., Path], tmp_path: Path, kind: str
):
    """k_proj has 32 outputs, so a decomposition of its update ends there."""
    model = both(folder, saved, rank=36)
    combine(model, [("default", 0.5), ("second", 0.5)], "new", kind, rank=40 if kind == "svd" else None)
    layer: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.k_proj")
    assert layer.lora_A["new"].weight.shape == (40, 64) and layer.lora_B["new"].weight.shape == (32, 40)
    in_memory.use(model, "new")
    base = open_base(folder)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "new", base_facts(base), name="new")
    torch.testing.assert_close(logits(load_adapter(base.model, tmp_path / "new")), logits(model), atol=0, rtol=0)


def test_a_combination_is_saved_and_opened(folder: Path, saved: Callable[..., Path], tmp_path: Path):
    model = both(folder, saved, rank=6)
    combine(model, [("default", 0.5), ("second", 0.5)], "new")
    in_memory.use(model, "new")
    wanted = logits(model)
    base = open_base(folder)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "new", base_facts(base), name="new")
    torch.testing.assert_close(logits(load_adapter(base.model, tmp_path / "new")), wanted, atol=0, rtol=0)
    plain = PeftModel.from_pretrained(open_base(folder).model, tmp_path / "new")
    torch.testing.assert_close(logits(plain), wanted, atol=0, rtol=0)
