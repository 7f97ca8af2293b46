"""Prompts, adapters and copies of weights: steps of given batches, and logits around them."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY
from drawn import arguments, cfg_from
from harness import (
    BEFORE,
    Golden,
    agree,
    copied,
    drawn,
    gradients_of,
    images_of,
    shapes_of,
)
from torch.utils.data import DataLoader

import trainers.mmapp
import trainers.nlprompt
from clip import TOWERS, folded_weights, load_backbone
from clip.random_weights import random_tensor
from configs.recipes import recipe
from runs import ood
from trainers.base.prompted import local_logits, normalize

IGNORED = ("CURRICLUM_EPOCH", "BEGIN_RATE", "CURRICLUM_MODE")  # of budgets below 1


def check_prompts(golden: Golden):
    case = golden.case
    trainer = golden.build()
    learned = golden.learned(trainer.model.named_parameters())
    images = golden.images(trainer)
    batch = golden.batch(images)
    if "second_view_seed" in case:
        second = images_of(case["batch"], images.shape[-1], case["second_view_seed"])
        batch["img"] = [images, second]
        sentences = iter(case["sentence_of_step"])
        golden.patch.setattr("random.randint", lambda low, high: next(sentences))
        trainer.method.sentences = case["sentences"]
    golden.logits(trainer, images, "before", by_classes=True)
    if "input_grads" in golden.figures:
        check_input_gradients(golden, trainer, batch)
    golden.steps(trainer, [batch] * len(golden.figures["losses"]), learned)
    golden.logits(trainer, images, "after", by_classes=True)


def check_input_gradients(golden, trainer, batch):
    """Of the loss, with respect to the images and to the token embeddings."""
    expected = golden.figures["input_grads"]
    images = batch["img"].clone().requires_grad_()
    tokens = []

    def kept(module, inputs, output):
        tokens.append(output.requires_grad_())
        return output

    hook = trainer.model.frozen.token_embedding.register_forward_hook(kept)
    embedding = trainer.model.clip.token_embedding
    if embedding is not trainer.model.frozen.token_embedding:  # a private copy
        hook = getattr(embedding, "module", embedding).register_forward_hook(kept)
    loss = trainer.method.loss(trainer.model.output(images), batch["label"])[0]
    hook.remove()
    of_image, *of_tokens = torch.autograd.grad(loss, [images, *tokens], allow_unused=True)
    golden.same("image", of_image.norm(), expected, rel=1e-3)
    golden.same("image_first8", of_image.flatten()[:8], expected, abs=1e-4)
    # They read all tokens of all classes
    if trainer.model.towers is TOWERS["plain"] and len(of_tokens) == 1:
        golden.same("token_embedding", of_tokens[0].norm(), expected, rel=1e-3)
        first = of_tokens[0][0, 1, :8]
        near = 1e-3 * expected["token_embedding"]
        golden.same("token_embedding_first8", first, expected, abs=near)


def settings_of_copies(figures):
    """The method's settings, those of the optimiser, and the images of each class, by the names in
    the file.
    """
    cfg = dict(figures["case"]["cfg"])
    shots = cfg.pop("SHOTS", 1)
    epochs = cfg.pop("EPOCHS", 0)
    optimizer = {key: value for key, value in figures["optimizer"].items() if key != "momentum"}
    if "ENCODERS" in cfg:
        encoders = cfg.pop("ENCODERS")
        cfg["ENCODER"] = "both" if len(encoders) == 2 else encoders[0]
    if epochs:
        cfg["N_ITERS"] = 0
    return cfg, optimizer | {"max_epoch": epochs or 1}, shots


def check_copies(golden: Golden):
    figures = golden.figures
    if "template" in golden.case:
        dataset = DATASET_REGISTRY.get(golden.case.get("dataset", "EuroSAT"))
        golden.patch.setattr(dataset, "template", golden.case["template"])
    settings, optimizer, shots = settings_of_copies(figures)
    trainer = golden.build(settings, optimizer, by_recipe=False, train=shots)
    trainer.method.schedule_steps = "lrs" in figures
    saved = {name: own for own, name in (figures.get("checkpoint_names") or {}).items()}
    parameters = trainer.model.prompt_learner.named_parameters()
    learned = {saved.get(name, name): value for name, value in parameters}
    head = {name: learned.pop(name) for name in figures.get("trainable_head", {})}
    golden.same("trainable_head", lambda: shapes_of(head))
    golden.same("trainable", shapes_of(learned))
    if str(figures.get("start")).startswith("published +"):
        for name, value in learned.items():
            value.data += 4 * random_tensor(f"{name}.delta", tuple(value.shape)).to(value)
    golden.same("start_first4", lambda: {name: learned[name][0, :4] for name in learned})
    golden.same("start_last4", lambda: {name: learned[name][0, -4:] for name in learned})
    images = golden.images(trainer)
    batch = golden.batch(images)
    golden.logits(trainer, images, "before")
    golden.steps(trainer, [batch] * len(figures["losses"]), learned)
    others = set(trainer.model.parameters()) - set(learned.values())
    # So that the optimiser leaves them out
    assert all(value.grad is None for value in others)
    if head:
        golden.same("logits_stage1", trainer.model_inference(images))
        # The classifier starts from the tuned text features
        texts = trainer.model.text_features(torch.empty(0)).detach()
        batches = [batch] * len(figures["losses_head"])
        golden.steps(trainer, batches, head, "_head", dict.fromkeys(head, texts))
    golden.logits(trainer, images, "after")
    folded = load_backbone(trainer.cfg.MODEL.BACKBONE.NAME)
    folded.load_state_dict(folded_weights(trainer.model.clip))
    with torch.no_grad():
        agree(folded.encode_image(images), trainer.model.image_output(images).feature, abs=1e-5)


class Given(torch.utils.data.Dataset):
    """Given images and labels, as Dassl's datasets return them."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels
        self.data_source = [SimpleNamespace(label=label) for label in labels]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"img": self.images[index], "label": self.labels[index], "index": index}


