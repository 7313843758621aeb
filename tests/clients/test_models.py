"""Models that people have, with random weights: one call of `convert` each, then training, saving and loading."""

import copy

import pytest
import torch
from torch import nn

import hanops

from .steps import learns, same

TIMM = {
    "mixer_s16_224": {"where": "blocks.*.fc?", "sandwich": 30},
    "vit_tiny_patch16_224": {"where": "blocks.*.attn.proj"},
    "mobilevit_xxs": {"where": "*.attn.proj"},
    "resnet50": {"where": "fc", "sandwich": 30},
}


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.client(
    "timm", "mixer_s16, vit_tiny, mobilevit_xxs, resnet50 converted by one call each: train, save, load"
)
def test_timm(name, tmp_path):
    import timm

    size = {"img_size": 32} if name.startswith(("mixer", "vit")) else {}
    model = timm.create_model(name, num_classes=5, **size)
    with pytest.raises(ValueError, match="where=") as raised:
        hanops.convert(model)
    assert len(str(raised.value).splitlines()) <= 10
    report = hanops.convert(model, **TIMM[name], verbose=False)
    assert any(row.converted for row in report.rows)
    x, labels = torch.randn(4, 3, 64 if not size else 32, 64 if not size else 32), torch.arange(4)
    fresh = copy.deepcopy(model)
    learns(model, lambda: nn.functional.cross_entropy(model(x), labels), rate=1e-3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    same(model, fresh, x)


@pytest.mark.client("timm", "init functions, parameter groups and optimizers")
def test_timm_functions(make):
    from timm.models import named_apply
    from timm.models.vision_transformer import init_weights_vit_timm
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    model = make()
    named_apply(init_weights_vit_timm, model)
    u = next(p for name, p in model.named_parameters() if name.endswith("u"))
    assert u.isfinite().all()
    groups = hanops.param_groups_weight_decay(model, 0.1)
    assert create_optimizer_v2(groups, opt="adamw", lr=1e-3).param_groups[0]["weight_decay"] == 0
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    ours, theirs = (
        f(plain, 0.1, no_weight_decay_list=["0.*"])
        for f in (hanops.param_groups_weight_decay, param_groups_weight_decay)
    )
    assert [(g["weight_decay"], [id(p) for p in g["params"]]) for g in ours] == [
        (g["weight_decay"], [id(p) for p in g["params"]]) for g in theirs
    ]


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=2
    )
    return BertForSequenceClassification(config)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


TRANSFORMERS = {bert: {"where": "*.output.dense", "sandwich": 30}, llama: {"where": "*.o_proj"}}


def text(model):
    tokens = torch.randint(0, 50, (4, 10))
    labels = torch.arange(4) % 2 if hasattr(model, "classifier") else tokens
    return {"input_ids": tokens, "labels": labels}


@pytest.mark.parametrize("build", TRANSFORMERS)
@pytest.mark.client(
    "transformers", "BERT and Llama converted by one call each: train, save_pretrained, from_pretrained"
)
def test_transformers(build, tmp_path):
    with pytest.raises(ValueError, match="where=") as raised:
        hanops.convert(build())
    assert len(str(raised.value).splitlines()) <= 10

    class Converted(type(build())):
        """A class that converts itself, so that from_pretrained makes the same modules; it also starts Han layers."""

        def __init__(self, config):
            super().__init__(config)
            hanops.convert(self, **TRANSFORMERS[build], verbose=False)

        def initialize_weights(self):
            super().initialize_weights()
            for module in self.modules():
                if isinstance(module, hanops.HanStack) and not getattr(module.u, "_is_hf_initialized", False):
                    module.reset_parameters()

    model = Converted(build().config)
    batch = text(model)
    learns(model, lambda: model(**batch).loss)
    model.save_pretrained(tmp_path / "han")
    other = Converted.from_pretrained(tmp_path / "han")
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)

    dense = build()
    dense.save_pretrained(tmp_path / "dense")
    started = Converted.from_pretrained(tmp_path / "dense")
    stacks = [module for module in started.modules() if isinstance(module, hanops.HanStack)]
    for stack in stacks:
        torch.testing.assert_close(stack.u.norm(dim=-1), torch.ones(stack.depth))
        assert stack.b is None or stack.b.abs().max() <= stack.features**-0.5
    learns(started, lambda: started(**batch).loss)


@pytest.mark.client("peft", "LoRA beside Han layers: convert leaves its layers, trains, merges, saves and loads")
def test_peft(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def base():
        torch.manual_seed(0)
        model = llama()
        hanops.convert(model, where="*.o_proj", verbose=False)
        return model

    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["o_proj"]))
    report = hanops.convert(model, where="*proj*", sandwich=8, verbose=False)
    left = {row.name: row.now for row in report.rows if ".q_proj" in row.name}
    assert all(why.startswith(("part of a peft", "of class peft")) for why in left.values())
    assert len(left) >= 4
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["o_proj"]))
    batch = text(model)
    batch["labels"] = batch["input_ids"]
    learns(model, lambda: model(**batch).loss)
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(base(), tmp_path)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        torch.testing.assert_close(other.eval()(**batch).logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(model.merge_and_unload()(**batch).logits, expected, rtol=1e-4, atol=1e-5)
