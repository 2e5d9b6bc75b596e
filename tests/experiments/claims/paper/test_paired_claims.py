"""The plans of the claims about shortcuts on CIFAR and ImageNet: what they say can be trained, and can be decided."""

import functools
import math
from pathlib import Path

import pytest

from skip_conditioning.experiments.claims.paper.registry import CLAIMS, chosen_claims
from skip_conditioning.experiments.claims.run.experiments import shared_experiments
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs
from skip_conditioning.experiments.claims.verdict.outcome import Verdict
from skip_conditioning.experiments.config.train_config import option_values
from skip_conditioning.experiments.data.image_index import open_images
from skip_conditioning.experiments.training.networks import build_network, check_arms

NAMES = ("shortcut-speeds-cifar", "shortcut-speeds-imagenet")
ARMS = {NAMES[0]: ("original", "modified", "pooled-1x1"), NAMES[1]: ("original", "modified")}
CASES = [(name, size) for name in NAMES for size in ("reduced", "cifar")]
#: Images that a data set has for training.
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}


@functools.cache
def planned(name, size):
    return shared_experiments(chosen_claims((name,)), size, None, Path("nowhere"))


def length(config):
    """Steps of a run."""
    return config.optimisation.steps or config.optimisation.epochs * steps_of_an_epoch(config)


def steps_of_an_epoch(config):
    return math.ceil((config.data.subset or IMAGES[config.data.dataset]) / config.optimisation.batch_size)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_plan_can_be_trained(name, size):
    for experiment in planned(name, size):
        experiment.config.check()
        assert experiment.config.network.arms == ARMS[name]
        check_arms(experiment.config.network.model, experiment.config.network.arms)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_plan_has_trials_to_decide(name, size):
    for experiment in planned(name, size):
        for (claim, name_of_plan), plan in experiment.plans.items():
            assert plan.trials >= CLAIMS[claim].fewest_trials(
                name_of_plan, size, len(experiment.config.optimisation.lr)
            )


@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_window_of_the_loss_is_a_small_part_of_a_run(name, size):
    for experiment in planned(name, size):
        assert 1 < experiment.config.output.loss_window <= length(experiment.config) / 4


@pytest.mark.parametrize("name", NAMES)
def test_no_rate_decays_in_a_reduced_run(name):
    assert all(
        length(experiment.config) <= experiment.config.optimisation.decay_epochs * steps_of_an_epoch(experiment.config)
        for experiment in planned(name, "reduced")
    )


@pytest.mark.parametrize("name", NAMES)
def test_reduced_plans_keep_the_optimiser_and_the_augmentation_of_the_paper(name):
    papers = {experiment.config.data.dataset: experiment.config for experiment in planned(name, "cifar")}
    for experiment in planned(name, "reduced"):
        paper = papers[experiment.config.data.dataset]
        for option in ("augment", "normalise", "momentum", "weight_decay", "decay_epochs", "decay_factor"):
            assert option_values(experiment.config)[option] == option_values(paper)[option]
        scale = (
            1
            if experiment.config.optimisation.momentum == 0
            else experiment.config.optimisation.batch_size / paper.optimisation.batch_size
        )  # ImageNet's
        assert {lr / scale for lr in experiment.config.optimisation.lr} <= set(paper.optimisation.lr)


def test_every_depth_of_the_paper_is_planned_for_imagenet():
    depths = (18, 34, 50, 101, 152)
    assert [experiment.config.network.model for experiment in planned(NAMES[1], "cifar")] == [
        f"preact-resnet{depth}" for depth in depths
    ]


def test_arms_of_a_reduced_plan_share_their_parameters():
    config = planned(NAMES[1], "reduced")[0].config
    networks = [
        build_network(
            config.network.model, arm, config.network.model_options, num_classes=10, input_shape=(3, 224, 224)
        )
        for arm in config.network.arms
    ]
    assert len({tuple((key, value.shape) for key, value in net.named_parameters()) for net in networks}) == 1


@pytest.mark.parametrize("size", ["demo", "mnist"])
@pytest.mark.parametrize("name", NAMES)
def test_a_size_without_plans_is_not_testable(name, size, tmp_path):
    claim = CLAIMS[name]
    assert not claim.plans(size)
    judgement = claim.judge(ClaimInputs({}, tmp_path), size)
    assert judgement.verdict is Verdict.NOT_TESTED
    assert "nothing is trained for it" in judgement.answer
    assert "--size reduced" in judgement.change


def test_the_sample_of_imagenet_is_found_and_large_enough(real_data):
    for experiment in planned(NAMES[1], "reduced"):
        data = open_images(experiment.config.data.dataset, real_data)
        assert data.num_classes == 10
        assert len(data.train.labels) >= experiment.config.data.subset
        assert len(data.test.labels) >= experiment.config.data.limit_test