def check_nlprompt(golden: Golden):
    figures = golden.figures
    case = golden.case
    settings = {key: value for key, value in case["cfg"].items() if key not in IGNORED}
    plans = []
    transport = trainers.nlprompt.transport
    least = trainers.nlprompt.least_cost(len(case["classnames"])) / trainers.nlprompt.LOWEST
    if settings["REG_E"] < least:
        settings["UNDERFLOW"] = "published"

    def noted(*arguments):
        plans.append(transport(*arguments))
        return plans[-1]

    def in_order(loader, images, **options):
        return DataLoader(images, loader.batch_size, drop_last=options["drop_last"])

    golden.patch.setattr(trainers.nlprompt, "transport", noted)
    golden.patch.setattr(trainers.nlprompt, "loader_like", in_order)
    trainer = golden.build(settings)
    learned = golden.learned(trainer.model.named_parameters())
    start = copied(learned)
    images = images_of(case["batch"], case["arch"]["image_resolution"])
    size = case["batch_size"]
    loader = DataLoader(Given(images, figures["labels"]), size, drop_last=len(images) >= size)
    first = images[: len(figures["logits_before"])].to(trainer.device)
    golden.same("logits_before", trainer.model_inference(first))
    losses = []
    steps = []
    wrong = figures.get("grad_norm_of_first_mae_step") or {"step": None}
    for epoch in figures["epochs"]:
        split = trainer.method.batches(loader)
        assert len(split) > 0
        agreeing = trainer.method.agreeing(loader)
        golden.same("clean", [index for index, agreed in enumerate(agreeing) if agreed], epoch)
        plan = plans.pop()
        golden.same("pseudo_labels", plan.argmax(dim=1), epoch)
        # Rounding of the logits is divided by REG_E
        near = 1e-6 / settings["REG_E"] * max(np.max(epoch["coupling_first4"]), 1e-12)
        golden.same("coupling_first4", plan[:4], epoch, abs=near)
        for batch in split:
            losses.append(float(trainer.forward_backward(batch)["loss"]))
            kind = "mae" if batch["wrong"] else "ce"
            steps.append({"loss": kind, "images": batch["index"].tolist()})
            for step, expected in ((0, figures["grad_norms"]), (wrong["step"], wrong)):
                if len(steps) - 1 == step:
                    norms = {name: expected[name] for name in learned}
                    agree(gradients_of(learned), norms, rel=1e-3)
    golden.same("steps", steps)
    golden.same("losses", losses)
    golden.end(learned, start)
    golden.same("logits_after", trainer.model_inference(first))


