"""Configurations of a few steps that several tests train."""

from rewarddance.jobs.train_reward_config import RewardConfig


def reward_config(vlm_folder, data_folder, quick, paradigm="generative_pairwise", **changes):
    return RewardConfig(
        backbone=str(vlm_folder),
        data=str(data_folder),
        paradigm=paradigm,
        prompts_per_step=4,
        precision="fp32",
        **quick(**changes),
    )
