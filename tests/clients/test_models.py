"""Models that people have, with random weights: one call of `convert` each, then training, saving and loading."""

import copy

import pytest
import torch
from torch import nn

import hanops
from hanops.models.layers import GroupedLinear

from .steps import documented, learns, raw_memory_is_nan, same

TIMM = {
    "mixer_s16_224": {"where": "blocks.*.fc?", "sandwich": 30},
    "vit_tiny_patch16_224": {"where": "blocks.*.attn.proj"},
    "mobilevit_xxs": {"where": "*.attn.proj"},
    "resnet50": {"where": "fc", "sandwich": 30},
}


def says_what_helps(model):
    """`convert` alone says in a few lines which Linears there are, and what to pass."""
    with pytest.raises(ValueError, match='\nwhere="') as raised:
        hanops.convert(model)
    message = str(raised.value)
    assert len(message) <= 900
    assert len(message.splitlines()) <= 9
    assert "sandwich=30" in message


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.client(
    "timm", "mixer_s16, vit_tiny, mobilevit_xxs, resnet50 converted by one call each: train, save, load"
)
def test_timm(name, known, tmp_path):
    import timm

    size = {"img_size": 32} if name.startswith(("mixer", "vit")) else {}
    model = timm.create_model(name, num_classes=5, **size)
    says_what_helps(model)
    report = hanops.convert(model, **TIMM[name], verbose=False)
    assert any(row.converted for row in report.rows)
    x, labels = torch.randn(4, 3, 64 if not size else 32, 64 if not size else 32), torch.arange(4)
    fresh = copy.deepcopy(model)
    losses = learns(model, lambda: nn.functional.cross_entropy(model(x), labels), rate=1e-3)
    known(f"timm `{name}`", TIMM[name], report, losses)
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


def converting(build):
    """A class that converts itself, so that from_pretrained makes the same modules."""

    class Converted(type(build())):
        def __init__(self, config):
            super().__init__(config)
            self.report = hanops.convert(self, **TRANSFORMERS[build], verbose=False)

    return Converted


def stacks(model):
    return [module for module in model.modules() if isinstance(module, hanops.HanStack)]


@pytest.mark.parametrize("build", TRANSFORMERS)
@pytest.mark.client(
    "transformers", "BERT and Llama converted by one call each: train, save_pretrained, from_pretrained"
)
def test_transformers(build, known, tmp_path):
    says_what_helps(build())
    model = converting(build)(build().config)
    batch = text(model)
    losses = learns(model, lambda: model(**batch).loss)
    known(f"transformers {type(build()).__name__}, small", TRANSFORMERS[build], model.report, losses)
    model.save_pretrained(tmp_path)
    with raw_memory_is_nan():
        other = converting(build).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("build", TRANSFORMERS)
@pytest.mark.client("transformers", "a dense checkpoint into a class that converts itself; trained Han layers stay")
def test_from_a_dense_checkpoint(build, tmp_path):
    dense = build()
    dense.save_pretrained(tmp_path)
    with raw_memory_is_nan():
        model = converting(build).from_pretrained(tmp_path)
    loaded = dict(dense.named_parameters())
    common = [name for name, _ in model.named_parameters() if name in loaded]
    assert len(common) > 10
    assert all(torch.equal(model.get_parameter(name), loaded[name]) for name in common)
    assert stacks(model)
    for stack in stacks(model):
        torch.testing.assert_close(stack.u.norm(dim=-1), torch.ones(stack.depth))
        assert stack.b is None or stack.b.abs().max() <= stack.features**-0.5
    batch = text(model)
    learns(model, lambda: model(**batch).loss)

    trained = [stack.u.clone() for stack in stacks(model)]
    model.init_weights()  # as any model does that holds this one
    assert all(torch.equal(stack.u, u) for stack, u in zip(stacks(model), trained, strict=True))


@pytest.mark.client("transformers", "a dense checkpoint into a class that adds a grouped HanNet; trained layers stay")
def test_groups_beside_a_dense_checkpoint(tmp_path):
    class WithNet(type(llama())):
        def __init__(self, config):
            super().__init__(config)
            self.net = hanops.models.HanNet(32, 8, 4, 2, dense_layers=(3,), groups=3)

    llama().save_pretrained(tmp_path / "dense")
    with raw_memory_is_nan():
        model = WithNet.from_pretrained(tmp_path / "dense")
    assert {type(m) for m in model.net.modules() if list(m.parameters(recurse=False))} == {
        hanops.HanStack,
        GroupedLinear,
    }
    for module in model.net.modules():
        if isinstance(module, GroupedLinear):
            bound = module.weight.shape[-1] ** -0.5
            assert all(0 < p.abs().max() <= bound for p in module.parameters())
    x = torch.randn(3, 5, 32)
    learns(model.net, lambda: model.net(x).square().sum())
    model.init_weights()
    model.save_pretrained(tmp_path / "own")
    with raw_memory_is_nan():
        other = WithNet.from_pretrained(tmp_path / "own")
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in model.named_parameters())


@pytest.mark.client("transformers", "the class of docs/clients.md")
def test_documented_class(tmp_path):
    from transformers import LlamaForCausalLM

    llama().save_pretrained(tmp_path)
    with raw_memory_is_nan():
        model = documented("HanLlama", hanops=hanops, LlamaForCausalLM=LlamaForCausalLM).from_pretrained(tmp_path)
    assert len(stacks(model)) == 2
    assert all(p.isfinite().all() for p in model.parameters())


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


@pytest.mark.client("torchvision", "ops.MLP and vgg11 convert alone: train, save, load; its compiled ops are not run")
@pytest.mark.parametrize("name", ["mlp", "vgg11"])
def test_torchvision(name, tmp_path):
    import torchvision

    if name == "mlp":
        model, x = torchvision.ops.MLP(12, [16, 16, 16, 5], dropout=0.1), torch.randn(8, 12)
    else:
        model, x = torchvision.models.vgg11(num_classes=5), torch.randn(4, 3, 32, 32)
        model.classifier[0] = nn.Linear(512 * 7 * 7, 64)
        model.classifier[3] = nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 5)
    report = hanops.convert(model, verbose=False)
    assert any(row.converted for row in report.rows)
    fresh, labels = copy.deepcopy(model), torch.arange(len(x)) % 5
    learns(model, lambda: nn.functional.cross_entropy(model(x), labels), rate=1e-3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    same(model, fresh, x)
