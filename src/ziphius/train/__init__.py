"""One loop for every stage of training: steps, schedules, optimizers, checkpoints, instruments."""