def check_mmapp(golden: Golden):
    case = golden.case
    dropout = case.get("dropout", {"p": 0})
    given = golden.sentences() if case["cfg"]["INPUT_PROMPTS"] == "cupl" else {}
    trainer = golden.build(case["cfg"] | {"ADAPTER_DROP": dropout["p"]}, options=given)
    trainer.method.sentences = case.get("sentences", {})
    sentences = iter(case["sentence_of_step"])
    shares = iter(case["draw_of_step"])

    def dropped(x, p):
        kept = torch.arange(x.shape[-1], device=x.device) % dropout["zero_every"] != 0
        return x * kept / (1 - p)

    draw = trainers.mmapp
    golden.patch.setattr(draw, "draw_sentences", lambda *_: torch.tensor(next(sentences)))
    golden.patch.setattr(draw, "draw_share", lambda: next(shares))
    golden.patch.setattr(draw, "token_dropout", dropped)
    learned = golden.learned(trainer.model.named_parameters())
    images = golden.images(trainer)
    golden.logits(trainer, images, "before")
    trainer.model.drawn = trainer.model.drawn + torch.tensor(case["sentence_of_step"][0])
    golden.same("logits_of_first_step", trainer.model_inference(images), abs=BEFORE)
    golden.steps(trainer, [golden.batch(images)] * len(golden.figures["losses"]), learned)
    golden.logits(trainer, images, "after")


def check_hicropl(golden: Golden):
    trainer = golden.build(options=golden.sentences())
    trainer.method.sentences = golden.case["sentences"]
    parameters = dict(trainer.model.named_parameters())
    learned = golden.learned(parameters)
    kept = copied({name: parameters[name] for name in parameters.keys() - learned.keys()})
    images = golden.images(trainer)
    golden.logits(trainer, images, "before")
    with torch.no_grad():
        frozen = trainer.model.towers.encode_image(trainer.model.frozen, images).feature
        logits = trainer.model.logits(normalize(frozen), trainer.model.class_features)
    golden.same("logits_zeroshot_sentences", logits)
    golden.steps(trainer, [golden.batch(images)] * len(golden.figures["losses"]), learned)
    assert all(torch.equal(parameters[name], value) for name, value in kept.items())
    golden.logits(trainer, images, "after")


def check_mapped_prompts(golden: Golden):
    """Published code stores them at each batch of a test, so that the next one has others."""
    trainer = golden.build(options=golden.sentences())
    learner = trainer.model.prompt_learner
    images = golden.images(trainer)
    learner.stored = True
    trainer.set_model_mode("eval")
    seen = {1: "before", 2: "before_second_batch", 22: "before_batch_22"}
    for batch in range(1, 23):
        learner.store()
        if batch == 1:
            for name, expected in golden.figures["mapped"].items():
                prompts = trainer.model.get_parameter(name)
                golden.same("norm", prompts.norm(), expected, rel=1e-5)
                golden.same("first4", prompts.flatten()[:4], expected, abs=1e-5)
        if batch in seen:
            golden.same(f"logits_{seen[batch]}", trainer.model_inference(images), abs=BEFORE)


def check_skip_tuning(golden: Golden):
    figures = golden.figures
    trainer = golden.build(by_recipe=False)
    method = trainer.method
    learner = trainer.model.prompt_learner
    names = {saved: name for name, saved in learner.copies.items()}
    assert names.keys() <= set(figures["checkpoint_names"])
    learned = {names[name]: value for name, value in learner.named_parameters()}
    golden.same("trainable", shapes_of(learned))
    images = golden.images(trainer)
    x = trainer.model.lower_image(images)
    golden.logits(trainer, images, "before")
    torch.manual_seed(golden.case["torch_seed"])
    torch.randperm(x.shape[1] - 1)  # of tokens that are dropped, none here
    classes = []
    counted = method.classes_of_step

    def noted(*arguments):
        classes.append(counted(*arguments))
        return classes[-1]

    method.classes_of_step = noted
    golden.steps(trainer, [golden.batch(x)] * len(figures["losses"]), learned)
    golden.same("classes_of_step", [rows.tolist() for rows in classes])
    if method.ranks is not None:
        golden.same("reserve_mask", method.ranks.int())
    golden.logits(trainer, images, "after")


