"""Floor 3: tokens out of a model: loading, the latent cache at work, sampling, stopping, text."""
