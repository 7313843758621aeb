"""Packages that run the loop of training: a HanStack trains in each, and is saved and loaded."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import hanops

from .steps import documented, learns, loss_of, same, saved_and_loaded


@pytest.mark.client("lightning", "Trainer.fit with two accumulated batches, checkpoint loaded")
def test_lightning(make, data, tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(hanops.param_groups_weight_decay(self, 0.01), lr=1e-2)

    module = Module()
    before = loss_of(module.net, data)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, accumulate_grad_batches=2, **quiet
    )
    trainer.fit(module, DataLoader(TensorDataset(*data), 32))
    assert loss_of(module.net, data) < before
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    other = Module.load_from_checkpoint(tmp_path / "model.ckpt")
    same(module.net, other.net, data[0])


@pytest.mark.client("accelerate", "prepare, accumulate, clip, save_model and load_checkpoint_in_model")
def test_accelerate(make, data, tmp_path):
    from accelerate import Accelerator, load_checkpoint_in_model

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(*data), 32, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    before = loss_of(model, data)
    model.train()
    for _ in range(5):
        for x, labels in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(nn.functional.cross_entropy(prepared(x), labels))
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    assert loss_of(model, data) < before
    accelerator.save_model(prepared, tmp_path)
    other = make()
    load_checkpoint_in_model(other, tmp_path)
    same(model, other, data[0])


@pytest.mark.client("skorch", "NeuralNetClassifier: fit, score, save_params, grid search")
def test_skorch(make, data, tmp_path):
    from sklearn.model_selection import GridSearchCV
    from skorch import NeuralNetClassifier

    x, labels = (part.numpy() for part in data)
    options = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.Adam, "lr": 1e-2, "verbose": 0}
    net = NeuralNetClassifier(make, max_epochs=20, **options)
    net.fit(x, labels)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0]
    net.save_params(f_params=tmp_path / "net.pt")
    other = NeuralNetClassifier(make, **options).initialize()
    other.load_params(f_params=tmp_path / "net.pt")
    assert (other.predict_proba(x) == net.predict_proba(x)).all()
    search = GridSearchCV(NeuralNetClassifier(make, max_epochs=1, **options), {"lr": [1e-3, 1e-2]}, cv=2)
    assert search.fit(x, labels).best_score_ > 0


@pytest.mark.client("torchmetrics", "accuracy and its state while a model trains")
def test_torchmetrics(make, data, tmp_path):
    from torchmetrics.classification import MulticlassAccuracy

    model, metric = make(), MulticlassAccuracy(num_classes=2, average="micro")
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    with torch.no_grad():
        logits = model.eval()(data[0])
    for rows in range(0, 256, 64):
        metric.update(logits[rows : rows + 64], data[1][rows : rows + 64])
    assert metric.compute().item() == pytest.approx((logits.argmax(1) == data[1]).float().mean().item())
    saved_and_loaded(model, make, data[0], tmp_path)


@pytest.mark.client("safetensors", "save_model, load_model, save_file with views")
def test_safetensors(make, data, tmp_path):
    from safetensors.torch import load_model, save_model

    model, other = make(), make()
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    same(model, other, data[0])


class Model(nn.Module):
    """What Trainer takes: it returns its loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def training_arguments(folder, **options):
    from transformers import TrainingArguments

    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(folder, per_device_train_batch_size=32, **quiet, **options)


@pytest.mark.client("transformers", "Trainer with a model of its own, saved and loaded")
def test_trainer(make, data, tmp_path):
    from safetensors.torch import load_file
    from transformers import Trainer

    model = Model(make())
    before = loss_of(model.net, data)
    rows = [{"x": x, "labels": label} for x, label in zip(*data, strict=True)]
    optimizer = torch.optim.AdamW(hanops.param_groups_weight_decay(model, 0.01), lr=1e-2)
    arguments = training_arguments(tmp_path, num_train_epochs=5)
    trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    assert loss_of(model.net, data) < before
    trainer.save_model(tmp_path / "saved")
    other = Model(make())
    other.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    same(model.net, other.net, data[0])


@pytest.mark.client("transformers", "weight decay: Trainer's groups, and those of docs/clients.md without Han layers")
def test_trainer_weight_decay(make, tmp_path):
    from transformers import Trainer

    def decayed(trainer):
        groups = trainer.create_optimizer().param_groups
        ids = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
        return {name for name, p in model.named_parameters() if id(p) in ids}

    model = Model(make())
    dense = {f"net.{name}.weight" for name, module in model.net.named_children() if type(module) is nn.Linear}
    (name,) = (name for name, module in model.net.named_children() if isinstance(module, hanops.HanStack))
    parametrizations.weight_norm(model.net.get_submodule(name), "u")
    originals = {f"net.{name}.parametrizations.u.original{part}" for part in (0, 1)}
    arguments = training_arguments(tmp_path, weight_decay=0.1)
    assert decayed(Trainer(model, arguments)) == {*dense, *originals, f"net.{name}.b"}
    assert decayed(documented("HanTrainer", hanops=hanops, Trainer=Trainer)(model, arguments)) == dense
    optimizer = torch.optim.AdamW(hanops.param_groups_weight_decay(model, 0.1))
    assert decayed(Trainer(model, arguments, optimizers=(optimizer, None))) == dense