def check_dpc(golden: Golden):
    case = golden.case
    trainer = golden.build()
    method = trainer.method
    learner = trainer.model.prompt_learner
    method.context_of_run = lambda: learner.ctx.detach()
    learner.backbone_ctx.copy_(learner.ctx)
    learned = golden.learned(trainer.model.named_parameters())
    images = golden.images(trainer)
    shape = len(case["classnames"]), case["library_images"], *images.shape[1:]
    library = drawn(case["library_seed"], *shape).flatten(0, 1)
    labels = torch.arange(shape[0]).repeat_interleave(shape[1]).tolist()
    golden.logits(trainer, images, "before")
    method.batches(SimpleNamespace(dataset=Given(library, labels)))
    batch = golden.batch(images)

    def seeded():
        for step, expected in enumerate(golden.figures["pair_labels"]):
            random.seed(case["python_seed"] + step)
            output, places = method.parse_batch_train(batch)
            agree(trainer.model.rows[places], expected)
            random.seed(case["python_seed"] + step)
            yield batch

    golden.steps(trainer, seeded(), learned)
    golden.logits(trainer, images, "after")


def check_start(golden: Golden):
    published = golden.figures["start_published"]
    trainer = golden.build(by_recipe=False, options=golden.sentences())
    method = trainer.method
    torch.manual_seed(published["torch_manual_seed"])
    learner = method.build_prompts(trainer.model.frozen, method.class_names)
    parameters = {f"{learner.name}.{name}": value for name, value in learner.named_parameters()}
    first = {name: value.flatten()[:4] for name, value in parameters.items()}
    golden.same("first4", first, published, rel=1e-5, abs=1e-7)


def check_rate_of_each_epoch(golden: Golden):
    expected = golden.figures["lr_by_epoch"]["lr"]
    options = golden.sentences()
    method = golden.build(options=options).method
    given = ["OPTIM.MAX_EPOCH", len(expected), "OPTIM.LR", max(expected)]
    given += [word for pair in options.items() for word in pair]
    name = type(method).__name__
    own = {"trainer": name, "config": recipe(name, "cross_dataset").cfg}
    backbone = method.cfg.MODEL.BACKBONE.NAME
    root = golden.tmp_path
    method.cfg = cfg_from(*arguments(root, backbone, root / "other", *given, **own))
    schedule = method.build_optimizer()[1]
    found = []
    for _ in expected:
        found += schedule.get_last_lr()
        schedule.step()
    agree(found, expected, rel=1e-6)


def check_whole_words(golden: Golden):
    expected = golden.figures["whole_words"]
    trainer = golden.build(golden.case["cfg"] | golden.case["base_cfg"] | {"WHOLE_WORDS": True})
    images = golden.images(trainer)
    golden.of({"case": golden.case, **expected}).logits(trainer, images, "before")
    loss = trainer.forward_backward(golden.batch(images))["loss"]
    golden.same("first_loss", float(loss), expected, abs=1e-3)


def check_zeroshot(golden: Golden):
    figures = golden.figures
    arch = {"image_resolution": 64, "patch_size": 16, "vision_layers": 4, "text_layers": 4}
    arch |= figures.get("arch", {})
    golden.patch.setattr(DATASET_REGISTRY.get("EuroSAT"), "template", figures["template"])
    case = {"trainer": "ZeroshotCLIP", "arch": arch, "classnames": figures["classnames"]}
    golden = golden.of(figures | {"case": case | {"batch": len(figures["logits"])}})
    trainer = golden.build({})
    images = golden.images(trainer)
    trainer.set_model_mode("eval")
    golden.same("logits", trainer.model_inference(images), abs=BEFORE)
    with torch.no_grad():
        image = trainer.model.image_features(images)
        text = trainer.model.text_features(image)
    golden.same("image_features_first8", image[:, :8])
    golden.same("text_features_first8", text[:, :8])


def check_locoop(golden: Golden):
    """Logits of patches, and the scores that find other images."""
    trainer = golden.build()
    images = golden.images(trainer)

    def check(when, tolerance):
        trainer.set_model_mode("eval")
        with trainer.model.reading("local"):
            logits = trainer.model_inference(images)
            patches = local_logits(trainer.model, trainer.model.last_output).detach()
        golden.same(f"logits_{when}", logits)
        golden.same(f"logits_local_{when}", patches, abs=2 * tolerance)
        for expected in golden.figures[f"scores_{when}"]:
            found = ood.scores(logits, patches, expected["T"])
            for score in ("MCM", "GL-MCM"):
                golden.same(score, found[score], expected, abs=tolerance)
        trainer.set_model_mode("train")

    check("before", BEFORE)
    for _ in golden.figures["losses"]:
        trainer.forward_backward(golden.batch(images))
    check("after", 1e-3)
