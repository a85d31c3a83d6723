"""A model handed on: merged, as a LoRA adapter of a given rank, as a delta that is put back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import adapters
import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.cli.main import app

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def changed(base: Path, folder: Path, change: object, seed: int = 0) -> Path:
    """A copy of the base with ``change(name, tensor, generator)`` in place of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(change(name, parameter, generator))  # type: ignore[operator]
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_written_whole(tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    made = adapters.adapter(tmp_path / "adapter", base)
    call("export", made, "--out", tmp_path / "whole", "--dtype", "bfloat16", "--max-shard-size", "20kB")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    assert merged.dtype == torch.bfloat16
    ours = open_checkpoint(made)
    state = merged.state_dict()
    for name, tensor in ours.tensors.items():
        exact = torch.from_numpy(np.array(ours.raw(name)).reshape(tensor.shape))
        assert torch.equal(state[name], exact.bfloat16()), name
    assert (tmp_path / "whole/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_update_of_low_rank_comes_back_through_peft(architecture: str, tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base", architecture)

    def change(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = [0.1 * torch.randn(n, 2, generator=generator) for n in tensor.shape]
        if "norm.weight" in name or name.endswith("layernorm.weight"):
            return tensor + noise[0][:, 0]
        linear = tensor.ndim == 2 and not any(word in name for word in ("embed", "wte", "wpe"))
        return tensor + noise[0] @ noise[1].T if linear else tensor

    model = changed(base, tmp_path / "model", change)
    text = call("export", model, "--base", base, "--format", "lora", "--rank", 2, "--out", tmp_path / "lora")
    assert "0.00% of the update's squared norm is lost" in text
    rows = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora")(rows).logits
        expected = AutoModelForCausalLM.from_pretrained(model)(rows).logits
    torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)
    ours, whole = open_checkpoint(tmp_path / "lora"), open_checkpoint(model)
    assert all(np.allclose(ours.raw(name), whole.raw(name), atol=1e-6) for name in whole.tensors)


def test_the_lost_share_is_that_of_the_singular_values_left_out(tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base")
    model = changed(base, tmp_path / "model", lambda n, t, g: t + 0.1 * torch.randn(t.shape, generator=g))
    call("export", model, "--base", base, "--format", "lora", "--rank", 5, "--out", tmp_path / "lora")
    before, after = (open_checkpoint(p) for p in (base, model))
    total = lost = left_out = 0.0
    for name, tensor in before.tensors.items():
        change = (after.raw(name).astype(np.float64) - before.raw(name)).reshape(tensor.shape)
        total += np.square(change).sum()
        if len(tensor.shape) == 2 and "embed" not in name:
            lost += np.square(np.linalg.svd(change)[1][5:]).sum()
        elif not name.endswith("norm.weight"):
            left_out += np.square(change).sum()
    report = json.loads((tmp_path / "lora/export.json").read_text())
    assert report["lost_by_rank"] == pytest.approx(lost, rel=1e-5)
    assert report["left_out"] == pytest.approx(left_out, rel=1e-9)
    assert report["lost_share"] == pytest.approx((lost + left_out) / total, rel=1e-5)
    assert "model.embed_tokens.weight" in report["names_left_out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_delta_is_put_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    stored = {n: t.to(dtype) for n, t in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})

    def change(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        places = torch.rand(tensor.shape, generator=generator)
        if "up_proj" in name:  # dense
            return tensor + 1
        return torch.where(places < 0.02, -tensor, tensor) if "layers.0" in name else tensor

    model = changed(base, tmp_path / "model", change)
    tiny.tokenizer().save_pretrained(model)
    text = call("export", model, "--base", base, "--format", "delta", "--out", tmp_path / "delta")
    before, after = open_checkpoint(base), open_checkpoint(model)
    differ = sum(int((before_values(before, n) != after.raw(n)).sum()) for n in after.tensors)
    assert f"{differ} of {after.total} elements differ" in text
    call("apply", tmp_path / "delta", "--base", base, "--out", tmp_path / "back")
    assert fingerprint(open_checkpoint(tmp_path / "back")) == fingerprint(after)
    back = load_file(tmp_path / "back/model.safetensors")
    assert all(
        torch.equal(t.view(torch.int32), back[n].view(torch.int32))
        for n, t in load_file(model / "model.safetensors").items()
    )
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((model / "config.json").read_text())
    assert (tmp_path / "delta/delta.safetensors").stat().st_size < (model / "model.safetensors").stat().st_size / 2


def before_values(base: object, name: str) -> np.ndarray:
    """The base's elements as float32."""
    tensor = base.tensors[name]  # type: ignore[attr-defined]
    raw = base.raw(name)  # type: ignore[attr-defined]
    return (raw.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else raw


def test_a_delta_of_another_base_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    base, other = tiny.base(tmp_path / "base"), tiny.base(tmp_path / "other", seed=3)
    model = changed(
        base, tmp_path / "model", lambda n, t, g: torch.where(torch.rand(t.shape, generator=g) < 0.01, -t, t)
    )
    call("export", model, "--base", base, "--format", "delta", "--out", tmp_path / "delta")
    runner = CliRunner()
    result = runner.invoke(
        app, ["apply", str(tmp_path / "delta"), "--base", str(other), "--out", str(tmp_path / "back")]
    )
    assert "was made from another base" in str(result.exception)
    file = tmp_path / "delta/delta.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1  # the last value
    file.write_bytes(whole)
    result = runner.invoke(
        app, ["apply", str(tmp_path / "delta"), "--base", str(base), "--out", str(tmp_path / "back")]
    )
    assert "gives other weights than those that it was made from" in str(result.exception)
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "lora"], "add --base"),
        (["--format", "lore"], "did you mean"),
        (["--format", "delta", "--base", "BASE", "--dtype", "float16"], "--dtype: is of a whole checkpoint"),
        (["--format", "lora", "--base", "BASE", "--rank", "0"], "rank: 0 is below 1"),
    ],
)
def test_what_cannot_be_exported_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    given = [str(base) if a == "BASE" else a for a in arguments]
    result = CliRunner().invoke(app, ["export", str(base), "--out", str(tmp_path / "out"), *given])
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
