"""TCP: which words of a dataset's sentence are learned."""

import pytest
import torch

from clip import tokenize

pytestmark = pytest.mark.slow

NAMES = ["red", "green field", "blue lake", "grey", "white snow", "black"]
TCP_DATASETS = {  # the learned sentence and the teacher's
    "EuroSAT": ("X X X X {}.", "a centered satellite photo of {}."),
    "StanfordCars": ("X X X X {}, a type of car", "a photo of a {}."),
    "DescribableTextures": ("X X X X {} texture.", "a photo of a {}, a type of texture."),
    "UCF101": ("a photo of a person doing {}.", "a photo of a person doing {}."),
    "ImageNetV2": ("a photo of a {}.", "a photo of a {}."),
}


@pytest.mark.parametrize("dataset", TCP_DATASETS)
@pytest.mark.parametrize(("n_ctx", "init"), [(1, False), (3, False), (4, True)])
def test_tcp_replaces_the_first_words_of_the_sentence_of_a_dataset(n_ctx, init, dataset, build, stand_in):
    template, taught = TCP_DATASETS[dataset]
    stand_in(dataset)
    trainer = build("TCP", "all", "N_CTX", n_ctx, "CTX_INIT", init, options=("DATASET.NAME", dataset))
    embedding, learner = trainer.model.clip.token_embedding, trainer.model.prompt_learner
    prompts, ids = learner.text(torch.empty(0)), tokenize([template.format(name) for name in NAMES])
    assert torch.equal(prompts.ids, ids)
    assert trainer.teacher.texts == [[taught.format(name)] for name in NAMES]
    assert learner.ctx.shape == (n_ctx, 64)
    if init:
        torch.testing.assert_close(learner.ctx.data, embedding(tokenize("a photo of a")[0, 1:5]))
    torch.testing.assert_close(prompts.ctx, torch.cat([learner.ctx, embedding(ids[0, 1 + n_ctx : 5])]))
    assert [edit.remove for edit in prompts.deep] == [0] * 8 + [4] and prompts.deep[8].add.shape == (6, 4, 64)
